"""Requests from any thread, served together by one engine thread.

    submit (any thread) ──checked──► bounded queue ──► engine thread: step after step ──► on_event

Only the engine thread touches the session and calls the callers' functions. Between two steps it
takes in new requests and drops cancelled ones.

It is nobody's main thread, so nothing that foreign code raises is meant for it. That holds for
SystemExit and for a tokenizer's panic, which is no Exception. Whatever comes out of a text or a
caller's function ends that one request. A step that fails ends the requests in it. If the thread
itself fails, it says so to everyone and gives the engine back.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import (
    BusyError,
    ClosedError,
    DFlashError,
    EngineError,
    UsageError,
    as_dflash_error,
)
from trtllm_dflash.options.checks import check_integer
from trtllm_dflash.options.queueing import MAX_WAITING, Queueing
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams
from trtllm_dflash.runtime.bad_words import bad_word_tokens
from trtllm_dflash.runtime.draft_len_chooser import DraftLenChooser
from trtllm_dflash.runtime.grammar.grammars import Grammars
from trtllm_dflash.runtime.outputs import EngineStats, Event, OnEvent
from trtllm_dflash.runtime.prefix_cache import NO_PREFIX_CACHE, NoPrefixCache, PrefixCache
from trtllm_dflash.runtime.preprocess import check_stop_words, make_requests
from trtllm_dflash.runtime.prompt_inputs import Prompt, PromptError, tokenize_prompt
from trtllm_dflash.runtime.request import Request, Update
from trtllm_dflash.runtime.request_handle import RequestHandle
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.sessions.base import Session
from trtllm_dflash.runtime.text.answer_text import AnswerTexts
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.turnover import Turnover

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOG = logging.getLogger(__name__)

# Prompt tokens between two decode steps: about as many as cost one more step. A GPU reads its
# weights once for any number up to some hundred. On two CPU cores a prompt's token costs a tenth of
# a step (SmolLM2-135M).
PROMPT_TOKENS_PER_STEP = {"cpu": 16}
PROMPT_TOKENS_PER_STEP_ON_GPUS = 256
SWEEP_SECONDS = 0.1  # how often a busy engine thread polls callers and reports its stats
IDLE_SECONDS = 1.0  # how often an idle one does
MAX_POLLED_WAITING = 4  # waiting callers polled each time; in a server a poll is a round trip

Result = TypeVar("Result")


def _always_alive() -> bool:
    return True


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
        prefix_cache: PrefixCache | NoPrefixCache = NO_PREFIX_CACHE,
        chooser: DraftLenChooser | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """Start the engine thread, which holds `turn` until it ends.

        See `Engine.serve` for the options.
        """
        budget = prompt_tokens_per_step
        if budget is None:
            budget = PROMPT_TOKENS_PER_STEP.get(config.gpu_arch, PROMPT_TOKENS_PER_STEP_ON_GPUS)
        for name, value in (("max_waiting", max_waiting), ("prompt_tokens_per_step", budget)):
            check_integer(name, value, low=1)
        self._config = config
        self._session = session
        self._tokenizer = tokenizer
        self._texts = AnswerTexts(tokenizer, config.model_type)
        self._grammars = grammars or Grammars(tokenizer, config)
        self._turn = turn
        self._max_waiting = max_waiting
        self._budget = budget
        self._on_stats = on_stats
        self._prefix_cache = prefix_cache
        self._chooser = chooser
        self._scheduler = self._new_scheduler()
        self._changed = threading.Condition()
        self._inbox: list[RequestHandle] = []  # these four under the condition's lock
        self._closing = False
        self._deadline = 0.0  # when closing: how long running requests may go on
        self._failure: DFlashError | None = None  # of the engine thread itself
        # Only the engine thread changes it, and it adds under the lock.
        self._served: dict[Request, RequestHandle] = {}
        self._next_sweep = 0.0
        self._turnover = Turnover(session.max_batch_size)
        turn.__enter__()
        self._thread = threading.Thread(target=self._serve, name="dflash-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Prompt,
        *,
        on_event: OnEvent,
        is_alive: Callable[[], bool] = _always_alive,
        queueing: Queueing | None = None,
        **options: Unpack[SamplingOptions],
    ) -> RequestHandle:
        """Check a request at once and put it into the queue, as `EngineServer.submit` says."""
        sampling = SamplingParams.from_options(options)
        queueing = queueing or Queueing()
        handles = []
        for request in self._requests(prompt, sampling):
            request.priority = queueing.priority
            text = self._texts.make(request.input_ids.tolist(), sampling)
            handles.append(RequestHandle(request, text, on_event, is_alive, queueing))
        first, *others = handles
        first.others = others
        with self._changed:
            self._check_open(len(handles))
            self._inbox += handles
            self._changed.notify()
        return first

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(
            self._session,
            vocab_size=self._config.vocab_size,
            prompt_tokens_per_step=self._budget,
            prefix_cache=self._prefix_cache,
            chooser=self._chooser,
        )

    def _requests(self, prompt: Prompt, sampling: SamplingParams) -> list[Request]:
        """Return a request for each of the prompt's answers."""
        check_stop_words(sampling, self._tokenizer)
        try:
            input_ids = tokenize_prompt(prompt, self._tokenizer)
            bad_words = bad_word_tokens(sampling, self._tokenizer)
            requests = make_requests([input_ids], sampling, self._config, bad_words)
        except PromptError as error:
            raise UsageError(f"the prompt {error.problem}") from error
        self._grammars.constrain(requests, sampling)
        return requests

    def _check_open(self, num_requests: int) -> None:
        if self._failure is not None:
            raise EngineError(
                f"this engine takes no more requests, load it again: {self._failure}"
            )
        if self._closing:
            raise ClosedError(
                "this engine is being closed and takes no more requests. It may be sent again."
            )
        slots = self._session.max_batch_size
        if num_requests > self._max_waiting + slots:
            raise UsageError(
                f"n is {num_requests}, and this engine has {slots} slots and a queue of"
                f" {self._max_waiting}. Ask for fewer answers."
            )
        if len(self._inbox) + len(self._served) + num_requests > self._max_waiting + slots:
            raise BusyError(
                f"{self._max_waiting} requests are waiting for this engine's {slots} slots, and"
                " its queue holds no more.",
                self._turnover.seconds_until_room(num_requests),
            )

    @property
    def failed(self) -> DFlashError | None:
        """Return why the engine thread had to end, None if it did not; from any thread."""
        return self._failure

    @property
    def alive(self) -> bool:
        """Tell whether requests are taken and answered; from any thread."""
        return self._failure is None and not self._closing and self._thread.is_alive()

    @property
    def stats(self) -> EngineStats:
        """Return how full the engine is now; from any thread."""
        slots = self._session.max_batch_size
        with self._changed:
            requests = self._scheduler.in_slots
            unfinished = len(self._inbox) + len(self._served)
        running = sum(request in self._served for request in requests)
        return EngineStats(
            waiting=max(0, unfinished - running),
            slots=slots,
            slots_in_use=len(requests),
            cache_positions=slots * self._config.max_seq_len,
            cache_positions_in_use=sum(request.num_positions for request in requests),
        )

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give the others `drain_seconds`, and wait for the engine thread.

        Requests that have not ended by then fail. A second call changes nothing.
        """
        with self._changed:
            if not self._closing:
                self._closing = True
                self._deadline = perf_counter() + drain_seconds
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _serve(self) -> None:
        error: DFlashError = ClosedError(
            "the engine was closed before this request had ended. It may be sent again."
        )
        try:
            self._scheduler.discard()
            while self._drain_inbox():
                self._sweep()
                self._run_step()
        except BaseException as failure:  # noqa: BLE001 - callers must hear of every error
            error = self._failure = _logged_error("the engine thread failed", failure)
        finally:
            try:
                with self._changed:
                    self._closing = True
                self._end_all(error)
                self._report_stats()
            finally:
                self._turn.__exit__(None, None, None)

    def _drain_inbox(self) -> bool:
        """Wait for work and take in new requests; return False when the engine closes."""
        while not (self._has_work() or self._closing):
            self._report_stats()
            _call_safely(self._session.keep, otherwise=None)
            with self._changed:
                self._changed.wait_for(lambda: self._has_work() or self._closing, IDLE_SECONDS)
        with self._changed:
            arrived, self._inbox = self._inbox, []
            for handle in arrived:
                self._scheduler.add(handle.request)
                self._served[handle.request] = handle
        return not self._closing or (self._scheduler.busy and perf_counter() < self._deadline)

    def _has_work(self) -> bool:
        return bool(self._inbox or self._scheduler.busy)

    def _sweep(self) -> None:
        """End cancelled and overdue requests; now and then, poll callers that may be gone."""
        now = perf_counter()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._report_stats()
            for handle in self._to_poll():
                handle.polled = now
                if not _call_safely(handle.is_alive, otherwise=False):
                    handle.cancelled = True
        for request, handle in list(self._served.items()):
            overdue = handle.queueing.is_overdue(now)
            if handle.cancelled or overdue:
                self._scheduler.end(request, "cancelled")
                self._forget(request)
                told = handle.output([]) if handle.cancelled else handle.deadline_error()
                self._notify(handle, told)

    def _to_poll(self) -> list[RequestHandle]:
        """Return those in slots, and of those that wait the few polled longest ago."""
        waiting: list[RequestHandle] = []
        in_slots: list[RequestHandle] = []
        for request, handle in self._served.items():
            (waiting if request.slot is None else in_slots).append(handle)
        oldest = heapq.nsmallest(MAX_POLLED_WAITING, waiting, key=lambda handle: handle.polled)
        return in_slots + oldest

    def _run_step(self) -> None:
        try:
            updates = self._scheduler.step()
        except BaseException as failure:  # noqa: BLE001 - callers must hear of every error
            self._after_failed_step(failure)
            return
        for update in updates:
            self._deliver(update)

    def _deliver(self, update: Update) -> None:
        """Tell a caller of its new tokens; an error in their text ends this answer alone."""
        request = update.request
        handle = self._served.get(request)
        if handle is None:
            return
        event: Event
        try:
            event = update.error or self._output_of(update, handle)
        except BaseException as failure:  # noqa: BLE001 - it concerns this answer alone
            self._scheduler.end(request, "cancelled")
            event = _logged_error("the text of this answer could not be made", failure)
        if request.finish_reason is not None:
            self._forget(request)
        self._notify(handle, event)

    def _forget(self, request: Request) -> None:
        """Serve a request no more, which has ended; its slot, if it has one, is free soon."""
        del self._served[request]
        if request.admitted is not None:
            self._turnover.note_end(perf_counter() - request.admitted)

    def _output_of(self, update: Update, handle: RequestHandle) -> Event:
        request = update.request
        token_ids = update.token_ids
        used, delta = handle.push(token_ids)
        if handle.text.stopped:
            self._scheduler.end_at_stop_word(request, len(token_ids) - len(used))
        return handle.output(used, delta, update.sources)

    def _notify(self, handle: RequestHandle, event: Event) -> None:
        def notify() -> bool:
            handle.on_event(event)
            return True

        if not _call_safely(notify, otherwise=False):
            handle.cancelled = True

    def _report_stats(self) -> None:
        _call_safely(lambda: self._on_stats(self.stats), otherwise=None)

    def _after_failed_step(self, failure: BaseException) -> None:
        """Fail the requests of a step that failed, and go on with the others."""
        error = _logged_error("a step failed", failure)
        for request in self._scheduler.drop_failed():
            handle = self._served.pop(request, None)
            if handle is not None:
                self._notify(handle, error)

    def _end_all(self, error: DFlashError) -> None:
        """Fail all requests, and leave nothing in the session."""
        with self._changed:
            handles = [*self._served.values(), *self._inbox]
            self._inbox = []
            self._served = {}
            self._scheduler = self._new_scheduler()
        for handle in handles:
            self._notify(handle, error)
        _call_safely(self._scheduler.discard, otherwise=None)


def _logged_error(what: str, failure: BaseException) -> DFlashError:
    """Log an error, and return what callers are told of it."""
    _LOG.error(what, exc_info=failure)
    return as_dflash_error(what, failure)


def _call_safely(call: Callable[[], Result], *, otherwise: Result) -> Result:
    """Call a function whose errors must not end the engine thread: they are logged."""
    try:
        return call()
    except BaseException:  # noqa: BLE001 - it is the caller's function
        _LOG.exception("the engine thread goes on after an error")
        return otherwise
