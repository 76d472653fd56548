"""The models of an estimate: those of the registry by name, of which no file is needed, and others
by their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trtllm_dflash.catalog.pairs import PAIRS, pair_of, unknown_name_message
from trtllm_dflash.catalog.published import drafter_json, target_json
from trtllm_dflash.checkpoint.formats import HF_QUANT_CONFIG, Quantization, read_quantization
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.quantized_tensors import Quantizable
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.experts import Experts
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.tensor_specs import expand_specs


@dataclass(frozen=True, eq=False)
class KnownTarget:
    """A target's shape, as its files say it; `source` says whose files, for people."""

    name: str
    config_json: Mapping[str, Any]
    source: str
    hf_quant_config: Mapping[str, Any] | None = None

    @cached_property
    def quantization(self) -> Quantization:
        """What its files say of its linears, experts and caches."""
        return _quantization(self.config_json, self.hf_quant_config, f"target {self.name}")

    @property
    def expert_number(self) -> str:
        """What the experts' weights are stored as, where the rest is not quantized."""
        return "mxfp4" if self.quantization.mxfp4 else "bf16"

    @cached_property
    def config(self) -> TargetConfig:
        return read_target_config(dict(self.config_json), None, f"target {self.name}")

    @cached_property
    def quantizable(self) -> Quantizable:
        """What of it may be quantized."""
        return Quantizable.from_rows(
            expand_specs(self.config.tensors.used, self.config), self.config
        )

    @property
    def experts(self) -> Experts | None:
        """Those of a layer, where it has any."""
        moe = self.config.moe
        return None if moe is None else Experts(moe.num_experts, moe.top_k)


@dataclass(frozen=True, eq=False)
class KnownDrafter:
    """A drafter's shape and the target that it is for. `tau`: published tokens a step, and where
    and on what.
    """

    name: str
    target: str
    config_json: Mapping[str, Any]
    source: str
    hf_quant_config: Mapping[str, Any] | None = None
    tau: float | None = None
    tau_source: str = ""

    @cached_property
    def quantization(self) -> Quantization:
        """What its files say of its linears."""
        return _quantization(self.config_json, self.hf_quant_config, f"drafter {self.name}")

    @cached_property
    def config(self) -> DrafterConfig:
        return DrafterConfig.from_hf(dict(self.config_json), f"drafter {self.name}")

    @cached_property
    def quantizable(self) -> Quantizable:
        """What of it may be quantized."""
        return Quantizable.from_rows(
            expand_specs(self.config.tensors.used, self.config), self.config
        )


_PAPER = "DFlash, arXiv 2602.06036"
# By drafter: published tokens a step, and where and on what.
_TAU: Mapping[str, tuple[float | None, str]] = {
    "z-lab/Qwen3-8B-DFlash-b16": (6.49, f"{_PAPER}, table 1, mean of 7 benchmarks, greedy"),
    "z-lab/Qwen3-4B-DFlash-b16": (6.54, f"{_PAPER}, table 1, mean of 7 benchmarks, greedy"),
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": (
        4.32,
        f"{_PAPER}, table 5, mean of GSM8K, HumanEval and Alpaca, greedy",
    ),
    "z-lab/Qwen3-Coder-30B-A3B-DFlash": (8.09, f"{_PAPER}, table 3, HumanEval, greedy"),
    "z-lab/gpt-oss-20b-DFlash": (
        4.53,
        f"{_PAPER}, table 11, mean of MATH-500, HumanEval and MT-Bench",
    ),
    "z-lab/gpt-oss-120b-DFlash": (
        4.5,
        f"{_PAPER}, table 11, mean of MATH-500, HumanEval and MT-Bench",
    ),
}
# A target with several drafters is described by its first row.
TARGETS: Mapping[str, KnownTarget] = {
    pair.target.repository: KnownTarget(
        pair.target.repository, target_json(pair.target), pair.source
    )
    for pair in reversed(PAIRS)
}
DRAFTERS: Mapping[str, KnownDrafter] = {
    pair.drafter.repository: KnownDrafter(
        pair.drafter.repository,
        pair.target.repository,
        drafter_json(pair.drafter),
        pair.source,
        None,
        *_TAU.get(pair.drafter.repository, (None, "")),
    )
    for pair in PAIRS
    if pair.drafter.has_sizes
}


def find_target(name: str) -> KnownTarget:
    """The target whose config.json is in the directory `name`, or the known one of that name.

    Raises:
        UsageError: with the nearest names.
    """
    if Path(name).is_dir():
        return KnownTarget(name, *_files(name))
    pair = pair_of(name)
    if pair is None:
        raise UsageError(f"{unknown_name_message(name, 'target')}. Give its directory.")
    return TARGETS[pair.target.repository]


def find_drafter(name: str | None, *, target: str = "") -> KnownDrafter:
    """The drafter of that name, likewise; without a name the own one of the known `target`."""
    if name is not None and Path(name).is_dir():
        return KnownDrafter(name, "", *_files(name))
    if name is not None:
        pair, missing = pair_of(name, "drafter"), unknown_name_message(name, "drafter")
    else:
        pair = None if Path(target).is_dir() else pair_of(target)
        missing = f"--drafter is missing, and the target {target} brings none"
    if pair is None:
        raise UsageError(f"{missing}. Give its directory.")
    if not pair.drafter.has_sizes:
        raise UsageError(
            f"drafter {pair.drafter.repository}: its sizes are not published; give its directory."
        )
    return DRAFTERS[pair.drafter.repository]


def _files(directory: str) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """Both files of a checkpoint's directory that say what it is, and their source for people
    between them.
    """
    config = read_json_in(Path(directory), "config.json")
    if config is None:
        raise UsageError(
            f"{directory}: there is no config.json in it. Give the directory of a checkpoint."
        )
    return config, directory, read_json_in(Path(directory), HF_QUANT_CONFIG)


def _quantization(
    config: Mapping[str, Any], quant_file: Mapping[str, Any] | None, where: str
) -> Quantization:
    return read_quantization(dict(config), None if quant_file is None else dict(quant_file), where)
