"""Published models that an estimate needs no files of: those of the registry whose acceptance is published too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from trtllm_dflash.build.known import drafter_json, target_json
from trtllm_dflash.checkpoint.source import read_json_in
from trtllm_dflash.config.drafter import DrafterConfig
from trtllm_dflash.config.quantization import read_quantization
from trtllm_dflash.config.registry import PAIRS
from trtllm_dflash.config.target import TargetConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.estimate.experts import Experts


@dataclass(frozen=True, eq=False)
class KnownTarget:
    """A target's shape."""

    config_json: Mapping[str, Any]
    source: str

    @property
    def expert_number(self) -> str:
        """What the experts' weights are stored as."""
        return "mxfp4" if read_quantization(dict(self.config_json), None, self.source).mxfp4 else "bf16"

    @cached_property
    def config(self) -> TargetConfig:
        return TargetConfig.from_hf(dict(self.config_json), None, self.source)

    @property
    def experts(self) -> Experts | None:
        """Those of a layer, where it has any."""
        moe = self.config.moe
        return None if moe is None else Experts(moe.num_experts, moe.top_k)


@dataclass(frozen=True, eq=False)
class KnownDrafter:
    """A drafter's shape and the target that it is for. `tau`: published tokens a step, and where and on what."""

    target: str
    config_json: Mapping[str, Any]
    source: str
    tau: float | None = None
    tau_source: str = ""

    @cached_property
    def config(self) -> DrafterConfig:
        return DrafterConfig.from_hf(dict(self.config_json), self.source)


Known = TypeVar("Known", KnownTarget, KnownDrafter)

_PAPER = "DFlash, arXiv 2602.06036"
# By drafter: published tokens a step, and where and on what.
_TAU: Mapping[str, tuple[float, str]] = {
    "z-lab/Qwen3-8B-DFlash-b16": (6.49, f"{_PAPER}, table 1, mean of 7 benchmarks, greedy"),
    "z-lab/Qwen3-4B-DFlash-b16": (6.54, f"{_PAPER}, table 1, mean of 7 benchmarks, greedy"),
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": (
        4.32,
        f"{_PAPER}, table 5, mean of GSM8K, HumanEval and Alpaca, greedy",
    ),
    "z-lab/Qwen3-Coder-30B-A3B-DFlash": (8.09, f"{_PAPER}, table 3, HumanEval, greedy"),
    "z-lab/gpt-oss-20b-DFlash": (4.53, f"{_PAPER}, table 11, mean of MATH-500, HumanEval and MT-Bench"),
    "z-lab/gpt-oss-120b-DFlash": (4.5, f"{_PAPER}, table 11, mean of MATH-500, HumanEval and MT-Bench"),
}
_PAIRS = [pair for pair in PAIRS if pair.drafter.repository in _TAU]
TARGETS: Mapping[str, KnownTarget] = {
    pair.target.repository: KnownTarget(target_json(pair.target), pair.source) for pair in _PAIRS
}
DRAFTERS: Mapping[str, KnownDrafter] = {
    pair.drafter.repository: KnownDrafter(
        pair.target.repository, drafter_json(pair.drafter), pair.source, *_TAU[pair.drafter.repository]
    )
    for pair in _PAIRS
}


def find_target(name: str) -> KnownTarget:
    """The known target called `name`, with or without its owner; or the one whose config.json is in that directory.

    Raises:
        UsageError: listing those that are known.
    """
    found = _find(TARGETS, name)
    if found is None:
        found = KnownTarget(_config_json(name, "target", TARGETS), name)
    return found


def find_drafter(name: str) -> KnownDrafter:
    """The drafter called `name`; see `find_target`."""
    found = _find(DRAFTERS, name)
    if found is None:
        found = KnownDrafter("", _config_json(name, "drafter", DRAFTERS), name)
    return found


def _find(table: Mapping[str, Known], name: str) -> Known | None:
    return next((row for key, row in table.items() if name.lower() in (key.lower(), key.split("/")[-1].lower())), None)


def _config_json(name: str, kind: str, known: Mapping[str, object]) -> dict[str, Any]:
    config = read_json_in(Path(name), "config.json") if Path(name).is_dir() else None
    if config is None:
        raise UsageError(
            f"--{kind} {name!r} is neither a directory with a config.json nor a known shape: {', '.join(known)}"
        )
    return config
