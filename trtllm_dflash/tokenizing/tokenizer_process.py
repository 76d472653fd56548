"""A tokenizer in processes of its own: one that has read the files, and one for each role."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.tokenizing.limits import LOADING, MEMORY_BYTES, CallLimits
from trtllm_dflash.tokenizing.processes import (
    ForkedProcess,
    ForkServer,
    ProcessEndedError,
    end_root_unless,
    root_server,
    start_failure,
)

_LOG = logging.getLogger(__name__)
_LIVING: weakref.WeakSet[TokenizerProcess] = weakref.WeakSet()


class TokenizerError(DFlashError):
    """A tokenizer's code failed, or was given up at a limit.

    `problem` says why without naming a path. `refused` tells whether the code did as it should,
    and what it was asked cannot be done.
    """

    def __init__(self, problem: str, *, refused: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.refused = refused

    def describe(self) -> str:
        """Return what is wrong, as the rest of a sentence that begins with what failed."""
        return self.problem if self.refused else f"cannot be used: {self.problem}"


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known of a tokenizer once its files are read."""

    special_tokens: Mapping[str, int]
    longest_token: int  # characters
    largest_id: int
    has_chat_template: bool
    template_names: list[str]  # [] for a template without a name
    eos_token: str | None
    eos_token_id: int | None
    byte_tokens: Mapping[str, int]  # written like <0x0A>
    decoder: str  # its description in JSON
    template_words: list[str]  # those of `library.TEMPLATE_WORDS` that a template has
    think_tokens: Mapping[str, int]  # those of `library.THINK_TOKENS` that there are
    library: str


@dataclass
class _Role:
    """One task of a tokenizer, and the process that does it while there is one."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    process: ForkedProcess | None = None


class TokenizerProcess:
    """A tokenizer's processes; calls may come from any thread.

    Each role has a process and does one call at a time. A call that fails or goes beyond its limits
    is an error of that call alone.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory of the tokenizer's files; nothing is started yet."""
        self._directory = directory.absolute()
        self._loading = threading.Lock()
        self._facts: TokenizerFacts | None = None
        self._failure: TokenizerError | None = None
        self._reader: ForkedProcess | None = None
        self._server: ForkServer | None = None
        self._roles: dict[str, _Role] = {}
        _LIVING.add(self)

    def start(self) -> None:
        """Begin to read the files, without waiting."""
        root_server()
        threading.Thread(target=self._load_quietly, daemon=True).start()

    @property
    def facts(self) -> TokenizerFacts:
        """Return what the files say, read at the first call.

        Raises:
            TokenizerError: if they cannot be read; at every call, and they are not read again.
        """
        with self._loading:
            if self._failure is not None:
                raise TokenizerError(self._failure.problem)
            if self._facts is None:
                begin = perf_counter()
                try:
                    self._facts = self._load()
                except TokenizerError as error:
                    self._failure = error
                    raise
                seconds = perf_counter() - begin
                _LOG.debug("read the tokenizer of %s: %.1f s", self._directory, seconds)
            return self._facts

    def call(self, role_name: str, do: str, limits: CallLimits, *arguments: Any) -> Any:
        """Return what a method of `library.Library` returns.

        Arguments and result are plain types, as in JSON.

        Raises:
            TokenizerError: if it fails, or goes beyond its limits.
        """
        _ = self.facts
        message = {"do": do, "with": arguments, "seconds": limits.seconds}
        role = self._roles.setdefault(role_name, _Role())
        with role.lock:
            try:
                answer = self._answer(role, limits, message)
            except ProcessEndedError as ended:
                raise TokenizerError(ended.describe(limits)) from None
        if "value" in answer:
            return answer["value"]
        raise TokenizerError(answer["problem"], refused=answer["type"] == "RefusalError")

    def close(self) -> None:
        """End the processes; a later call starts them again."""
        for process in self._processes():
            process.connection.close()
        self._loading = threading.Lock()
        self._facts = self._failure = self._reader = self._server = None
        self._roles = {}

    def __del__(self) -> None:
        with suppress(AttributeError):
            for process in self._processes():
                process.connection.close()

    @property
    def is_in_use(self) -> bool:
        """Tell whether it has read its files, or is reading them."""
        return self._reader is not None or self._loading.locked()

    def _answer(self, role: _Role, limits: CallLimits, message: Mapping[str, Any]) -> Any:
        """Return the answer of the role's process; if it was killed, that of a new one."""
        try:
            return self._answer_once(role, limits, message)
        except ProcessEndedError as ended:
            if not ended.was_killed:
                raise
        return self._answer_once(role, limits, message)

    def _answer_once(self, role: _Role, limits: CallLimits, message: Mapping[str, Any]) -> Any:
        process = role.process or self._fork()
        role.process = None  # unless it answers
        answer = process.answer(limits, message)
        if answer.get("broken"):
            process.end()
        else:
            role.process = process
        return answer

    def _fork(self) -> ForkedProcess:
        with self._loading:
            if self._server is not None:
                with suppress(OSError):
                    return self._server.fork({"memory_bytes": MEMORY_BYTES})
            self._facts = self._load()  # the process that had read the files has ended
            assert self._server is not None
            try:
                return self._server.fork({"memory_bytes": MEMORY_BYTES})
            except OSError:
                raise ProcessEndedError(None, given_up=False) from None

    def _load(self) -> TokenizerFacts:
        """Read the files in a new process, and keep it for forking others."""
        message = {
            "directory": str(self._directory),
            "seconds": LOADING.seconds,
            "memory_bytes": MEMORY_BYTES,
        }
        try:
            process = self._fork_reader(message)
            answer = process.answer(LOADING)
        except ProcessEndedError as ended:
            raise TokenizerError(ended.describe(LOADING)) from None
        if "value" not in answer:
            process.end()
            raise TokenizerError(answer["problem"])
        self._reader = process
        self._server = ForkServer(process.connection)
        return TokenizerFacts(**answer["value"])

    def _fork_reader(self, message: Mapping[str, Any]) -> ForkedProcess:
        with suppress(OSError):
            return root_server().fork(message)
        try:
            return root_server().fork(message)  # the root was killed, and there is a new one
        except OSError:
            raise TokenizerError(start_failure()) from None

    def _load_quietly(self) -> None:
        with suppress(TokenizerError):  # told at the first call
            _ = self.facts

    def _processes(self) -> list[ForkedProcess]:
        found = [role.process for role in self._roles.values() if role.process]
        return found + ([self._reader] if self._reader else [])


def end_unused_processes() -> None:
    """End the process that all tokenizers are forked from, unless one is in use.

    It takes 43 MB. The next tokenizer starts it again.
    """
    end_root_unless(lambda: any(tokenizer.is_in_use for tokenizer in list(_LIVING)))


def _forget_processes() -> None:
    """Leave all processes to the parent, of which this process is a fork."""
    for tokenizer in list(_LIVING):
        tokenizer.close()


os.register_at_fork(after_in_child=_forget_processes)
