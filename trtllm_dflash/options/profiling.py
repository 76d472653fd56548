"""What `dflash-trt profile` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import flag, option
from trtllm_dflash.options.sampling import SamplingParams

PEERS = ("reference", "hf")
AGAINST = ("plain", *PEERS)


@dataclass(frozen=True)
class ProfileConfig:
    """What the user asks of a profile.

    Raises:
        UsageError: for a value that no engine could make right.
    """

    engine: Path
    batch: str | None = field(
        default=None,
        metadata=option("batch sizes [default: 1, 2, 4, … up to the engine's]", metavar="N,…"),
    )
    draft_lens: str | None = field(
        default=None,
        metadata=option(
            "drafts a step to try; 0: the same engine without [default: 0, the engine's own, the"
            " whole block]",
            metavar="N,…",
        ),
    )
    against: str = field(
        default="plain",
        metadata=option(
            "what to measure beside it: plain, reference (the package dflash), hf (transformers'"
            " generate, plain and with prompt lookup)",
            metavar="NAME,…",
        ),
    )
    plain: Path | None = field(
        default=None,
        metadata=option(
            "a plain engine of the same target [default: one is built, and removed]",
            metavar="ENGINE",
        ),
    )
    target: Path | None = field(
        default=None,
        metadata=option(
            "the target's checkpoint [default: where the engine was built from]", metavar="DIR"
        ),
    )
    drafter: Path | None = field(
        default=None,
        metadata=option(
            "the drafter's checkpoint, for the reference [default: likewise]", metavar="DIR"
        ),
    )
    per_kind: int | None = field(
        default=None, metadata=option("ask no more prompts of each kind [default: all]")
    )
    input_len: int | None = field(
        default=None,
        metadata=option(
            "make every prompt this long: fill it up with others before it, or cut its"
            " beginning off"
        ),
    )
    output_len: int = field(default=64, metadata=option("new tokens for each prompt, at most"))
    temperature: float = field(
        default=SamplingParams.temperature, metadata=option("0: always the most likely token")
    )
    top_p: float = field(
        default=SamplingParams.top_p, metadata=option("sample from this mass; 1: off")
    )
    top_k: int = field(
        default=SamplingParams.top_k, metadata=option("sample from this many tokens; 0: off")
    )
    seed: int = field(default=0, metadata=option("of the sampling, the same for every prompt"))
    ignore_eos: bool = field(
        default=False,
        metadata=option(
            "do not stop at the model's stop tokens: all answers have --output-len tokens"
        ),
    )
    num_threads: int | None = field(
        default=None, metadata=option("of the CPU [default: DFLASH_NUM_THREADS, else all cores]")
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engines."""
        for name, least in (("per_kind", 1), ("input_len", 1), ("output_len", 2)):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < least
            ):
                raise UsageError(
                    f"{flag(name)} must be a whole number of at least {least}, got {value!r}"
                )
        for name, numbers, least in (("batch", self.batches, 1), ("draft_lens", self.lengths, 0)):
            if numbers is not None and min(numbers) < least:
                raise UsageError(
                    f"{flag(name)} must be numbers of at least {least}, got {getattr(self, name)}"
                )
        unknown = [name for name in self.others if name not in AGAINST]
        if unknown:
            raise UsageError(f"--against {unknown[0]}: expected names among {', '.join(AGAINST)}")
        SamplingParams(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed
        )
        if self.temperature > 0 and self.peers:
            raise UsageError(
                f"--against {self.peers[0]} is for greedy decoding: other samplers draw other"
                " tokens, so that the sides would answer differently. Leave --temperature at 0."
            )

    @property
    def batches(self) -> tuple[int, ...] | None:
        """The batch sizes, growing; None: the default."""
        return _numbers("batch", self.batch)

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The numbers of drafts, growing; None: the default."""
        return _numbers("draft_lens", self.draft_lens)

    @property
    def others(self) -> tuple[str, ...]:
        """The names of --against."""
        return tuple(name.strip() for name in self.against.split(","))

    @property
    def peers(self) -> tuple[str, ...]:
        """Those among them that are not engines of ours, in the order of the table."""
        return tuple(name for name in PEERS if name in self.others)


def _numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(
            f"{flag(name)} must be whole numbers with commas between them, got {text!r}"
        )
    return tuple(sorted({int(part) for part in parts}))
