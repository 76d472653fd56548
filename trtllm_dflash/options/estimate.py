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
MAX_BATCH = 1 << 16
MAX_CONTEXT = 1 << 22
MAX_GPUS = 64
MAX_TREE = 1024


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
            "the target's caches; auto: fp8 where its checkpoint has scales for it, else bfloat16",
            choices=("auto", "bfloat16", "fp8"),
            aliases=("--kv-cache",),
            old_values={"bf16": "bfloat16"},
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
    acceptance_length: str | None = field(
        default=None,
        metadata=cli_option(
            "tokens a step yields with the drafter's whole block (τ), or a JSON file that says how"
            " many drafts were accepted [default: published, for a known drafter]",
            metavar="X|FILE",
            aliases=("--tau",),
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
            " its τ",
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
        for parse in (_parse_batches, _find_gpu, _parse_tree):
            parse(self)

    @property
    def batches(self) -> tuple[int, ...]:
        """Return the batch sizes in growing order."""
        return _parse_batches(self)

    @property
    def device(self) -> GpuSpec:
        """Return the datasheet's figures of the GPU."""
        return _find_gpu(self)

    @property
    def eagle_tree(self) -> tuple[int, int, int, float] | None:
        """Return tokens, depth and branches of EAGLE-3's tree, and its acceptance length."""
        return _parse_tree(self)


def _parse_batches(config: EstimateConfig) -> tuple[int, ...]:
    try:
        sizes = sorted({int(size) for size in config.batch.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not 1 <= sizes[0] <= sizes[-1] <= MAX_BATCH:
        raise UsageError(
            f"--batch {config.batch!r} is no list such as 1,8,32 of sizes from 1 to {MAX_BATCH}"
        )
    return tuple(sizes)


def _find_gpu(config: EstimateConfig) -> GpuSpec:
    found = {gpu.name.lower(): gpu for gpu in gpus_of(config.arch)}
    if not found:
        archs = ", ".join(dict.fromkeys(gpu.arch for gpu in GPUS))
        raise UsageError(
            f"--arch {config.arch}: no GPU of it is in the table; choose one of {archs}"
        )
    wanted = next(iter(found)) if config.gpu is None else config.gpu.lower()
    if wanted not in found:
        names = ", ".join(gpu.name for gpu in found.values())
        raise UsageError(
            f"--gpu {config.gpu!r} is no {config.arch} in the table, which has {names}"
        )
    return found[wanted]


def _parse_tree(config: EstimateConfig) -> tuple[int, int, int, float] | None:
    if config.eagle is None:
        return None
    parts = config.eagle.split(",")
    try:
        tokens, depth, branches = (int(part) for part in parts[:3])
        length = float(parts[3])
    except (ValueError, IndexError):
        tokens = 0
        depth = 0
        branches = 0
        length = 0.0
    is_tree = 1 <= depth <= tokens <= MAX_TREE and 1 <= branches <= tokens
    if len(parts) != 4 or not is_tree or not 1 <= length <= depth + 1:
        raise UsageError(
            f"--eagle {config.eagle!r} is no TOKENS,DEPTH,BRANCHES,TAU such as 60,7,10,3.4: a tree"
            f" of up to {MAX_TREE} tokens, no deeper or wider than that, that yields 1 to depth + 1"
            " tokens"
        )
    return tokens, depth, branches, length
