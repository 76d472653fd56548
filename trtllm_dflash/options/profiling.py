"""The options of `dflash-trt profile`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_choice, check_integer, parse_integers
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.draft_sources import ALLOWED, DRAFTS_HELP
from trtllm_dflash.options.fields import check_fields, cli_option
from trtllm_dflash.options.prompt_options import ResultFile
from trtllm_dflash.options.row_sampling import RowSampling
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.options.shared import NUM_THREADS

EXTERNAL_SYSTEMS = ("reference", "hf")
AGAINST = ("plain", *EXTERNAL_SYSTEMS)


@dataclass(frozen=True)
class ProfileConfig(RowSampling):
    """What to measure, and how.

    Raises:
        UsageError: for a value that no engine could make right.
    """

    engine: Path
    batch: str | None = field(
        default=None,
        metadata=cli_option(
            "batch sizes [default: 1, 2, 4, … up to the engine's]", metavar="N,…"
        ),
    )
    draft_lens: str | None = field(
        default=None,
        metadata=cli_option(
            "numbers of drafts a step to try; 0: no drafts; auto: as many as pay [default: 0, the"
            " engine's own, the whole block]",
            metavar="N|auto,…",
        ),
    )
    drafts: str = field(
        default="both",
        metadata=cli_option(
            f"{DRAFTS_HELP}: {', '.join(ALLOWED)}; each is a system of its own, and the advice is"
            " for the last",
            metavar="NAME,…",
        ),
    )
    against: str = field(
        default="plain",
        metadata=cli_option(
            "systems to measure beside it: plain, reference (the package dflash), hf"
            " (transformers' generate, plain and with prompt lookup)",
            metavar="NAME,…",
        ),
    )
    plain: Path | None = field(
        default=None,
        metadata=cli_option(
            "a plain engine of the same target [default: one is built, and removed]",
            metavar="ENGINE",
        ),
    )
    target: Path | None = field(
        default=None,
        metadata=cli_option(
            "the target's checkpoint [default: where the engine was built from]", metavar="DIR"
        ),
    )
    drafter: Path | None = field(
        default=None,
        metadata=cli_option(
            "the drafter's checkpoint, for the reference [default: likewise]", metavar="DIR"
        ),
    )
    per_category: int | None = field(
        default=None,
        metadata=cli_option(
            "prompts of each category, at most [default: all]", low=1, aliases=("--per-kind",)
        ),
    )
    input_len: int | None = field(
        default=None,
        metadata=cli_option(
            "tokens of every prompt: shorter ones get other prompts in front, longer ones lose"
            " their beginning",
            low=1,
        ),
    )
    max_tokens: int = field(
        default=64,
        metadata=cli_option(
            "new tokens for each prompt, at most", low=2, aliases=("--output-len",)
        ),
    )
    seed: int = field(
        default=0, metadata=cli_option("of the sampling; each prompt's own is derived from it")
    )
    ignore_eos: bool = field(
        default=False,
        metadata=cli_option(
            "do not stop at the model's stop tokens: all answers have --max-tokens tokens",
            aliases=("--no-ignore-eos",),
        ),
    )
    num_threads: int | None = field(default=None, metadata=NUM_THREADS)

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engines."""
        check_fields(self)
        for batch in self.batches or ():
            check_integer("--batch", batch, low=1)
        _ = self.draft_len_values
        if self.draft_lens is not None and not self.draft_len_values:
            raise UsageError(
                f"--draft-lens {self.draft_lens}: give a number as well, such as 3,{AUTO}. The"
                " advice compares numbers of drafts."
            )
        for name in self.draft_sources:
            check_choice("--drafts", name, ALLOWED)
        unknown = [name for name in self.baselines if name not in AGAINST]
        if unknown:
            raise UsageError(
                f"--against {unknown[0]}: expected names among {', '.join(AGAINST)}"
            )
        super().__post_init__()
        SamplingParams(seed=self.seed)
        if self.temperature > 0 and self.external_baselines:
            raise UsageError(
                f"--against {self.external_baselines[0]} is for greedy decoding: other samplers"
                " draw other tokens, so that the systems would answer differently. Leave"
                " --temperature at 0."
            )

    @property
    def batches(self) -> tuple[int, ...] | None:
        """Return the batch sizes, growing; None: the default."""
        return _sorted_integers("--batch", self.batch)

    @property
    def draft_len_values(self) -> tuple[int, ...] | None:
        """Return the numbers of drafts, growing; None: the default."""
        if self.draft_lens is None:
            return None
        fixed = [one for one in self.draft_lens.split(",") if one.strip() != AUTO]
        return _sorted_integers("--draft-lens", ",".join(fixed)) if fixed else ()

    @property
    def tries_auto(self) -> bool | None:
        """Tell whether as many drafts as pay are tried; None: the default."""
        if self.draft_lens is None:
            return None
        return any(one.strip() == AUTO for one in self.draft_lens.split(","))

    @property
    def draft_sources(self) -> tuple[str, ...]:
        """Return the names of --drafts, each once."""
        names = dict.fromkeys(name.strip() for name in self.drafts.split(","))
        return tuple(names)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the names of --against."""
        return tuple(name.strip() for name in self.against.split(","))

    @property
    def external_baselines(self) -> tuple[str, ...]:
        """Return those among them that are not engines of this package."""
        return tuple(name for name in EXTERNAL_SYSTEMS if name in self.baselines)


def _sorted_integers(name: str, text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(sorted(set(parse_integers(name, text))))


@dataclass(frozen=True)
class ProfileFiles(ResultFile):
    """The files of a profile; what can fail is written last."""

    schedule: Path | None = field(
        default=None,
        metadata=cli_option(
            "write the recommended drafts by batch size there, for `run --draft-len-schedule`",
            metavar="FILE",
        ),
    )
    html: Path | None = field(
        default=None,
        metadata=cli_option("write a report there: one page with plots", metavar="FILE"),
    )
