"""Which backend builds which arch, whether it is here, and in what words a build that cannot be is refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from trtllm_dflash.config.build import ARCHS, Arch
from trtllm_dflash.errors import BuildError


@dataclass(frozen=True)
class Backend:
    """A compiler of step graphs; `builder` is our module that drives it, None where we cannot."""

    name: str
    title: str
    module: str
    package: str  # what its version is asked of
    install: str
    builder: str | None
    runs_on: str

    def is_installed(self) -> bool:
        """Whether its Python module can be found; does not import it."""
        return find_spec(self.module) is not None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="onnxruntime",
            title="ONNX Runtime",
            module="onnxruntime",
            package="onnxruntime",
            install="pip install onnxruntime",
            builder="trtllm_dflash.build.cpu",
            runs_on="any machine",
        ),
        Backend(
            name="tensorrt_rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            package="tensorrt-rtx-cu13",
            install='pip install "dflash-trt[rtx]"',
            builder="trtllm_dflash.build.rtx",
            runs_on="that GPU; it builds anywhere, without a GPU",
        ),
        Backend(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            package="tensorrt",
            install="NVIDIA's container nvcr.io/nvidia/tensorrt, or "
            "https://docs.nvidia.com/deeplearning/tensorrt/latest/installing-tensorrt/installing.html",
            builder=None,
            runs_on="that GPU, where it must also build",
        ),
    )
}


def why_not_buildable(arch: Arch, *, plugins: bool | None = None) -> str | None:
    """Why an engine for `arch` cannot be built on this machine, with what to do; None if it can.

    `plugins`: whether it is to hold our kernels; by default those of a GPU do.
    """
    backend = BACKENDS[arch.backend]
    if backend.builder is None:
        others = [other.name for other in ARCHS.values() if BACKENDS[other.backend].builder]
        return (
            f"TensorRT-RTX has no code for this GPU, so it needs the full {backend.title}, on a machine with that GPU "
            f"(it compiles for the GPU it runs on): {backend.install}. This version of dflash-trt does not drive it "
            f"yet; it builds for {', '.join(others)}"
        )
    if not backend.is_installed():
        return f"it needs {backend.title}, which is not installed here (no module {backend.module}): {backend.install}"
    if arch.is_gpu if plugins is None else plugins:
        from trtllm_dflash.plugins.compile import why_not_compilable  # brings onnx_ir, and the runtime reads this file

        reason = why_not_compilable()
        return reason and f"{reason}; or build with --no-plugins, without our kernels"
    return None


def require_buildable(arch: Arch, *, plugins: bool | None = None) -> Backend:
    """The backend of `arch`; `plugins` as for `why_not_buildable`.

    Raises:
        BuildError: if it cannot build here; nothing has been done yet then.
    """
    reason = why_not_buildable(arch, plugins=plugins)
    if reason is not None:
        raise BuildError(f"--arch {arch.name} ({arch.hardware}) cannot be built here: {reason}")
    return BACKENDS[arch.backend]
