"""Kernels compiled for the tests, each once a run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

from filelock import FileLock

from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.trt_plugins.cubin_cache import kept_kernel
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_kernel

HEAD_DIMS = (64, 96, 128, 256)
# Attention's registers are limited so that the CTAs fit which its plan counts on. What a CTA keeps
# from one item to the next may be spilled then: the loop over keys has at most one such load.
ATTENTION_SPILLS = 128
SCAN_SPILLS = 16  # one number of 8 bytes, written and read, on sm80 alone


def most_spills(function: str) -> int:
    """Return the bytes that a kernel's function may spill, stores and loads together."""
    if "attention" in function:
        return ATTENTION_SPILLS
    return SCAN_SPILLS if function.endswith("_scan") else 0


ACCEPT_KEY = KernelVariant("accept")
ARGMAX_KEY = KernelVariant("argmax")
LOOKUP_KEY = KernelVariant("lookup")
ADJUST_KEY = KernelVariant("adjust")
ATTENTION_KEYS = tuple(KernelVariant("attention", (("head_dim", size),)) for size in HEAD_DIMS)
KEYS = (
    ACCEPT_KEY,
    KernelVariant("select"),
    ARGMAX_KEY,
    LOOKUP_KEY,
    ADJUST_KEY,
    *ATTENTION_KEYS,
)
FP8_KEYS = tuple(
    KernelVariant("attention", (("head_dim", size), ("fp8_cache", 1))) for size in HEAD_DIMS
)
DELTA_KEY = KernelVariant(
    "gated_delta", (("key_dim", 128), ("value_dim", 128), ("conv_kernel", 4))
)
LINEAR_KEY = KernelVariant("block_linear")
MOE_KEYS = (
    KernelVariant("moe"),
    *(KernelVariant("moe", (("weight_format", number),)) for number in (1, 2, 3)),
)
_COMPILERS = ThreadPoolExecutor(2)
_shared: list[Path] = []
_started: list[Future[Cubin]] = []


def share(folder: Path) -> None:
    """Keep in `folder` what is compiled from now on, and take it from there."""
    folder.mkdir(exist_ok=True)
    _shared[:] = [folder]


@cache
def compiling(key: KernelVariant, arch: str) -> Future[Cubin]:
    """Start to compile one of the keys above for an arch."""
    started = _COMPILERS.submit(_compile_once, key, arch)
    _started.append(started)
    return started


def wait_for_compilers() -> None:
    """Wait until nothing compiles: it would miss what a test takes away from this process."""
    wait(_started)


def _compile_once(key: KernelVariant, arch: str) -> Cubin:
    if not _shared:
        return compile_kernel(key, arch)
    with FileLock(_shared[0] / f"{arch}, {key}.lock"):
        return kept_kernel(_shared[0], key, arch)


def compiled(key: KernelVariant, arch: str) -> Cubin:
    """Compile one of the keys above for an arch."""
    return compiling(key, arch).result()


def sources() -> set[str]:
    """Return the kernel sources that the operators name."""
    return {spec.kernel.source for spec in OPS.values()}
