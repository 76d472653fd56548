"""What a build takes of the machine that makes it: download, disk, memory, time.

The figures behind memory and time are measured: examples/benchmark/README.md. They are ranges,
since they were measured on two cores and on engines of up to 11 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.checkpoint.formats import Holds
from trtllm_dflash.checkpoint.from_config import has_files
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantized_tensors import is_scale
from trtllm_dflash.checkpoint.stored_layouts import span_of
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.log import Rows, human_bytes
from trtllm_dflash.options.build import DTYPE_BYTES

_BF16_BYTES = 2
# TensorRT-RTX's own memory at best and at worst: a part that every build takes, and copies of each
# byte of the engine. Pages of the mapped checkpoint come on top, and can be given back. At worst a
# dense model has gate and up apart in its files. Experts are a plugin's inputs, which TensorRT
# holds twice.
_GPU_DENSE = (300_000_000, 1.0), (400_000_000, 1.6)
_GPU_EXPERTS = (700_000_000, 1.4), (700_000_000, 2.0)
# ONNX Runtime's: the largest tensor as it is converted.
_CPU_BASE_BYTES, _CPU_COPIES = 200_000_000, 1
_START_SECONDS = 3.0
# Seconds a GB of the engine and seconds a layer, at best and at worst.
_GPU_SECONDS = {True: ((4.0, 0.2), (10.0, 0.4)), False: ((4.0, 0.4), (10.0, 1.0))}
# Seconds of a gated delta net that the compiler makes itself, on idle cores and on busy ones.
_DELTA_SECONDS = (7.0, 13.0)


@dataclass(frozen=True)
class HostCosts:
    """The costs of the build that a memory plan is for."""

    plan: MemoryPlan

    @property
    def _is_gpu(self) -> bool:
        return ARCHS[self.plan.models.resolved.gpu_arch].is_gpu

    def downloads(self) -> dict[str, int]:
        """Return about the bytes to fetch by repository; {} where all files are here."""
        return {
            str(model.directory): model.nbytes
            for model in self._stored_models()
            if not model.directory.is_dir()
        }

    def _stored_models(self) -> list[Checkpoint[Any]]:
        """Return the models as they are published, where the plan supposes another format."""
        models = self.plan.models
        stored = dict(models.checkpoints)
        if models.stored_target is not None:
            stored["target"] = models.stored_target
        return list(stored.values())

    @property
    def converted_bytes(self) -> int:
        """Return the bytes of weights that a build for a GPU converts into a file of its own.

        It lies beside the engine until that is complete.
        """
        if not self._is_gpu:
            return 0
        models = self.plan.models
        size = DTYPE_BYTES[models.resolved.dtype]
        converted = 0
        for model in models.checkpoints.values():
            holds = models.holds(model)
            stored = {"BF16"} if size == _BF16_BYTES else {"F32"}
            stacked = _stacked(model, holds)
            for name, info in model.tensors.items():
                is_held = model.stays_packed(name, holds) or model.has_scales_in_place(
                    name, holds
                )
                is_in_place = is_held or (info.dtype in stored and not is_scale(name))
                if not is_in_place or name in stacked:
                    converted += model.engine_bytes(name, size, holds)
        target = models.target
        for name in models.padded_tables:
            if target.tensors[name].dtype == "BF16":  # the others are counted by their type
                converted += target.engine_bytes(name, size, models.holds(target))
            converted += target.config.hidden_size * size
        return converted

    @property
    def disk_bytes(self) -> int:
        """Return the bytes that the output's disk must have free."""
        return self.plan.engine_bytes + self.converted_bytes

    def memory_range(self) -> tuple[int, int]:
        """Return about the bytes of memory that the build takes, mapped files aside."""
        if not self._is_gpu:
            largest = max(map(_largest_tensor, self.plan.models.checkpoints.values()))
            need = _CPU_BASE_BYTES + _CPU_COPIES * largest
            return need, need
        has_experts = self.plan.models.target.config.moe is not None
        return gpu_memory_range(self.plan.engine_bytes, has_experts=has_experts)

    def seconds_range(self) -> tuple[float, float] | None:
        """Return about the seconds of the build on two cores; None where none was measured."""
        resolved = self.plan.models.resolved
        if resolved.backend != "tensorrt_rtx":
            return None
        layers = sum(model.config.num_layers for model in self.plan.models.checkpoints.values())
        deltas = 0 if resolved.plugins else sum(self.plan.models.target.config.linear_layers)
        gigabytes = self.plan.engine_bytes / 1e9
        low, high = (
            _START_SECONDS + each_gb * gigabytes + each_layer * layers + each_delta * deltas
            for (each_gb, each_layer), each_delta in zip(
                _GPU_SECONDS[resolved.plugins], _DELTA_SECONDS, strict=True
            )
        )
        return low, high

    def rows(self) -> Rows:
        """Return the costs for people."""
        return [
            ("download", self._download_text()),
            ("disk", self._disk_text()),
            ("memory", self._memory_text()),
            ("time", self._time_text()),
        ]

    def _download_text(self) -> str:
        downloads = self.downloads()
        if downloads:
            parts = [f"{human_bytes(size)} {name}" for name, size in downloads.items()]
            return f"about {', '.join(parts)}"
        if all(map(has_files, self._stored_models())):
            return "nothing: the files are here"
        return "unknown: the weights of a directory with config.json alone are not here"

    def _disk_text(self) -> str:
        parts = [f"{human_bytes(self.plan.engine_bytes)} for the engine"]
        if self.converted_bytes:
            converted = human_bytes(self.converted_bytes)
            parts.append(f"{converted} for converted weights until it is built")
        downloads = sum(self.downloads().values())
        if downloads:
            parts.append(f"{human_bytes(downloads)} for the download")
        if len(parts) == 1:
            return f"about {parts[0]}"
        return f"about {human_bytes(self.disk_bytes + downloads)}: {', '.join(parts)}"

    def _memory_text(self) -> str:
        low, high = self.memory_range()
        if not self._is_gpu:
            return f"about {human_bytes(high)}"
        text = f"about {human_bytes(low)} to {human_bytes(high)}"
        if self.plan.models.resolved.backend != "tensorrt_rtx":
            text = f"unknown; of builds by TensorRT-RTX {text}"
        return f"{text}; mapped files come on top, and can be given back"

    def _time_text(self) -> str:
        found = self.seconds_range()
        if found is None:
            is_cpu = self.plan.models.resolved.gpu_arch == "cpu"
            return (
                "that of reading and writing the weights" if is_cpu else "unknown: not measured"
            )
        return f"about {_duration(found[0])} to {_duration(found[1])} on two cores"


