"""The kernel compiler, NVRTC: what it needs on a machine, and what of that is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from trtllm_dflash.errors import install_command

PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
_MODULES = ("cuda", "cuda.bindings", "cuda.pathfinder")
# Component of the CUDA toolkit -> a header of it that our kernels include, and its package.
_HEADERS = {
    "cudart": ("cuda_bf16.h", "nvidia-cuda-runtime"),
    "cccl": ("nv/target", "nvidia-cuda-cccl"),
}


def uncompilable_reason() -> str | None:
    """Return why no kernel can be compiled on this machine and what to do, None if one can."""
    install = install_command("rtx")
    try:
        missing = _missing_part()
    except Exception as error:  # noqa: BLE001 - another module of that name can raise anything
        return (
            f"NVRTC needs cuda-bindings, which cannot be imported ({type(error).__name__}:"
            f" {error}). If another module is named cuda, remove it from Python's path; else:"
            f" {install}"
        )
    if missing is None:
        return None
    return f"NVRTC needs {missing}, which is not installed here: {install}"


def _missing_part() -> str | None:
    if any(find_spec(module) is None for module in _MODULES):
        return "cuda-bindings (no module cuda.bindings)"
    from cuda.bindings import nvrtc
    from cuda.pathfinder import DynamicLibNotFoundError

    try:
        nvrtc.nvrtcVersion()
    except (DynamicLibNotFoundError, RuntimeError, OSError):
        return "nvidia-cuda-nvrtc (no library libnvrtc)"
    found = cuda_header_folders()
    for name, (header, package) in _HEADERS.items():
        if name not in found:
            return f"{package} (no header {header})"
    return None


def cuda_header_folders() -> dict[str, Path]:
    """Return the folders of CUDA's own headers that are on this machine, by component."""
    from cuda.pathfinder import find_nvidia_header_directory

    folders = {}
    for name, (header, _) in _HEADERS.items():
        folder = find_nvidia_header_directory(name)
        if folder is not None and (Path(folder) / header).is_file():
            folders[name] = Path(folder)
    return folders
