"""In which numbers a model's parts are stored and multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from trtllm_dflash.catalog.gpus import GpuSpec
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.errors import UsageError


@dataclass(frozen=True)
class Number:
    """How weights or cached keys are stored, and the tensor cores' type that multiplies them."""

    name: str
    bits: float  # scales of blocks included
    multiplied: str  # "bf16" | "fp8" | "fp4"

    def flops(self, gpu: GpuSpec) -> float:
        """Peak operations a second on `gpu`.

        Raises:
            UsageError: if its tensor cores do not have the type.
        """
        rate = {"bf16": gpu.bf16_tflops, "fp8": gpu.fp8_tflops, "fp4": gpu.fp4_tflops}[
            self.multiplied
        ]
        if rate is None:
            raise UsageError(
                f"{gpu.name} does not multiply {self.multiplied}, which {self.name} needs"
            )
        return rate * 1e12


_MULTIPLIED = {"fp8": "fp8", "nvfp4": "fp4", "w4a16_nvfp4": "bf16"}
NUMBERS = {
    "bf16": Number("bf16", 16, "bf16"),
    # gpt-oss's experts: 4 bits, and a power of two for every 32. Activations stay as they are.
    "mxfp4": Number("mxfp4", 4 + 8 / 32, "bf16"),
} | {name: Number(name, row.weight_bits(), _MULTIPLIED[name]) for name, row in FORMATS.items()}


@dataclass(frozen=True)
class Precision:
    """Keys of NUMBERS for the linears of the target's layers, its experts, its head, the drafter,
    and both caches.

    `others`: modules ("target.model.layers.0.self_attn.q_proj") that a checkpoint stores otherwise,
    with their keys.
    """

    linears: str = "bf16"
    experts: str = "bf16"
    head: str = "bf16"
    drafter: str = "bf16"
    cache: str = "bf16"
    others: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _others(self) -> dict[str, str]:
        return dict(self.others)

    def of(self, part: str, kind: str, module: str = "") -> Number:
        """The number of work of `kind` in `part` (`count.Work`), done by that part's `module`."""
        other = self._others.get(f"{part}.{module}")
        if other is not None:
            return NUMBERS[other]
        if kind == "cache":
            return NUMBERS[self.cache if part == "target" else "bf16"]
        if kind == "head":
            return NUMBERS[self.head]
        if kind == "other":
            return NUMBERS["bf16"]
        return NUMBERS[
            (
                self.drafter
                if part == "drafter"
                else self.experts
                if kind == "experts"
                else self.linears
            )
        ]
