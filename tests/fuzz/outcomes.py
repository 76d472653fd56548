"""What becomes of a mutant: accepted, refused in our words, or one of the three faults."""

from __future__ import annotations

import multiprocessing
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from trtllm_dflash.errors import DFlashError

FAULTS = ("raw exception", "abort", "hang", "wrong")
MAX_DETAIL = 4000  # characters


class Outcome(NamedTuple):
    """`kind` is "accepted", "refused" or one of FAULTS; `detail` is a text about it."""

    kind: str
    detail: str


class WrongAnswerError(Exception):
    """A mutant was accepted, and what came of it is plausible and wrong."""


def outcome_of(function: Callable[[Any], str], argument: Any) -> Outcome:
    """Call a function in this process; it returns a text about what it accepted."""
    try:
        return Outcome("accepted", function(argument))
    except DFlashError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    except WrongAnswerError as error:
        return Outcome("wrong", str(error))
    except BaseException:  # noqa: BLE001 - what escapes is what a fuzz looks for
        return Outcome("raw exception", traceback.format_exc()[-MAX_DETAIL:])


class FuzzWorker:
    """Calls a function in a process of its own, so that aborts and hangs are seen.

    The process is started again after each of them. Use it as a context manager.
    """

    def __init__(self, function: Callable[[Any], str], *, seconds: float) -> None:
        """Prepare; `function` can be imported by name, and a call may take `seconds`."""
        self._function = function
        self._seconds = seconds
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> FuzzWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def outcome(self, argument: Any) -> Outcome:
        """Return what became of one argument."""
        if self._process is None:
            self._start()
        self._pipe.send(argument)
        if not self._pipe.poll(self._seconds):
            self._stop()
            return Outcome("hang", f"no end after {self._seconds} s")
        try:
            return Outcome(*self._pipe.recv())
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._stop()
            return Outcome("abort", f"the process ended with {code}")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, self._function))
        self._process.start()
        theirs.close()
        self._pipe.recv()  # imports take their time; they are not the argument's fault

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def counts_without_faults(
    function: Callable[[Any], str], num_mutants: int, *, seconds: float
) -> Counter[str]:
    """Call a function with each mutant's number in a process of its own; count what becomes of it.

    A call may take `seconds`. A fault fails the test, with all of them in its message.
    """
    faults = []
    counts = Counter[str]()
    with FuzzWorker(function, seconds=seconds) as worker:
        for number in range(num_mutants):
            outcome = worker.outcome(number)
            counts[outcome.kind] += 1
            if outcome.kind in FAULTS:
                faults.append((number, *outcome))
    assert faults == []
    return counts


def _answer(pipe: Any, function: Callable[[Any], str]) -> None:
    pipe.send("ready")
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        pipe.send(tuple(outcome_of(function, argument)))