def gpu_memory_range(engine_bytes: int, *, has_experts: bool) -> tuple[int, int]:
    """Return about the bytes of memory that TensorRT-RTX takes to build such an engine."""
    ends = _GPU_EXPERTS if has_experts else _GPU_DENSE
    low, high = (base + int(copies * engine_bytes) for base, copies in ends)
    return low, high


def hub_cache() -> Path:
    """Return the folder that models of the hub are fetched into."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _stacked(model: Checkpoint[Any], holds: Holds) -> set[str]:
    """Return the tensors of single experts, which an engine has in one tensor of all.

    Codes that a file has one behind the other in that order stay in place.
    """
    moe = getattr(model.config, "moe", None)
    if moe is None or moe.fused:
        return set()
    groups: dict[str, list[str]] = {}
    for name in model.tensors:
        layer, is_expert, rest = name.partition(".experts.")
        if is_expert:
            _, linear, last = rest.split(".")
            part = "down" if linear == "down_proj" else "gate_up"
            groups.setdefault(f"{layer}.{part}.{last}", []).append(name)
    found = set[str]()
    for names in groups.values():
        if not (model.stays_packed(names[0], holds) and _lie_together(model, names)):
            found |= set(names)
    return found


def _lie_together(model: Checkpoint[Any], names: Sequence[str]) -> bool:
    def place(name: str) -> tuple[int, str]:  # gate before up, as an engine has them
        expert, linear, _ = name.partition(".experts.")[2].split(".")
        return int(expert), linear

    infos = [model.tensors[name] for name in sorted(names, key=place)]
    return has_files(model) and span_of(infos) is not None


def _largest_tensor(model: Checkpoint[Any]) -> int:
    return max(prod(info.shape) for info in model.tensors.values()) * DTYPE_BYTES["float32"]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
