"""Quantizing: check early, log the plan, do it, check the output, report the cost."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtllm_dflash.atomic.output_directory import atomic_directory, check_space
from trtllm_dflash.checkpoint.finite import check_finite, check_finite_with_progress
from trtllm_dflash.checkpoint.formats import HF_QUANT_CONFIG, WeightFormat
from trtllm_dflash.checkpoint.links import file_in, honouring_allow_links
from trtllm_dflash.checkpoint.loader import Checkpoint, load_drafter, load_target
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.tokenizer_files import copy_tokenizer_files
from trtllm_dflash.environment import torch_caches_in
from trtllm_dflash.hardware.memory import peak_memory
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.log import Progress, finished, ignore_progress, started
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.coverage import ExpertCoverage
from trtllm_dflash.quantize.plan import QuantizationPlan, plan_quantization
from trtllm_dflash.quantize.provenance import recognize_checkpoint, write_record
from trtllm_dflash.quantize.quantized_weights import StoredNames, quantized_weights
from trtllm_dflash.quantize.report import QuantizeReport

DRAFTER_FOLDER = "drafter"
_LOG = logging.getLogger(__name__)
_PACKAGES = ("torch", "nvidia-modelopt", "transformers")


@honouring_allow_links
def quantize(
    config: QuantizeConfig,
    *,
    overwrite: bool = False,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> QuantizeReport:
    """Write the quantized checkpoint `config.output_dir`; after a failure that is unchanged.

    `overwrite` allows to replace a checkpoint that this function wrote. `argv`, which is recorded,
    defaults to the process's.

    Raises:
        DFlashError: if it cannot be quantized.
    """
    plan = plan_quantization(config, overwrite=overwrite)
    begun = time.monotonic()
    started(_LOG, "quantizing", plan.rows())
    check_space(plan.config.output_dir, plan.needed_space, what="the checkpoint")
    replaces = recognize_checkpoint if overwrite else None
    with (
        atomic_directory(plan.config.output_dir, replaces=replaces) as staging,
        torch_caches_in(staging.with_name("torch")),
    ):
        figures, coverage = _quantize_into(staging, plan, progress)
        facts = _facts(plan, figures, coverage, sys.argv if argv is None else argv)
        write_record(staging, facts)
        size = sum(path.stat().st_size for path in staging.rglob("*"))
    report = QuantizeReport(
        plan.config.output_dir,
        time.monotonic() - begun,
        size,
        peak_memory=peak_memory(),
        coverage=coverage,
        **figures,
    )
    warning = coverage.warning() if coverage else None
    if warning:
        _LOG.warning("%s: %s", plan.config.output_dir, warning)
    finished(_LOG, "quantized", report.rows())
    return report


def _quantize_into(
    staging: Path, plan: QuantizationPlan, progress: Progress
) -> tuple[dict[str, int], ExpertCoverage | None]:
    """Quantize and write everything but the record; return this pass's figures of the report."""
    import torch

    from trtllm_dflash.quantize.modelopt import restored_functions
    from trtllm_dflash.quantize.quantize_drafter import SEQUENCES, quantize_drafter
    from trtllm_dflash.quantize.quantize_target import quantize_target
    from trtllm_dflash.quantize.writer import SpillFolder

    device = _device(plan.config, torch)
    fmt = plan.config.weight_format
    for role, checkpoint in plan.checkpoints.items():
        check_finite_with_progress(role, checkpoint, progress)
    taps = plan.drafter.config.target_layer_ids if plan.drafter else ()
    spill = SpillFolder(staging / "scratch")
    with torch.no_grad(), restored_functions():
        target = quantize_target(
            plan.target,
            plan.config,
            plan.sequences,
            spill=spill,
            device=device,
            progress=progress,
            taps=taps,
            tapped=SEQUENCES,
        )
        _write(staging, plan.target, target, fmt, progress)
        if plan.drafter is not None:
            drafter = quantize_drafter(
                plan.drafter,
                plan.target,
                plan.config,
                plan.sequences,
                target.features,
                spill=spill,
                device=device,
                progress=progress,
            )
            (staging / DRAFTER_FOLDER).mkdir()
            _write(staging / DRAFTER_FOLDER, plan.drafter, drafter, fmt, progress)
    shutil.rmtree(staging / "scratch")
    # This package must load what was written, down to every scale.
    check_finite(load_target(staging))
    if plan.drafter is not None:
        check_finite(load_drafter(staging / DRAFTER_FOLDER))
    replaced = quantized_weights(plan.target, fmt)
    figures = {
        "linear_bytes": sum(tensor.nbytes for tensor in target.tensors.values()),
        "original_bytes": sum(plan.target.tensors[name].nbytes for name in replaced),
        "agreed": target.agreed,
        "compared": target.compared,
    }
    return figures, target.coverage


def _device(config: QuantizeConfig, torch: Any) -> str:
    """Return the device to compute on."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write(
    directory: Path,
    original: Checkpoint[Any],
    quantized: Any,
    fmt: WeightFormat | None,
    progress: Progress,
) -> None:
    """Write a Hugging Face checkpoint in ModelOpt's layout, or in gpt-oss's.

    config.json is the original's, with one key more.
    """
    from trtllm_dflash.quantize.writer import write_tensors

    names = StoredNames.of(original)
    replaced = quantized_weights(original, fmt)
    write_tensors(directory, names.tensors(quantized.tensors, replaced), progress)
    config = read_json_in(original.directory, "config.json") or {}
    config.pop("compression_config", None)  # left over, else the original could not be read
    _write_json(
        directory / "config.json",
        config | {"quantization_config": names.description(quantized.quantization_config)},
    )
    if quantized.hf_quant_config:
        _write_json(directory / HF_QUANT_CONFIG, names.description(quantized.hf_quant_config))
    generation = file_in(original.directory, "generation_config.json")
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    copy_tokenizer_files(original.directory, directory)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _facts(
    plan: QuantizationPlan,
    figures: Mapping[str, int],
    coverage: ExpertCoverage | None,
    argv: Sequence[str],
) -> dict[str, Any]:
    """Return the facts of the record."""
    experts = {"experts": coverage.facts()} if coverage else {}
    return {
        "argv": list(argv),
        "versions": versions_of(_PACKAGES),
        "target": str(plan.target.directory),
        "drafter": str(plan.drafter.directory) if plan.drafter else None,
        "format": plan.config.quant,
        "kv_cache_dtype": plan.config.kv_cache_dtype,
        "calibration": plan.calibration_facts(),
        **experts,
        **figures,
    }
