"""A step in flight: whose tokens it decides, and what its results must look like."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.draft_sources import TokenSource
from trtllm_dflash.runtime.grammar.constrained_steps import keep_drafts
from trtllm_dflash.runtime.logprobs import add_logprobs
from trtllm_dflash.runtime.request import Request, Update
from trtllm_dflash.runtime.sessions.base import StepResult
from trtllm_dflash.runtime.step_checks import NOT_FINITE, ExpectedRow, check_step


@dataclass
class ScheduledStep:
    """A step in flight: a prompt's chunk, or a decode step whose row i is request i."""

    requests: list[Request]
    width: int
    started: float
    number: int  # of all steps of its scheduler
    drafts: bool = True  # whether the drafter drafts the next blocks
    is_prefill: bool = False
    decides: bool = True  # False: a chunk that is not its prompt's last
    chunk_end: int = 0  # of a chunk: the positions that its slot holds behind it

    def check(self, result: StepResult, vocab_size: int) -> list[EngineError | None]:
        """Return an error for each row that can have no token, None for the others.

        Raises:
            EngineError: if no row of the result can be believed.
        """
        phase = "prefill" if self.is_prefill else "decode"
        return check_step(
            result,
            self._expected_rows(),
            columns=1 if self.is_prefill else self.width,
            vocab_size=vocab_size,
            step=f"{phase} step {self.number}",
        )

    def take(self, result: StepResult, row: int, error: EngineError | None) -> Update:
        """Give the request of a row its tokens, and return those that it keeps.

        With an `error` the row's last token is none. An answer that ends before it is as good.

        Raises:
            DFlashError: if its grammar cannot follow them, or there is no next one; the request
                must end.
        """
        request = self.requests[row]
        num_new = int(result.num_new[row])
        tokens = result.new_ids[row, :num_new].tolist()
        if error is not None:
            tokens = tokens[: tokens.index(NOT_FINITE)]
        kept = request.commit(tokens)
        if error is not None and request.finish_reason is None:
            raise _why_none_is_left(request) or error
        add_logprobs(request, result, row, kept)
        sources: list[TokenSource] = ["target"]
        if not self.is_prefill:
            sources = request.sources_of_step(len(kept), num_new)
            request.count_step(len(kept), self.width - 1)
        request.next_class = result.next_class(row)
        keep_drafts(request, result, row)
        return Update(request, kept, sources=sources)

    def _expected_rows(self) -> list[ExpectedRow]:
        if self.is_prefill:
            (request,) = self.requests
            is_used = request.finish_reason is None
            return [ExpectedRow(request.slot or 0, self.chunk_end - 1, is_used)]
        return [
            ExpectedRow(slot, request.num_positions, request.finish_reason is None)
            for slot, request in enumerate(self.requests)
        ]


def _why_none_is_left(request: Request) -> UsageError | None:
    """Return how a request that limits its tokens may have left none; None if it does not."""
    limits = {
        "its grammar": request.constraint,
        "bad_words": request.sampling.bad_words,
        "logit_bias": request.sampling.logit_bias,
    }
    asked = [name for name, given in limits.items() if given]
    if not asked:
        return None
    return UsageError(
        f"token {len(request.output_ids) + 1} of the answer can be none: what the request asks"
        f" ({', '.join(asked)}) leaves no token there. Ask for less. If it should leave some, the"
        " logits themselves are not finite: look whether the checkpoint is intact."
    )
