"""The options of `dflash-trt eval`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_real
from trtllm_dflash.options.fields import check_fields, cli_option, option_name
from trtllm_dflash.options.shared import NUM_THREADS

_DIFFERENCES = ("min_top1", "max_kl", "max_perplexity_increase")
LIMITS = ("min_acceptance_length", *_DIFFERENCES)


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and the limits that it must keep.

    Raises:
        UsageError: for a value that no engine could make right.
    """

    engine: Path
    against: Path | None = field(
        default=None,
        metadata=cli_option(
            "the engine to compare with, usually the unquantized one; it has the same tokenizer",
            metavar="ENGINE",
        ),
    )
    text: Path | None = field(
        default=None,
        metadata=cli_option(
            "text to predict [default: a text that comes with dflash-trt]", metavar="FILE"
        ),
    )
    text_tokens: int | None = field(
        default=None,
        metadata=cli_option("tokens of the text to read, at most [default: all]", low=2),
    )
    max_tokens: int = field(
        default=128, metadata=cli_option("new tokens for each of the --prompts, at most", low=2)
    )
    min_acceptance_length: float | None = field(
        default=None,
        metadata=cli_option(
            "fail if the acceptance length (tokens a step, bonus included) is smaller on the"
            " --prompts",
            aliases=("--min-tau",),
        ),
    )
    min_top1: float | None = field(
        default=None,
        metadata=cli_option(
            "fail if the share of positions (0 to 1) with the same most likely token as --against"
            " is smaller"
        ),
    )
    max_kl: float | None = field(
        default=None,
        metadata=cli_option("fail if the mean KL divergence from --against is larger, in nats"),
    )
    max_perplexity_increase: float | None = field(
        default=None,
        metadata=cli_option(
            "fail if the perplexity exceeds that of --against by more; 0.05: by 5 percent"
        ),
    )
    num_threads: int | None = field(default=None, metadata=NUM_THREADS)

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engines."""
        check_fields(self)
        for name in LIMITS:
            value = getattr(self, name)
            if value is not None:
                check_real(option_name(name), value, _is_limit, "a number of at least 0")
        if self.min_top1 is not None and self.min_top1 > 1:
            raise UsageError(
                f"--min-top1 is a share of all positions, 0 to 1, got {self.min_top1!r}"
            )
        differences = [name for name in _DIFFERENCES if getattr(self, name) is not None]
        if differences and self.against is None:
            raise UsageError(
                f"{option_name(differences[0])} is a limit on the difference from another engine:"
                " give --against ENGINE"
            )


def _is_limit(value: float) -> bool:
    return math.isfinite(value) and value >= 0
