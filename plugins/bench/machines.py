"""What the bounds know of GPUs: of a multiprocessor by architecture, of four GPUs by name.

Sizes of multiprocessors are of the CUDA programming guide's table of compute capabilities. Clocks
follow from the dense BF16 rates of the data sheets (trtllm_dflash/catalog/gpus.json): operations a
second over those of all multiprocessors a cycle. The rest is assumed, and said where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.catalog.gpus import GPUS

_REGISTERS = 65536
_REGISTER_UNIT = 8  # of a thread
_RESERVED_SHARED_BYTES = 1024  # of each CTA, for the system
_COPY_SHARE = 0.9  # assumed: what a large copy moves of the data sheet's bandwidth


@dataclass(frozen=True)
class Multiprocessor:
    """What CTAs share on one."""

    shared_bytes: int
    threads: int
    ctas: int


ARCHS = {
    "sm80": Multiprocessor(164 << 10, 2048, 32),
    "sm89": Multiprocessor(100 << 10, 1536, 24),
    "sm90": Multiprocessor(228 << 10, 2048, 32),
    "sm100": Multiprocessor(228 << 10, 2048, 32),
    "sm120": Multiprocessor(100 << 10, 1536, 32),
    "sm121": Multiprocessor(100 << 10, 1536, 32),
}


@dataclass(frozen=True)
class Machine:
    """A GPU.

    A scheduler may issue one m16n8k16 product of bfloat16 in `product_cycles`; the note says why.
    """

    name: str
    arch: str
    processors: int
    cycles_a_second: float
    copy_bytes_a_second: float
    product_cycles: int
    product_note: str


def _machine(
    name: str, listed: str, processors: int, operations: int, cycles: int, note: str
) -> Machine:
    """Return a GPU from its row in the catalog; `operations` are a multiprocessor's in a cycle."""
    spec = next(spec for spec in GPUS if spec.name == listed)
    return Machine(
        name,
        spec.arch,
        processors,
        spec.bf16_tflops * 1e12 / (processors * operations),
        _COPY_SHARE * spec.bandwidth_gbs * 1e9,
        cycles,
        note,
    )


MACHINES = (
    _machine("H200", "H200", 132, 4096, 6, "4 of wgmma; mma.sync has some 62 % of its rate"),
    _machine("B200", "B200", 148, 8192, 8, "assumed: mma.sync as on sm80, and not tcgen05's 2"),
    _machine("RTX 5090", "RTX 5090", 170, 512, 32, "the whitepaper's, float32 accumulation"),
    _machine("GB10", "GB10 (DGX Spark)", 48, 1024, 16, "the data sheet's FP4 rate over four"),
)


def resident_ctas(arch: str, registers: int, threads: int, shared_bytes: int) -> int:
    """Return how many CTAs of a kernel a multiprocessor holds at once."""
    has = ARCHS[arch]
    of_thread = -(-registers // _REGISTER_UNIT) * _REGISTER_UNIT
    return min(
        _REGISTERS // (of_thread * threads),
        has.threads // threads,
        has.shared_bytes // (shared_bytes + _RESERVED_SHARED_BYTES),
        has.ctas,
    )
