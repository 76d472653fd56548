"""What `dflash-trt eval` is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import flag, option

_DIFFERENCES = ("min_top1", "max_kl", "max_perplexity_increase")
LIMITS = ("min_tau", *_DIFFERENCES)


@dataclass(frozen=True)
class EvaluateConfig:
    """What the user asks of an evaluation.

    Raises:
        UsageError: for a value that no engine could make right.
    """

    engine: Path
    against: Path | None = field(
        default=None,
        metadata=option(
            "the engine to compare with, of the same tokenizer: mostly the one that is not"
            " quantized",
            metavar="ENGINE",
        ),
    )
    text: Path | None = field(
        default=None,
        metadata=option(
            "text to predict [default: some pages that come with dflash-trt]", metavar="FILE"
        ),
    )
    text_tokens: int | None = field(
        default=None, metadata=option("read no more tokens of the text [default: all]")
    )
    max_tokens: int = field(default=128, metadata=option("new tokens for each of the --prompts"))
    min_tau: float | None = field(
        default=None,
        metadata=option(
            "fail where τ, the tokens of a generation step, is smaller on the --prompts"
        ),
    )
    min_top1: float | None = field(
        default=None,
        metadata=option(
            "fail where fewer of all positions (0 to 1) have the same most likely token as"
            " --against"
        ),
    )
    max_kl: float | None = field(
        default=None,
        metadata=option("fail where the mean KL divergence from --against is larger, in nats"),
    )
    max_perplexity_increase: float | None = field(
        default=None,
        metadata=option(
            "fail where the perplexity is larger than that of --against by more; 0.05: by 5 percent"
        ),
    )
    num_threads: int | None = field(
        default=None, metadata=option("of the CPU [default: DFLASH_NUM_THREADS, else all cores]")
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engines."""
        for name, least in (("text_tokens", 2), ("max_tokens", 2)):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < least
            ):
                raise UsageError(
                    f"{flag(name)} must be a whole number of at least {least}, got {value!r}"
                )
        for name in LIMITS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{flag(name)} must be a number of at least 0, got {value!r}")
        if self.min_top1 is not None and self.min_top1 > 1:
            raise UsageError(
                f"--min-top1 is a share of all positions, 0 to 1, got {self.min_top1!r}"
            )
        differences = [name for name in _DIFFERENCES if getattr(self, name) is not None]
        if differences and self.against is None:
            raise UsageError(
                f"{flag(differences[0])} is a limit on the difference from another engine: give"
                " --against ENGINE"
            )
