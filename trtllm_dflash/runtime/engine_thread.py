"""Requests from any thread, served together by one engine thread.

    submit (any thread) ──checked──► bounded queue ──► engine thread: the decode loop, step after
    step ──► on_event

The engine thread alone touches the session and calls the callers' functions. Between two steps it
takes in what has arrived, and lets go of what nobody wants any more.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import BusyError, ClosedError, DFlashError, EngineError, UsageError
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams
from trtllm_dflash.runtime.events import EngineStats, Event, FinishInfo, OnEvent, RequestOutput
from trtllm_dflash.runtime.request import (
    Prompt,
    PromptError,
    Request,
    make_requests,
    tokenize_prompt,
)
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.sequence import ActiveSequence, Update
from trtllm_dflash.runtime.sessions.base import Session
from trtllm_dflash.runtime.text.stop_words import StopWordFilter, check_stops
from trtllm_dflash.runtime.text.tokenizer import Tokenizer, decoder_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOG = logging.getLogger(__name__)

# Prompt tokens between two generation steps, by arch: about as many as cost one more step. A GPU
# reads its weights once for any number up to some hundred; on two CPU cores a prompt's token costs
# a tenth of a step (SmolLM2-135M).
PROMPT_TOKENS_PER_STEP = {"cpu": 16}
PROMPT_TOKENS_PER_STEP_ON_GPUS = 256
MAX_WAITING = 128
TIDY_SECONDS = 0.1  # how often a busy engine thread asks who has gone away, and says how full it is
IDLE_SECONDS = 1.0  # how often an idle one does
WAITING_ASKED = (
    4  # how many of those that wait are asked each time: in a server, each asking is a round trip
)


Result = TypeVar("Result")


def _forever() -> bool:
    return True


@dataclass(eq=False)
class RequestHandle:
    """A submitted request; `cancel` ends it between two steps."""

    request: Request
    answer: StopWordFilter
    on_event: OnEvent
    is_alive: Callable[[], bool] = _forever
    cancelled: bool = False
    submitted: float = field(default_factory=perf_counter)
    asked: float = 0.0  # when `is_alive` was called last
    first_token: float | None = None
    output_tokens: int = 0

    def cancel(self) -> None:
        """End it with what it has by then, as "cancelled"; from any thread, at any time."""
        self.cancelled = True


class EngineThread:
    """Serves an engine's session to many callers at once; users call `Engine.serve`.

    Leave its `with` block, or `close` it, to end what runs and give the engine back.
    """

    def __init__(
        self,
        config: EngineConfig,
        session: Session,
        tokenizer: Tokenizer | None,
        turn: AbstractContextManager[None],
        *,
        max_waiting: int = MAX_WAITING,
        prompt_tokens_per_step: int | None = None,
        on_stats: Callable[[EngineStats], None] = lambda _: None,
    ) -> None:
        """Start the engine thread, which holds `turn` until it ends. See `Engine.serve` for the
        options.
        """
        default = PROMPT_TOKENS_PER_STEP.get(config.gpu_arch, PROMPT_TOKENS_PER_STEP_ON_GPUS)
        budget = default if prompt_tokens_per_step is None else prompt_tokens_per_step
        for name, value in (("max_waiting", max_waiting), ("prompt_tokens_per_step", budget)):
            if value < 1:
                raise UsageError(f"{name} is {value!r}, expected an integer of at least 1.")
        self._config, self._session, self._tokenizer, self._turn = config, session, tokenizer, turn
        self._max_waiting, self._budget, self._on_load = max_waiting, budget, on_stats
        self._loop = Scheduler(session, prompt_tokens_per_step=budget)
        self._changed = threading.Condition()
        self._arrived: list[RequestHandle] = []  # these four under the condition's lock
        self._closing = False
        self._open_until = 0.0  # when closing: how long what is there may go on
        self._failure: DFlashError | None = None  # of the engine thread itself
        self._served: dict[
            ActiveSequence, RequestHandle
        ] = {}  # the engine thread alone changes it, and adds under the lock
        self._next_tidying = 0.0
        turn.__enter__()
        self._thread = threading.Thread(target=self._serve, name="dflash-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> EngineThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        prompt: Prompt,
        *,
        on_event: OnEvent,
        is_alive: Callable[[], bool] = _forever,
        stop_words: Sequence[str] = (),
        **options: Unpack[SamplingOptions],
    ) -> RequestHandle:
        """Check a request here and now, and put it into the queue; from any thread.

        prompt      text, or token ids.
        on_event    called by the engine thread with a `RequestOutput` for each step, the last of which says how it ended, or
                    with an error. Steps wait for it: it should hand on and return.
        is_alive   asked by the engine thread now and then; False cancels.
        stop_words  end the answer where the first of them begins; a special token's text stands for that token. How
                    many they may be and how long, and how many stop_token_ids, is said in answer.py: each token of the
                    answer is compared with them, while the others wait.
        options     as for `Engine.generate`.

        A bad prompt or option raises UsageError, a full queue BusyError, a closed scheduler
        ClosedError, one whose engine thread has failed EngineError.
        """
        request, words = self._checked(prompt, stop_words, SamplingParams.from_options(options))
        handle = RequestHandle(
            request, StopWordFilter(decoder_of(self._tokenizer), words), on_event, is_alive
        )
        with self._changed:
            if self._failure is not None:
                raise EngineError(
                    f"this engine takes no more requests, load it again: {self._failure}"
                )
            if self._closing:
                raise ClosedError(
                    "this engine is being closed and takes no more requests. It may be sent again."
                )
            slots = self._session.max_batch_size
            if len(self._arrived) + len(self._served) >= self._max_waiting + slots:
                raise BusyError(
                    f"{self._max_waiting} requests are waiting for this engine's {slots} slots, and"
                    " its queue holds no more. Try again later."
                )
            self._arrived.append(handle)
            self._changed.notify()
        return handle

    def _checked(
        self, prompt: Prompt, stop_words: Sequence[str], sampling: SamplingParams
    ) -> tuple[Request, list[str]]:
        """The request, and the stop words that are no special tokens."""
        check_stops(stop_words, sampling.stop_token_ids or ())
        special, words = set(), []
        for word in stop_words:
            if self._tokenizer is None:
                raise UsageError("stop_words is for engines with a tokenizer. Give stop_token_ids.")
            token = self._tokenizer.special_token_id(word)
            words += [word] if token is None else []
            special |= set() if token is None else {token}
        if special:
            own = (
                self._config.eos_token_ids
                if sampling.stop_token_ids is None
                else sampling.stop_token_ids
            )
            sampling = replace(sampling, stop_token_ids=(*own, *special))
        try:
            (request,) = make_requests(
                [tokenize_prompt(prompt, self._tokenizer)], sampling, self._config
            )
        except PromptError as error:
            raise UsageError(f"the prompt {error.problem}") from error
        return request, words

    @property
    def stats(self) -> EngineStats:
        """How full the engine is now; from any thread."""
        slots = self._session.max_batch_size
        with self._changed:
            sequences = self._loop.in_slots
            unfinished = len(self._arrived) + len(self._served)
        return EngineStats(
            waiting=max(0, unfinished - sum(sequence in self._served for sequence in sequences)),
            slots=slots,
            slots_in_use=len(sequences),
            cache_positions=slots * self._config.max_seq_len,
            cache_positions_in_use=sum(sequence.positions for sequence in sequences),
        )

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those that there are go on for so long, end the rest as
        failed, and wait for the engine thread; twice does nothing more.
        """
        with self._changed:
            if not self._closing:
                self._closing = True
                self._open_until = perf_counter() + drain_seconds
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _serve(self) -> None:
        error: DFlashError = ClosedError(
            "the engine was closed before this request had ended. It may be sent again."
        )
        try:
            self._loop.discard()
            while self._drain_inbox():
                self._sweep_cancelled()
                try:
                    updates = self._loop.step()
                except Exception as failure:  # noqa: BLE001 - whatever it is, callers must hear of it
                    self._after_failed_step(failure)
                    continue
                for update in updates:
                    self._deliver(update)
        except Exception as failure:  # noqa: BLE001 - likewise
            error = self._failure = _as_engine_error("the engine thread failed", failure)
        finally:
            with self._changed:
                self._closing = True
            self._end_all(error)
            self._report_stats()
            self._turn.__exit__(None, None, None)

    def _drain_inbox(self) -> bool:
        """Wait until there is something to do, and take in what has arrived; False when the
        scheduler closes.
        """
        while not (self._has_work() or self._closing):
            self._report_stats()
            with self._changed:
                self._changed.wait_for(lambda: self._has_work() or self._closing, IDLE_SECONDS)
        with self._changed:
            arrived, self._arrived = self._arrived, []
            for handle in arrived:
                self._served[self._loop.add(handle.request)] = handle
        return not self._closing or (self._loop.busy and perf_counter() < self._open_until)

    def _has_work(self) -> bool:
        return bool(self._arrived or self._loop.busy)

    def _sweep_cancelled(self) -> None:
        """Let go of what was cancelled; now and then, ask whose caller has gone away."""
        now = perf_counter()
        if now >= self._next_tidying:
            self._next_tidying = now + TIDY_SECONDS
            self._report_stats()
            for handle in self._to_poll():
                handle.asked = now
                if not _call_safely(handle.is_alive, otherwise=False):
                    handle.cancelled = True
        for sequence, handle in list(self._served.items()):
            if handle.cancelled:
                self._loop.end(sequence, "cancelled")
                self._tell(handle, RequestOutput([], "", self._finish(sequence, handle)))

    def _to_poll(self) -> list[RequestHandle]:
        """Those in slots, and of those that wait the few that were not asked for longest."""
        waiting = [handle for sequence, handle in self._served.items() if sequence.slot is None]
        in_slots = [
            handle for sequence, handle in self._served.items() if sequence.slot is not None
        ]
        return in_slots + heapq.nsmallest(WAITING_ASKED, waiting, key=lambda handle: handle.asked)

    def _deliver(self, update: Update) -> None:
        """Tell a caller of its new tokens; where that fails, of the failure, and let the others go
        on.
        """
        sequence = update.sequence
        handle = self._served.get(sequence)
        if handle is None:
            return
        try:
            piece = self._piece_of(update, handle)
        except Exception as failure:  # noqa: BLE001 - it is this answer's alone
            self._loop.end(sequence, "cancelled")
            self._served.pop(sequence, None)
            self._tell(
                handle, _as_engine_error("the text of this answer could not be made", failure)
            )
        else:
            self._tell(handle, piece)

    def _piece_of(self, update: Update, handle: RequestHandle) -> RequestOutput:
        sequence, token_ids = update
        if handle.first_token is None:
            handle.first_token = perf_counter()
        used, text = handle.answer.push(token_ids)
        handle.output_tokens += len(used)
        if handle.answer.stopped:
            sequence.truncate(len(token_ids) - len(used))
            sequence.finish_reason = (
                None  # the stop word came first, whatever the block's last tokens say
            )
            self._loop.end(sequence, "stop")
        if sequence.finish_reason is None:
            return RequestOutput(used, text)
        text += handle.answer.finish()
        return RequestOutput(used, text, self._finish(sequence, handle))

    def _finish(self, sequence: ActiveSequence, handle: RequestHandle) -> FinishInfo:
        assert sequence.finish_reason is not None
        del self._served[sequence]
        now = perf_counter()
        return FinishInfo(
            finish_reason=sequence.finish_reason,
            input_tokens=len(handle.request.input_ids),
            output_tokens=handle.output_tokens,
            steps=len(sequence.acceptance_lengths),
            num_draft_tokens=sequence.num_draft_tokens,
            num_accepted_draft_tokens=sum(sequence.acceptance_lengths)
            - len(sequence.acceptance_lengths),
            queue_seconds=(sequence.admitted or now) - handle.submitted,
            first_token_seconds=(
                None if handle.first_token is None else handle.first_token - handle.submitted
            ),
            seconds=now - handle.submitted,
        )

    def _tell(self, handle: RequestHandle, event: Event) -> None:
        def told() -> bool:
            handle.on_event(event)
            return True

        if not _call_safely(told, otherwise=False):
            handle.cancelled = True

    def _report_stats(self) -> None:
        _call_safely(lambda: self._on_load(self.stats), otherwise=None)

    def _after_failed_step(self, failure: Exception) -> None:
        """Tell those in slots of an error that is nobody's own, and go on with empty slots for
        those that wait.
        """
        error = _as_engine_error("a step failed", failure)
        waiting = self._loop.waiting
        failed = [handle for sequence, handle in self._served.items() if sequence not in waiting]
        with self._changed:
            self._loop = Scheduler(self._session, prompt_tokens_per_step=self._budget)
            again = [self._served[sequence] for sequence in waiting]
            self._served = {self._loop.add(handle.request): handle for handle in again}
        for handle in failed:
            self._tell(handle, error)
        _call_safely(self._loop.discard, otherwise=None)

    def _end_all(self, error: DFlashError) -> None:
        """Tell everyone of an error, and leave nothing in the session."""
        with self._changed:
            handles = [*self._served.values(), *self._arrived]
            self._arrived = []
            self._served = {}
            self._loop = Scheduler(self._session, prompt_tokens_per_step=self._budget)
        for handle in handles:
            self._tell(handle, error)
        _call_safely(self._loop.discard, otherwise=None)


def _as_engine_error(what: str, failure: Exception) -> DFlashError:
    """Log an error, and return what callers are told of it."""
    _LOG.error(what, exc_info=failure)
    if isinstance(failure, DFlashError):
        return failure
    return EngineError(f"{what}: {type(failure).__name__}: {failure}")


def _call_safely(call: Callable[[], Result], *, otherwise: Result) -> Result:
    """A call that must not end the engine thread: what it raises is logged."""
    try:
        return call()
    except Exception:  # noqa: BLE001 - the caller's own, whatever it is
        _LOG.exception("the engine thread goes on after an error")
        return otherwise
