"""The GPUs that engines are planned for: memory, bandwidth and dense tensor throughput.

`gpus.json` has the figures that their makers publish. Datasheets print throughput with 2:4
sparsity. The table has dense figures: half of those, except for FP4 on Blackwell Ultra, whose dense
rate is stated by itself. Where a chip has several accumulators, FP8 and BF16 are with FP32
accumulation, which is what engines use. All figures are peaks at boost clock: bounds, not
forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash import log
from trtllm_dflash.catalog.json_rows import make_row, read_json

_SHARED_PART = 0.9


@dataclass(frozen=True)
class GpuSpec:
    """One GPU of a product. A board's or superchip's figures are divided among its GPUs.

    `memory_gb` is in 10^9 bytes, `bandwidth_gbs` in 10^9 bytes a second. `*_tflops` are 10^12 dense
    operations a second, None where the tensor cores do not have the type.
    """

    name: str
    arch: str  # a key of hardware.archs.ARCHS
    memory_gb: float
    bandwidth_gbs: float
    bf16_tflops: float
    fp8_tflops: float | None
    fp4_tflops: float | None
    source: str
    note: str = ""  # how the figures follow from the source
    shared_memory: bool = False  # with the CPU

    @property
    def memory_bytes(self) -> int:
        """Return the memory to plan with.

        Drivers report nearly `memory_gb` GiB. What lies above 10^9 bytes a GB is left to the driver
        and the CUDA context. Of shared memory a tenth is left to the system.
        """
        share = _SHARED_PART if self.shared_memory else 1.0
        return int(self.memory_gb * share * 10**9)


GPUS: tuple[GpuSpec, ...] = tuple(
    make_row(GpuSpec, row, f"gpus.json, row {index}")
    for index, row in enumerate(read_json("gpus.json"))
)


def gpus_of(arch: str) -> tuple[GpuSpec, ...]:
    """Return the GPUs in the table that run engines for `arch`."""
    return tuple(gpu for gpu in GPUS if gpu.arch == arch)


def markdown_table() -> str:
    """Return the table in Markdown; "–" stands where the tensor cores do not have a type."""
    titles = ("GPU", "`--arch`", "memory GB", "GB/s", "BF16", "FP8", "FP4", "source")
    rows = []
    for gpu in GPUS:
        rates = map(_rate, (gpu.bf16_tflops, gpu.fp8_tflops, gpu.fp4_tflops))
        sizes = (f"{gpu.memory_gb:g}", f"{gpu.bandwidth_gbs:g}")
        rows.append((gpu.name, f"`{gpu.arch}`", *sizes, *rates, gpu.source))
    return log.markdown_table(titles, rows)


def _rate(tflops: float | None) -> str:
    return "–" if tflops is None else f"{tflops:g}"
