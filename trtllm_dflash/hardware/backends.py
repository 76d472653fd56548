"""Which backend builds which arch, whether it is here, and in what words a build that cannot be is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from trtllm_dflash.errors import BuildError, install_command
from trtllm_dflash.hardware.archs import ARCHS, Arch
from trtllm_dflash.hardware.devices import Gpu, cuda_gpus, format_gpus, has_gpu
from trtllm_dflash.hardware.kernel_compiler import uncompilable_reason


@dataclass(frozen=True)
class Backend:
    """A compiler of step graphs; `builder` is our module that drives it."""

    name: str
    title: str
    module: str
    package: str  # what its version is asked of
    builder: str
    needs_gpu: bool  # compiles for the GPU that it runs on, and for no other
    # of our package: brings it and what else its engines need; none where our package always does
    extra: str = ""
    install_note: str = ""

    def is_installed(self) -> bool:
        """Whether its Python module can be found; does not import it."""
        return find_spec(self.module) is not None

    @property
    def install(self) -> str:
        """How to get it, for people."""
        wanted = install_command(self.extra) if self.extra else f"pip install {self.package}"
        return f"{wanted}{self.install_note}"


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="onnxruntime",
            title="ONNX Runtime",
            module="onnxruntime",
            package="onnxruntime",
            builder="trtllm_dflash.builder.ort",
            needs_gpu=False,
        ),
        Backend(
            name="tensorrt_rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            package="tensorrt-rtx-cu13",
            extra="rtx",
            builder="trtllm_dflash.builder.trt",
            needs_gpu=False,
        ),
        Backend(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            package="tensorrt-cu13",
            extra="tensorrt",
            install_note=(
                " (its libraries come from NVIDIA's own index), or NVIDIA's container"
                " nvcr.io/nvidia/tensorrt"
            ),
            builder="trtllm_dflash.builder.trt",
            needs_gpu=True,
        ),
    )
}


def unbuildable_reason(
    arch: Arch, *, plugins: bool | None = None, gpus: list[Gpu] | str | None = None
) -> str | None:
    """Why an engine for `arch` cannot be built on this machine, with what to do; None if it can.

    `plugins`: whether it is to hold our kernels; by default those of a GPU do. `gpus`: what
    `cuda_gpus` says, if it has been asked already.
    """
    backend = BACKENDS[arch.backend]
    reasons = []
    if not backend.is_installed():
        reasons.append(
            f"it needs {backend.title}, which is not installed here (no module {backend.module}):"
            f" {backend.install}"
        )
    if backend.needs_gpu:
        here = cuda_gpus() if gpus is None else gpus
        if not has_gpu(arch.name, here):
            reasons.append(
                f"{backend.title} compiles only for the GPU that it runs on, and here is:"
                f" {format_gpus(here)}"
            )
    if not reasons and (arch.is_gpu if plugins is None else plugins):
        reason = uncompilable_reason()
        reasons += [f"{reason}; or build with --no-plugins, without our kernels"] if reason else []
    return "; and ".join(reasons) or None


def require_buildable(arch: Arch, *, plugins: bool | None = None) -> Backend:
    """The backend of `arch`; `plugins` as for `unbuildable_reason`.

    Raises:
        BuildError: if it cannot build here; nothing has been done yet then.
    """
    reason = unbuildable_reason(arch, plugins=plugins)
    if reason is not None:
        raise BuildError(
            f"--arch {arch.name} ({arch.hardware}) cannot be built here:"
            f" {reason}.\n{_what_works(arch)}. Nothing was fetched or written"
        )
    return BACKENDS[arch.backend]


def _what_works(arch: Arch) -> str:
    """What can be done on this machine instead."""
    others = [
        other.name
        for other in ARCHS.values()
        if other != arch and unbuildable_reason(other) is None
    ]
    plan = (
        f"--dry-run shows here what an engine for {arch.name} would need, and on which of its GPUs"
        " it fits"
    )
    return plan + (f"; engines can be built here for --arch {', '.join(others)}" if others else "")
