"""One published pair on several GPUs: planned, estimated, and beside what others have measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docs.estimate.prediction import ASSUMPTIONS
from trtllm_dflash.builder.dry_run import preview_build
from trtllm_dflash.catalog.gpus import GPUS, GpuSpec
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.estimate.report import StepEstimate
from trtllm_dflash.estimate.run import read_inputs
from trtllm_dflash.log import human_bytes
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.estimate import EstimateConfig

PLAN: dict[str, Any] = ASSUMPTIONS["plan"]
PLAN_NAMES = (
    *("GPU", "engine", "a sequence", "sequences at most"),
    *(f"{count} at once: plain, DFlash 2" for count in PLAN["sequences"]),
)
PUBLISHED_NAMES = (
    *("GPU", "software", "sequences", "plain", "DFlash 2"),
    *("estimated plain", "estimated DFlash 2", "note"),
)


def plan_rows() -> list[tuple[str, ...]]:
    """Return a row for each GPU: sizes of a dry run, and estimated tokens a second."""
    return [_plan_row(_gpu(name)) for name in PLAN["gpus"]]


def _plan_row(gpu: GpuSpec) -> tuple[str, ...]:
    pair = pair_of(PLAN["target"])
    assert pair is not None
    config = BuildConfig(
        target=pair.target.repository,
        drafter=pair.drafter.repository,
        arch=gpu.arch,
        output_dir=Path("engine"),
        max_seq_len=PLAN["length"],
    )
    run = preview_build(config, quant=PLAN["quant"])
    (fit,) = (fit for fit in run.fits() if fit.gpu == gpu)
    speeds = []
    for sequences in PLAN["sequences"]:
        plain, drafted = _steps(gpu, sequences)
        speeds.append(f"{_all_tokens(plain)}, {_all_tokens(drafted)} ({drafted.speedup:.1f}x)")
    return (
        gpu.name,
        human_bytes(run.plan.engine_bytes),
        human_bytes(run.plan.slot_bytes),
        str(fit.slots.get(PLAN["length"], 0)),
        *speeds,
    )


def published_rows() -> list[tuple[str, ...]]:
    """Return a row for each published figure, with what the estimate says of the same."""
    rows = []
    for each in PLAN["published"]:
        plain, drafted = _steps(
            _gpu(each["gpu"]),
            each["sequences"],
            runtime=each["runtime"],
            kv_cache_dtype=each.get("kv_cache_dtype", "auto"),
        )
        rows.append(
            (
                each["gpu"],
                each["software"],
                str(each["sequences"]),
                f"{each['plain']:g}" if "plain" in each else "",
                f"{each['drafted']:g}",
                _all_tokens(plain),
                _all_tokens(drafted),
                each.get("note", ""),
            )
        )
    return rows


def _steps(gpu: GpuSpec, sequences: int, **options: str) -> tuple[StepEstimate, StepEstimate]:
    """Return a step without drafts, and one with all of the drafter's."""
    config = EstimateConfig(
        PLAN["target"],
        arch=gpu.arch,
        gpu=gpu.name,
        quant=PLAN["quant"],
        batch=str(sequences),
        context=PLAN["context"],
        acceptance_length=str(PLAN["acceptance_length"]),
        **options,
    )
    inputs = read_inputs(config)
    block_size = inputs.pair.drafter.config.block_size
    (plain,) = inputs.plain_steps()
    (drafted,) = inputs.dflash_steps(block_size, block_size - 1)
    return plain, drafted


def _all_tokens(step: StepEstimate) -> str:
    """Return the tokens a second of all sequences."""
    return f"{step.tokens_per_second_per_gpu:.0f}"


def _gpu(name: str) -> GpuSpec:
    return next(gpu for gpu in GPUS if gpu.name == name)
