"""The GPU of this machine, and what is installed: for the report's head. The standard library is
enough.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from trtllm_dflash.hardware.devices import (
    Gpu,
    cuda_gpus,
    driver_cuda_version,
    format_driver,
)

# Module -> package; the first ones are needed by every part.
NEEDED = {
    "numpy": "numpy",
    "ml_dtypes": "ml_dtypes",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "safetensors": "safetensors",
    "cuda": "cuda-bindings==13.*",
}
_REPORTED = (
    *("torch", "triton", "cuda-bindings", "nvidia-cuda-nvrtc", "tensorrt-rtx-cu13"),
    *("tensorrt-cu13", "flashinfer-python", "flash-attn-3", "flash-attn", "numpy", "ml_dtypes"),
    *("onnx", "onnxruntime"),
)


class NoGpuError(Exception):
    """There is nothing here to check; the message says what was looked for, and what to do."""


def first_gpu() -> Gpu:
    """Return the first GPU that the driver shows.

    Raises:
        NoGpuError: if there is none, or if a package is missing that all parts need.
    """
    found = cuda_gpus()
    if isinstance(found, str) or not found:
        shown = found if isinstance(found, str) else "none: the driver shows no GPU"
        raise NoGpuError(
            "gpu-check needs an NVIDIA GPU. Looked for: the driver libcuda.so.1, and GPUs that it"
            f" shows. Found: {shown.removesuffix('.')}. Run it on a machine where nvidia-smi lists"
            " a GPU. Without one, `make test-all` runs the same kernels in the emulator"
        )
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        quoted = " ".join(f"'{package}'" for package in missing)
        raise NoGpuError(
            f"gpu-check found {found[0]}, and {sys.executable} lacks packages that all parts need:"
            f" {sys.executable} -m pip install {quoted}"
        )
    return found[0]


def provenance(gpu: Gpu) -> dict[str, Any]:
    """Return where, when and with what the figures are measured."""
    return {
        "gpu": gpu.name,
        "arch": gpu.arch,
        "memory_bytes": gpu.memory,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "driver_cuda": format_driver(driver_cuda_version()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "is_changed": _output("git", "status", "--porcelain", "--untracked-files=no") != "",
        "python": sys.version.split()[0],
        "versions": {name: found for name in _REPORTED if (found := _version(name))},
    }


def _output(*command: str) -> str:
    """Return the first line that a command prints, "unknown" if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, encoding="utf-8", timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.splitlines() or [""])[0]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
