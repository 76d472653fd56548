"""How many tokens of the calibration text reached each expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_NAMED = 4


@dataclass(frozen=True)
class ExpertCoverage:
    """The calibration tokens of each expert, by the module of a layer's experts.

    `with_all`: every token also went through every expert, for the scales alone. The counts are
    those of the router all the same.
    """

    tokens: Mapping[str, tuple[int, ...]]
    with_all: bool = False

    @property
    def num_experts(self) -> int:
        """Return the experts of all layers together."""
        return sum(map(len, self.tokens.values()))

    @property
    def without_tokens(self) -> tuple[str, ...]:
        """Return the names of the experts whose inputs no calibration token has shown."""
        if self.with_all:
            return ()
        found = []
        for module, counts in self.tokens.items():
            found += [f"{module}.{expert}" for expert, count in enumerate(counts) if not count]
        return tuple(found)

    def describe(self) -> str:
        """Return how many experts were reached, for people."""
        if self.with_all:
            return f"all {self.num_experts} saw every calibration token"
        missed = self.without_tokens
        reached = self.num_experts - len(missed)
        if not missed:
            fewest = min(min(counts) for counts in self.tokens.values())
            return f"all {reached} reached, by at least {fewest} calibration tokens"
        return f"{reached} of {self.num_experts} reached by calibration tokens"

    def warning(self) -> str | None:
        """Return what is to be known of experts without tokens; None if there are none."""
        missed = self.without_tokens
        if not missed:
            return None
        named = ", ".join(missed[:_MAX_NAMED])
        more = f" and {len(missed) - _MAX_NAMED} more" if len(missed) > _MAX_NAMED else ""
        return (
            f"no calibration token reached {named}{more}. The scales of their weights are of the"
            " weights, and their inputs have the scale that all experts of a layer share."
            " More text, or --calib-all-experts, would show what they compute."
        )

    def facts(self) -> dict[str, Any]:
        """Return the facts for the record."""
        return {
            "experts": self.num_experts,
            "all_tokens_to_all": self.with_all,
            "without_tokens": list(self.without_tokens),
            "tokens": {module: list(counts) for module, counts in self.tokens.items()},
        }
