"""The backends that build engines, and why one cannot build on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from trtllm_dflash.errors import BuildError, install_command
from trtllm_dflash.hardware.archs import ARCHS, Arch
from trtllm_dflash.hardware.devices import Gpu, cuda_gpus, format_gpus, has_gpu
from trtllm_dflash.hardware.kernel_compiler import uncompilable_reason
from trtllm_dflash.hardware.module_probe import probe_module


@dataclass(frozen=True)
class Backend:
    """A compiler of step graphs.

    `package` is the one whose version is recorded, `builder` is our module that drives the backend.
    `extra` is the optional part of our package that installs it, "" for a core dependency.
    """

    name: str
    title: str
    module: str
    package: str
    builder: str
    needs_gpu: bool  # it compiles only for the GPU that it runs on
    extra: str = ""
    run_extra: str = ""  # what running an engine needs: `extra` without the compiler
    install_note: str = ""
    release: str = ""  # of the module, as "1.7": what the extra asks for; "": any

    def is_installed(self) -> bool:
        """Return whether its Python module can be found, without importing it."""
        return find_spec(self.module) is not None

    def unusable_reason(self) -> str | None:
        """Return why its installed module cannot be used, None if it can.

        The module is imported in a process of its own, once for all calls.
        """
        found = probe_module(self.module)
        if found.failure is not None:
            return (
                f"the module {self.module} of {self.title} is installed and cannot be imported"
                f" ({found.failure}): {self.install}"
            )
        if self.release and not f"{found.version}.".startswith(f"{self.release}."):
            return (
                f"it needs {self.title} {self.release}, and here is"
                f" {found.version or 'one without a version'}: {self.install}"
            )
        return None

    @property
    def install(self) -> str:
        """Return how to install it."""
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
            run_extra="run",
            release="1.7",
            builder="trtllm_dflash.builder.trt",
            needs_gpu=False,
        ),
        Backend(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            package="tensorrt-cu13",
            extra="tensorrt",
            run_extra="run-tensorrt",
            release="11",
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
    """Return why an engine for `arch` cannot be built here and what to do, None if it can.

    `plugins` tells whether it is to hold our kernels; by default engines for GPUs do. `gpus` is the
    result of `cuda_gpus`, if the caller has it.
    """
    backend = BACKENDS[arch.backend]
    reasons = []
    if not backend.is_installed():
        reasons.append(
            f"it needs {backend.title}, which is not installed here (no module {backend.module}):"
            f" {backend.install}"
        )
    elif (unusable := backend.unusable_reason()) is not None:
        reasons.append(unusable)
    if backend.needs_gpu:
        here = cuda_gpus() if gpus is None else gpus
        if not has_gpu(arch.name, here):
            reasons.append(
                f"{backend.title} compiles only for the GPU that it runs on, and here is:"
                f" {format_gpus(here)}"
            )
    if not reasons and (arch.is_gpu if plugins is None else plugins):
        reason = uncompilable_reason()
        if reason is not None:
            reasons.append(f"{reason}; or build with --no-plugins, without our kernels")
    return "; and ".join(reasons) or None


def require_buildable(arch: Arch, *, plugins: bool | None = None) -> Backend:
    """Return the backend of `arch`; `plugins` as for `unbuildable_reason`.

    Raises:
        BuildError: if it cannot build here.
    """
    reason = unbuildable_reason(arch, plugins=plugins)
    if reason is not None:
        raise BuildError(
            f"--arch {arch.name} ({arch.hardware}) cannot be built here: {reason}.\n"
            f"{_alternatives(arch)}. Nothing was fetched or written"
        )
    return BACKENDS[arch.backend]


def _alternatives(arch: Arch) -> str:
    """Return what can be done on this machine instead."""
    text = (
        f"--dry-run shows here what an engine for {arch.name} would need, and on which of its GPUs"
        " it fits"
    )
    others = [other for other in ARCHS.values() if other != arch]
    buildable = [other.name for other in others if unbuildable_reason(other) is None]
    if buildable:
        text += f"; engines can be built here for --arch {', '.join(buildable)}"
    return text
