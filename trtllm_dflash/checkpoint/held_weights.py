"""What of a checkpoint's quantized weights an engine holds as they are stored, and its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.formats import FP8_UNIT, Holds, WeightFormat
from trtllm_dflash.checkpoint.mxfp4 import BLOCKS, SCALES
from trtllm_dflash.checkpoint.quantized_tensors import is_scale
from trtllm_dflash.checkpoint.safetensors import TensorInfo

_FP8_SCALE_BYTES = 4  # float32 in an engine, however they are stored


class HeldWeights:
    """Tensors by name, and the formats of quantized linears by module."""

    tensors: Mapping[str, TensorInfo]
    formats: Mapping[str, WeightFormat]

    def weight_bytes(self, bytes_per_weight: int, holds: Holds) -> int:
        """Return the bytes of all weights in an engine.

        Quantized ones stay as they are if it `holds` them, and are converted otherwise.
        """
        return sum(self.bytes_by_format(bytes_per_weight, holds).values())

    def format_of(self, name: str) -> WeightFormat:
        """Return the format whose packed weight or scales a tensor is."""
        return (
            self.formats.get(name.rpartition(".")[0])
            or self.formats[name.removesuffix(BLOCKS).removesuffix(SCALES)]
        )

    def stays_packed(self, name: str, holds: Holds) -> bool:
        """Return whether an engine has this tensor as it is stored."""
        if self.tensors[name].dtype in WEIGHT_DTYPES:
            return False
        return self._is_held(name, holds)

    def _is_held(self, name: str, holds: Holds) -> bool:
        """Return whether an engine has the codes of the weight that a tensor belongs to."""
        fmt = self.format_of(name)
        is_expert = ".experts." in name
        if not fmt.stays_packed(holds, experts=is_expert):
            return False
        if fmt.block_size is None or is_expert:
            return True
        weight = self.tensors[f"{name.rpartition('.')[0]}.weight"]
        return weight.shape[1] % FP8_UNIT == 0

    @property
    def expert_formats(self) -> tuple[WeightFormat, ...]:
        """Return the formats of experts, each once."""
        found = (fmt for name, fmt in self.formats.items() if ".experts." in name)
        return tuple(dict.fromkeys(found))

    def _fp8_scales(self, name: str, holds: Holds) -> int:
        """Return how many numbers an engine has of an FP8 weight's scales, if it holds that weight.

        Experts have a scale for each row where the checkpoint has one for all.
        """
        module, _, last = name.rpartition(".")
        fmt = self.formats.get(module)
        if last != "weight_scale" or fmt is None or fmt.group_size is not None:
            return 0
        count = prod(self.tensors[name].shape)
        if not self._is_held(name, holds):
            return 0
        if ".experts." in name and fmt.block_size is None:
            return self.tensors[f"{module}.weight"].shape[0]
        return 0 if count == 1 and fmt.block_size is None else count

    def has_scales_in_place(self, name: str, holds: Holds) -> bool:
        """Return whether an engine has scales of blocks as they are stored: a linear's, float32."""
        if self.tensors[name].dtype != "F32" or not self._fp8_scales(name, holds):
            return False
        return self.format_of(name).block_size is not None and ".experts." not in name

    def bytes_by_format(self, bytes_per_weight: int, holds: Holds) -> dict[str, int]:
        """Return `weight_bytes` by the name of the format; "": not quantized (any more)."""
        found = Counter[str]()
        for name in self.tensors:
            is_kept = self.stays_packed(name, holds) or self._fp8_scales(name, holds)
            algo = self.format_of(name).algo if is_kept else ""
            found[algo] += self.engine_bytes(name, bytes_per_weight, holds)
        return {algo: size for algo, size in found.items() if size}

    def engine_bytes(self, name: str, bytes_per_weight: int, holds: Holds) -> int:
        """Return the bytes of one tensor in an engine; scales of whole tensors are attributes."""
        info = self.tensors[name]
        if self.stays_packed(name, holds):
            # A compiler has MXFP4 as NVFP4, which has a scale for 16 codes and not for 32.
            is_mxfp4 = holds is Holds.COMPILED and self.format_of(name).name == "mxfp4"
            return info.nbytes * (2 if is_mxfp4 and name.endswith(SCALES) else 1)
        if not is_scale(name):
            return num_weights(info) * bytes_per_weight
        return self._fp8_scales(name, holds) * _FP8_SCALE_BYTES


def num_weights(info: TensorInfo) -> int:
    """Return how many weights a tensor has: a byte of 4-bit codes has two."""
    return prod(info.shape) * (2 if info.dtype == "U8" else 1)
