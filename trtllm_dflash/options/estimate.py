"""What `dflash-trt profile --estimate` is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from trtllm_dflash.catalog.gpus import GPUS, GpuSpec, gpus_of
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.gpu_names import find_gpu, find_hardware
from trtllm_dflash.options.fields import DTYPE_NAMES, check_fields, cli_option

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
            "a name of `dflash-trt list`, or a directory with its config.json",
            metavar="NAME|DIR",
        )
    )
    drafter: str | None = field(
        default=None,
        metadata=cli_option(
            "its drafter, likewise [default: a listed target's own]", metavar="NAME|DIR"
        ),
    )
    arch: str | None = field(
        default=None,
        metadata=cli_option(
            "the GPU's architecture, or its name [default: that of --gpu]", metavar="ARCH|GPU"
        ),
    )
    gpu: str | None = field(
        default=None,
        metadata=cli_option(
            "which GPU of that architecture, by a part of its name:"
            f" {', '.join(gpu.name for gpu in GPUS)} [default: the first]",
            metavar="NAME",
        ),
    )
    gpus: int = field(
        default=1,
        metadata=cli_option(
            "GPUs that share every layer (tensor parallel)", low=1, high=MAX_GPUS
        ),
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
            other_values=DTYPE_NAMES,
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
    if config.arch is None and config.gpu is None:
        raise UsageError("give --arch ARCH|GPU, such as b200 or sm120, or --gpu NAME")
    if config.arch is None and config.gpu is not None:
        return find_gpu(config.gpu)
    meant = find_hardware(config.arch or "")
    if config.gpu is not None:
        return find_gpu(config.gpu, meant.arch.name)
    if meant.is_unlisted:
        return find_gpu(config.arch or "", option="--arch")  # says which GPUs there are
    found = meant.gpus or gpus_of(meant.arch.name)
    if not found:
        archs = ", ".join(dict.fromkeys(gpu.arch for gpu in GPUS))
        raise UsageError(
            f"--arch {config.arch}: no GPU of it is in the table; choose one of {archs}"
        )
    return found[0]


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


def read_acceptance(given: str) -> tuple[float | list[float], str]:
    """Return what --acceptance-length gives, and its source: a length, or shares by position.

    A file is the JSON of `dflash-trt profile`, or {"by_position": [...]}, or {"tau": number}. Of a
    profile, the DFlash result with most drafts counts.

    Raises:
        UsageError: for a file that has none of it, or for shares that no step can have.
    """
    try:
        length = float(given)
    except ValueError:
        return _read_acceptance_file(Path(given)), f"as measured in {given}"
    return length, f"{length} (--acceptance-length)"


def _read_acceptance_file(path: Path) -> float | list[float]:
    data = _acceptance_of(_read_json(path))
    shares, length = data.get("by_position"), data.get("tau")
    if isinstance(shares, list):
        _check_shares(path, shares)
        return [float(share) for share in shares]
    if _is_number(length):
        return float(length)
    raise UsageError(
        f"{path}: it is no profile with a DFlash result that has drafts, and has neither"
        " by_position nor tau"
    )


def _check_shares(path: Path, shares: list[Any]) -> None:
    problem = ""
    if not shares:
        problem = "is empty: nothing was drafted, so nothing was measured"
    elif not all(_is_number(share) for share in shares):
        problem = "must be a list of numbers"
    elif not all(0 <= later <= earlier for earlier, later in pairwise([1.0, *shares])):
        problem = "must be shares from 1 to 0 that never grow"
    if problem:
        raise UsageError(f"{path}: by_position {problem}")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"--acceptance-length {path} is neither a number nor a file")
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"--acceptance-length {path}: cannot be read ({error.strerror}). Give another file or"
            " a number."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--acceptance-length {path}: not JSON ({error}). Give a file of profile --json, or"
            " a number."
        ) from error
    return data if isinstance(data, dict) else {}


def _acceptance_of(data: dict[str, Any]) -> dict[str, Any]:
    """Return the acceptance in a profile; anything else as it is."""
    results = data.get("results")
    best: dict[str, Any] = {}
    for row in results if isinstance(results, list) else []:
        if not isinstance(row, dict):
            continue
        # Profiles of schema 1 say "maker".
        if row.get("implementation", row.get("maker")) != "dflash":
            continue
        # DFlash's engine without drafts measures no acceptance.
        if _is_number(row.get("draft_len")) and row["draft_len"] > best.get("draft_len", 0):
            best = row
    if not best:
        return data
    found = best.get("acceptance")
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
