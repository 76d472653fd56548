"""The GPU architectures (and the CPU) that an engine is built for, as `--arch` names them."""

from __future__ import annotations

from dataclasses import dataclass

_FP8 = ("fp8",)
_FP8_AND_FP4 = ("fp8", "nvfp4", "w4a16_nvfp4")


@dataclass(frozen=True)
class Arch:
    """A processor architecture: its engine backend, and the types that it computes with.

    `backend` is a key of `hardware.backends.BACKENDS`. The first of `dtypes` is what
    `--dtype auto` means. `formats` are the quantization formats with arithmetic on it; the CPU
    engine emulates them.
    """

    name: str
    backend: str
    dtypes: tuple[str, ...]
    hardware: str
    formats: tuple[str, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Return whether it is a GPU, so that an engine for it can hold our kernels."""
        return self.name.startswith("sm")

    @property
    def has_fp8(self) -> bool:
        """Return whether FP8 is supported, natively on GPUs and emulated on the CPU."""
        return "fp8" in self.formats

    @property
    def has_fp4(self) -> bool:
        """Return whether it is a GPU that multiplies 4-bit weights natively (Blackwell)."""
        return self.is_gpu and "nvfp4" in self.formats


_BF16 = ("bfloat16",)
ARCHS = {
    arch.name: arch
    for arch in (
        # ONNX Runtime has no BF16 kernels on the CPU.
        Arch("cpu", "onnxruntime", ("float32",), "any CPU", _FP8_AND_FP4),
        Arch("sm80", "tensorrt_rtx", _BF16, "A100, A30"),
        Arch("sm86", "tensorrt_rtx", _BF16, "RTX 30, A10, A40, RTX A6000"),
        Arch("sm89", "tensorrt_rtx", _BF16, "RTX 40, L4, L40S, RTX 6000 Ada", _FP8),
        Arch("sm120", "tensorrt_rtx", _BF16, "RTX 50, RTX PRO 6000 Blackwell", _FP8_AND_FP4),
        Arch("sm121", "tensorrt_rtx", _BF16, "DGX Spark (GB10)", _FP8_AND_FP4),
        Arch("sm90", "tensorrt", _BF16, "H100, H200", _FP8),
        Arch("sm100", "tensorrt", _BF16, "B200, GB200", _FP8_AND_FP4),
        Arch("sm103", "tensorrt", _BF16, "B300, GB300", _FP8_AND_FP4),
    )
}


def archs_with(quant_format: str) -> tuple[str, ...]:
    """Return the names of the architectures that have arithmetic of a quantization format."""
    names = [name for name, arch in ARCHS.items() if quant_format in arch.formats]
    return tuple(
        sorted(names, key=lambda name: int(name.removeprefix("sm").replace("cpu", "0")))
    )
