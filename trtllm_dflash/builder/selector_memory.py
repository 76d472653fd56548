"""What a drafter's candidate selector takes of an engine: rows of codebooks again, and scratch.

A Markov head is one too: its matrices are the codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.models.dflash2 import SelectorConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.trt_plugins.params import select_plan

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class SelectorMemory:
    """A selector over `places` tokens, whose codebooks have `stored` rows each.

    `is_listed`: the places are those of a draft vocabulary. With `has_listed_successors` the
    successors are stored for these alone.
    """

    selector: SelectorConfig
    places: int
    stored: int
    is_listed: bool
    has_listed_successors: bool = False

    @classmethod
    def of(
        cls, drafter: DrafterConfig | None, target_vocab: int, listed: int | None
    ) -> SelectorMemory | None:
        """Return what the selector takes, None without one; `listed`: tokens of a vocabulary."""
        if drafter is None or drafter.walk is None:
            return None
        stored = drafter.vocab_size
        places = min(target_vocab, stored) if listed is None else listed
        own = bool(drafter.markov_rank) and drafter.draft_vocab_size is not None
        return cls(drafter.walk, places, stored, listed is not None, own)

    def copied_bytes(self, dtype_bytes: int) -> int:
        """Return the bytes of codebooks beside the two that are stored.

        Where not all of their rows are places, those of both are copied. The whole predecessors
        stay for the anchor, and the whole successors do not, so it may be less than 0.
        """
        if not self.is_listed and self.places == self.stored:
            return 0
        successors = 0 if self.has_listed_successors else self.places - self.stored
        return (self.places + successors) * self.selector.rank * dtype_bytes

    @property
    def _candidates(self) -> int:
        return min(self.selector.top_k, self.places)

    def kernel_scratch(self, slots: int, rows: int) -> int:
        """Return the kernel's workspace for `rows` drafts a slot."""
        plan = select_plan(batch=slots, rows=rows, vocab=self.places, top_k=self._candidates)
        return plan.workspace_bytes

    def body_scratch(self, slots: int, rows: int, dtype_bytes: int) -> int:
        """Return the bytes of the operator's body.

        They are the logits without NaN, both rows of each candidate as they are stored and wide,
        and the scores of pairs.
        """
        candidates = slots * rows * self._candidates
        vectors = candidates * self.selector.rank * (2 * dtype_bytes + 3 * _FLOAT_BYTES)
        scores = 2 * candidates * self._candidates * _FLOAT_BYTES
        return slots * rows * self.places * _FLOAT_BYTES + vectors + scores
