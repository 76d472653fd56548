"""The GPUs that engines are planned for: memory, bandwidth and dense tensor throughput, as their
makers publish them.

Datasheets print throughput with 2:4 sparsity; here are the dense figures (half of those, but for
FP4 on Blackwell Ultra, whose dense rate is stated by itself). Where a chip has several
accumulators, FP8 and BF16 are with FP32 accumulation, which is what engines use. All are peaks at
boost clock: bounds, not forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuSpec:
    """One GPU of a product: where a board or superchip has several, its figures are divided among
    them.

    `memory_gb` and `bandwidth_gbs` are in 10^9 bytes (a second); `*_tflops` in 10^12 dense
    operations a second, None where the tensor cores do not have the type.
    """

    name: str
    arch: str  # a key of config.build.ARCHS
    memory_gb: float
    bandwidth_gbs: float
    bf16_tflops: float
    fp8_tflops: float | None
    fp4_tflops: float | None
    source: str

    @property
    def memory_bytes(self) -> int:
        """Memory to plan with. Drivers report nearly `memory_gb` GiB; what lies above 10^9 is left
        to driver and CUDA context.
        """
        return int(self.memory_gb * 10**9)


GPUS: tuple[GpuSpec, ...] = (
    # HGX B200: 1440 GB, 62 TB/s, 72 PFLOPS dense FP4, 72 sparse FP8, 36 sparse BF16, on 8 GPUs.
    GpuSpec("B200", "sm100", 180, 7700, 2250, 4500, 9000, "NVIDIA HGX B200 datasheet, an eighth"),
    # GB200 superchip, two GPUs: 372 GB, 16 TB/s, 20 PFLOPS dense FP4, 20 sparse FP8, 10 sparse
    # BF16.
    GpuSpec(
        "GB200",
        "sm100",
        186,
        8000,
        2500,
        5000,
        10000,
        "NVIDIA GB200 NVL72 datasheet, superchip, a half",
    ),
    # DGX B300: 108 PFLOPS dense FP4, 72 sparse FP8, 36 sparse BF16, on 8 GPUs. Of 288 GB on the
    # package 270 are usable.
    GpuSpec(
        "B300",
        "sm103",
        270,
        7700,
        2250,
        4500,
        13500,
        "NVIDIA HGX and DGX B300 datasheets, an eighth",
    ),
    # 188 SMs at 2617 MHz with 1024 dense BF16 operations a clock each, FP8 twice, FP4 four times
    # that.
    GpuSpec(
        "RTX PRO 6000 Blackwell",
        "sm120",
        96,
        1792,
        503.8,
        1007.6,
        2015.2,
        "NVIDIA RTX Blackwell PRO whitepaper, Workstation Edition",
    ),
    # FP32 accumulation runs at half rate on GeForce, except for FP4.
    GpuSpec(
        "RTX 5090",
        "sm120",
        32,
        1792,
        209.5,
        419,
        1676,
        "NVIDIA RTX Blackwell whitepaper, appendix A",
    ),
    # NVIDIA states one figure, 1 PFLOPS sparse FP4; FP8 and BF16 are a half and a quarter of its
    # dense half, as on the other chips of this generation. Memory is shared with the CPU.
    GpuSpec(
        "GB10 (DGX Spark)",
        "sm121",
        128,
        273,
        125,
        250,
        500,
        "NVIDIA DGX Spark datasheet; FP8 and BF16 derived",
    ),
    GpuSpec("H100", "sm90", 80, 3350, 989.4, 1978.9, None, "NVIDIA H100 datasheet, SXM"),
    GpuSpec("H200", "sm90", 141, 4800, 989.4, 1978.9, None, "NVIDIA H200 datasheet, SXM"),
    GpuSpec("L40S", "sm89", 48, 864, 362, 733, None, "NVIDIA L40S datasheet"),
    # As on the RTX 5090: half rate with FP32 accumulation.
    GpuSpec("RTX 4090", "sm89", 24, 1008, 165.2, 330.3, None, "NVIDIA Ada whitepaper, appendix A"),
    GpuSpec("A100 80GB", "sm80", 80, 2039, 312, None, None, "NVIDIA A100 80GB datasheet, SXM"),
)


def gpus_of(arch: str) -> tuple[GpuSpec, ...]:
    """The GPUs in the table that run engines for `arch`."""
    return tuple(gpu for gpu in GPUS if gpu.arch == arch)


def markdown_table() -> str:
    """The table, for people; "–" where the tensor cores do not have a type."""
    lines = [
        "| GPU | `--arch` | memory GB | GB/s | BF16 | FP8 | FP4 | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        rates = (
            "–" if rate is None else f"{rate:g}"
            for rate in (gpu.bf16_tflops, gpu.fp8_tflops, gpu.fp4_tflops)
        )
        numbers = " | ".join([f"{gpu.memory_gb:g}", f"{gpu.bandwidth_gbs:g}", *rates])
        lines.append(f"| {gpu.name} | `{gpu.arch}` | {numbers} | {gpu.source} |")
    return "\n".join(lines)
