"""A request that was submitted to an engine thread: its caller, its text, its clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from trtllm_dflash.errors import DeadlineError
from trtllm_dflash.options.draft_sources import TokenSource
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.runtime.outputs import FinishInfo, OnEvent, RequestOutput
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.text.answer_text import AnswerText
from trtllm_dflash.runtime.text.pieces import NOTHING, Delta


@dataclass(eq=False)
class RequestHandle:
    """A submitted request; `cancel` ends it between two steps."""

    request: Request
    text: AnswerText
    on_event: OnEvent
    is_alive: Callable[[], bool]
    queueing: Queueing = field(default_factory=Queueing)
    cancelled: bool = False
    submitted: float = field(default_factory=perf_counter)
    polled: float = 0.0  # when `is_alive` was called last
    first_token: float | None = None
    num_output_tokens: int = 0
    others: list[RequestHandle] = field(default_factory=list)  # of the prompt's other answers

    def cancel(self) -> None:
        """End it with what it has by then, as "cancelled"; from any thread, at any time."""
        for handle in (self, *self.others):
            handle.cancelled = True

    def push(self, token_ids: list[int]) -> tuple[list[int], Delta]:
        """Return the tokens up to a stop word, which is a reason to stop, and their text."""
        if self.first_token is None:
            self.first_token = perf_counter()
        used, delta = self.text.push(token_ids)
        self.num_output_tokens += len(used)
        return used, delta

    def output(
        self,
        token_ids: list[int],
        delta: Delta = NOTHING,
        sources: Sequence[TokenSource] = (),
    ) -> RequestOutput:
        """Return what the caller is told; it has `finish_info` once the request has ended."""
        request = self.request
        has_ended = request.finish_reason is not None
        if has_ended and request.finish_reason != "cancelled":
            delta = delta.joined(self.text.finish())
        return RequestOutput(
            token_ids,
            delta.text,
            self._finish_info() if has_ended else None,
            reasoning=delta.reasoning,
            logprobs=request.last_logprobs(len(token_ids)),
            sample_index=request.sample_index,
            tool_calls=delta.tool_calls,
            sources=list(sources[: len(token_ids)]),
            token_texts=self.text.token_texts if token_ids else None,
        )

    def deadline_error(self) -> DeadlineError:
        """Return what the caller of a request is told whose time is over."""
        waited = (self.request.admitted or perf_counter()) - self.submitted
        return DeadlineError(
            f"the answer is not whole after {self.queueing.timeout_seconds:g} s"
            f" (timeout_seconds): it waited {waited:.2f} s for a slot, and has"
            f" {self.num_output_tokens} tokens. Give it more time, or ask for fewer tokens."
        )

    def _finish_info(self) -> FinishInfo:
        request = self.request
        now = perf_counter()
        assert request.finish_reason is not None
        first_token_seconds = None
        if self.first_token is not None:
            first_token_seconds = self.first_token - self.submitted
        num_steps = len(request.acceptance_lengths)
        return FinishInfo(
            finish_reason=request.finish_reason,
            input_tokens=len(request.input_ids),
            output_tokens=self.num_output_tokens,
            steps=num_steps,
            num_draft_tokens=request.num_verified.total(),
            num_accepted_draft_tokens=sum(request.acceptance_lengths) - num_steps,
            queue_seconds=(request.admitted or now) - self.submitted,
            first_token_seconds=first_token_seconds,
            seconds=now - self.submitted,
            seed=request.seed,
            cached_tokens=request.num_cached,
            drafts_by_source=request.drafts_by_source,
            acceptance_lengths=tuple(request.acceptance_lengths),
        )
