"""The kernels for this GPU, compiled once for all parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plugins.bench.gpu_check.cases import fields_of_all
from plugins.bench.gpu_check.operators import Load
from plugins.bench.gpu_check.rows import Check
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.graph.plugin_nodes import kernel_variant
from trtllm_dflash.hardware.cuda_module import CudaModule, load_module
from trtllm_dflash.hardware.devices import cuda_gpus
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_in_subprocess


def variants(*, small: bool) -> list[KernelVariant]:
    """Return the kernels that the parts use, each once."""
    found = []
    for name, fields in fields_of_all(small=small):
        sizes = {key: size for key, size in fields.items() if isinstance(size, int)}
        found.append(kernel_variant(OPS[name], sizes))
    return list(dict.fromkeys(found))


def loader(folder: Path) -> Load:
    """Return what loads kernels into the current context; a kernel that is not compiled yet is."""

    def load(variant: KernelVariant, kernels: Sequence[str]) -> CudaModule:
        return load_module(_code(variant, folder), kernels)

    return load


def compile_all(check: Check) -> None:
    """Compile every kernel that the parts use: a row for each, with registers and spills."""
    wanted = variants(small=check.small)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiling = [pool.submit(_compile, key, check.folder) for key in wanted]
    for key, future in zip(wanted, compiling, strict=True):
        with check.case(str(key)) as figures:
            cubin = future.result()
            reports = cubin.reports().values()
            figures["bytes"] = len(cubin.code)
            figures["most registers"] = max(report.registers for report in reports)
            figures["most spilled bytes"] = max(report.spilled_bytes for report in reports)


def _code(variant: KernelVariant, folder: Path) -> bytes:
    path = _path(variant, folder)
    return path.read_bytes() if path.exists() else _compile(variant, folder).code


def _compile(variant: KernelVariant, folder: Path) -> Cubin:
    """Compile a kernel and keep it at once, for whoever asks next."""
    cubin = compile_in_subprocess(variant, _arch())
    unfinished = _path(variant, folder).with_suffix(".part")
    unfinished.write_bytes(cubin.code)
    unfinished.rename(_path(variant, folder))
    return cubin


def _path(variant: KernelVariant, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(str(variant).encode()).hexdigest()[:16]}.cubin"


def _arch() -> str:
    gpus = cuda_gpus()
    assert not isinstance(gpus, str), gpus
    return gpus[0].arch
