"""What `dflash-trt profile --estimate` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.catalog.gpus import GPUS, GpuSpec, gpus_of
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.options.fields import check_fields, cli_option

RUNTIME_NAMES = ("engine", "serving")
MAX_BATCH, MAX_CONTEXT, MAX_GPUS = 1 << 16, 1 << 22, 64


@dataclass(frozen=True)
class EstimateConfig:
    """What the user asks of an estimate.

    Raises:
        UsageError: for a value that no model could make right.
    """

    target: str = field(
        metadata=cli_option(
            "a name of `dflash-trt list`, or a directory with its config.json", metavar="NAME|DIR"
        )
    )
    arch: str = field(
        metadata=cli_option(
            "the GPU's architecture", choices=tuple(a for a in ARCHS if ARCHS[a].is_gpu)
        )
    )
    drafter: str | None = field(
        default=None,
        metadata=cli_option(
            "its drafter, likewise [default: a listed target's own]", metavar="NAME|DIR"
        ),
    )
    gpu: str | None = field(
        default=None,
        metadata=cli_option(
            f"which GPU of that architecture: {', '.join(gpu.name for gpu in GPUS)} [default: the"
            " first]",
            metavar="NAME",
        ),
    )
    gpus: int = field(
        default=1,
        metadata=cli_option("GPUs that share every layer (tensor parallel)", low=1, high=MAX_GPUS),
    )
    quant: str = field(
        default="none",
        metadata=cli_option(
            "format of the target's linears; none: as they are", choices=("none", *FORMATS)
        ),
    )
    drafter_quant: str = field(
        default="none",
        metadata=cli_option(
            "format of the drafter's linears; none: as they are", choices=("none", *FORMATS)
        ),
    )
    kv_cache_dtype: str = field(
        default="auto",
        metadata=cli_option(
            "the target's caches; auto: fp8 where its checkpoint has scales for it, else bf16",
            choices=("auto", "bf16", "fp8"),
            aliases=("--kv-cache",),
        ),
    )
    batch: str = field(
        default="1,2,4,8,16,32,64",
        metadata=cli_option("batch sizes, with commas between", metavar="N,N,…"),
    )
    context: int = field(
        default=1024,
        metadata=cli_option(
            "positions that every sequence has in its caches", low=1, high=MAX_CONTEXT
        ),
    )
    tau: str | None = field(
        default=None,
        metadata=cli_option(
            "tokens a step yields with the drafter's whole block, or a JSON file that says how many"
            " drafts were accepted [default: published, for a known drafter]",
            metavar="X|FILE",
        ),
    )
    runtime: str = field(
        default="engine",
        metadata=cli_option(
            "engine: this project's, one call a step; serving: a PyTorch server",
            choices=RUNTIME_NAMES,
        ),
    )
    eagle: str | None = field(
        default=None,
        metadata=cli_option(
            "also an EAGLE-3 drafter of one layer: its tree's tokens, depth and branches, and"
            " its tau",
            metavar="N,N,N,X",
        ),
    )
    json: Path | None = field(
        default=None, metadata=cli_option("also write the result here", metavar="FILE")
    )
    plot: Path | None = field(
        default=None, metadata=cli_option("also draw the curves here", metavar="FILE")
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the models."""
        check_fields(self)
        _ = (self.batches, self.device, self.eagle_tree)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes, growing."""
        try:
            sizes = sorted({int(size) for size in self.batch.split(",")})
        except ValueError:
            sizes = []
        if not sizes or not 1 <= sizes[0] <= sizes[-1] <= MAX_BATCH:
            raise UsageError(
                f"--batch {self.batch!r} is no list such as 1,8,32 of sizes from 1 to {MAX_BATCH}"
            )
        return tuple(sizes)

    @property
    def device(self) -> GpuSpec:
        """The GPU's figures."""
        known = {gpu.name.lower(): gpu for gpu in gpus_of(self.arch)}
        if not known:
            raise UsageError(
                f"--arch {self.arch}: no GPU of it is in the table; choose one of {_archs()}"
            )
        wanted = next(iter(known)) if self.gpu is None else self.gpu.lower()
        if wanted not in known:
            names = ", ".join(gpu.name for gpu in known.values())
            raise UsageError(
                f"--gpu {self.gpu!r} is no {self.arch} in the table, which has {names}"
            )
        return known[wanted]

    @property
    def eagle_tree(self) -> tuple[int, int, int, float] | None:
        """Tokens, depth and branches of EAGLE-3's tree, and its tau."""
        if self.eagle is None:
            return None
        parts = self.eagle.split(",")
        try:
            (tokens, depth, branches), tau = map(int, parts[:3]), float(parts[3])
        except (ValueError, IndexError):
            tokens, depth, branches, tau = 0, 0, 0, 0.0
        if (
            len(parts) != 4
            or not 1 <= depth <= tokens <= 1024
            or not 1 <= branches <= tokens
            or not 1 <= tau <= depth + 1
        ):
            raise UsageError(
                f"--eagle {self.eagle!r} is no TOKENS,DEPTH,BRANCHES,TAU such as 60,7,10,3.4: a"
                " tree of up to 1024 tokens, no deeper or wider than that, that yields 1 to depth"
                " + 1 tokens"
            )
        return tokens, depth, branches, tau


def _archs() -> str:
    return ", ".join(dict.fromkeys(gpu.arch for gpu in GPUS))
