"""Kernels that were compiled before, in a folder that DFLASH_CUBIN_CACHE names.

A kernel's file is named by all that it depends on: its source and headers, sizes, arch, and the
compiler's version. Whoever writes into that folder is trusted, as a compiler's own cache is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trtllm_dflash.atomic.whole_file import write_whole
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.hardware.kernel_compiler import uncompilable_reason
from trtllm_dflash.trt_plugins.kernel_sources import source_digest
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_kernel

CUBIN_CACHE = "DFLASH_CUBIN_CACHE"


def cached_kernel(key: KernelVariant, arch: str) -> Cubin:
    """Return a kernel from the folder, or compile it and keep it there; without a folder compile.

    Raises:
        BuildError: as `compile_kernel`; if the folder cannot be read or written.
    """
    folder = os.environ.get(CUBIN_CACHE)
    if not folder or uncompilable_reason() is not None:  # which compile_kernel says
        return compile_kernel(key, arch)
    try:
        return kept_kernel(Path(folder), key, arch)
    except OSError as error:
        raise BuildError(
            f"{CUBIN_CACHE} names {folder!r}, which cannot keep kernels ({error}). Name a folder"
            " that can be written, or unset it."
        ) from None


def kept_kernel(folder: Path, key: KernelVariant, arch: str) -> Cubin:
    """Return a kernel from `folder`, or compile it and keep it there.

    Raises:
        BuildError: as `compile_kernel`.
        OSError: if the folder cannot be read or written.
    """
    code, log = (folder / f"{_name(key, arch)}.{suffix}" for suffix in ("cubin", "log"))
    if code.is_file() and log.is_file():
        return Cubin(key, arch, code.read_bytes(), log.read_text(encoding="utf-8"))
    cubin = compile_kernel(key, arch)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(log, cubin.log)
    write_whole(code, cubin.code)
    return cubin


def _name(key: KernelVariant, arch: str) -> str:
    from cuda.bindings import nvrtc

    _, *version = nvrtc.nvrtcVersion()
    facts = (source_digest(key.source), str(key), arch, *map(str, version))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
