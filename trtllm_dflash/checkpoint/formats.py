"""The formats of quantized weights, and which of a checkpoint's linears have one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from trtllm_dflash.hardware.archs import ARCHS, archs_with

HF_QUANT_CONFIG = "hf_quant_config.json"
NVFP4_GROUP_SIZE = 16  # the only size that Blackwell multiplies


@dataclass(frozen=True)
class WeightFormat:
    """How one linear is stored and computed.

    name             our name of it
    algo             ModelOpt's name of it
    meaning          for people
    group_size       elements along `in` that share a block scale; None: one scale a tensor
    has_input_scale  whether activations are quantized too
    archs            those with the arithmetic; the CPU engine emulates it
    hardware         these archs, for people
    """

    name: str
    algo: str
    meaning: str
    group_size: int | None
    has_input_scale: bool
    archs: tuple[str, ...]
    hardware: str

    def weight_bits(self) -> float:
        """Return the bits of one weight, its share of block scales included."""
        return 8.0 if self.group_size is None else 4.0 + 8.0 / self.group_size


_FP8 = WeightFormat(
    "fp8",
    "FP8",
    "E4M3 weights and activations, a scale each",
    group_size=None,
    has_input_scale=True,
    archs=archs_with("fp8"),
    hardware="sm89 (Ada), sm90 (Hopper) and Blackwell",
)
_NVFP4 = WeightFormat(
    "nvfp4",
    "NVFP4",
    "4-bit weights and activations in blocks of 16",
    group_size=NVFP4_GROUP_SIZE,
    has_input_scale=True,
    archs=archs_with("nvfp4"),
    hardware="Blackwell",
)
_W4A16_NVFP4 = WeightFormat(
    "w4a16_nvfp4",
    "W4A16_NVFP4",
    "4-bit weights in blocks of 16, activations as they are",
    group_size=NVFP4_GROUP_SIZE,
    has_input_scale=False,
    archs=archs_with("w4a16_nvfp4"),
    hardware="Blackwell",
)
FORMATS: Mapping[str, WeightFormat] = {fmt.name: fmt for fmt in (_FP8, _NVFP4, _W4A16_NVFP4)}
# The format of fused experts, and of nothing else; every arch can dequantize it.
MXFP4 = WeightFormat(
    "mxfp4",
    "MXFP4",
    "4-bit weights of experts in blocks of 32 that share a power of two, activations as they are",
    group_size=32,
    has_input_scale=False,
    archs=tuple(ARCHS),
    hardware="every GPU",
)


@dataclass(frozen=True)
class UnreadMethod:
    """A method of quantization whose tensors are not read: its key and name, and the refusal."""

    key: str
    name: str
    refusal: str

    def describe(self) -> str:
        """Return what the configuration says, for people."""
        return f'{self.key} is "{self.name}"' if self.name else f"{self.key} is there"


@dataclass(frozen=True)
class Quantization:
    """The formats of a checkpoint's linears: by name in `modules`, else `default`.

    `excluded` modules have none: names, which cover what is inside of them, and patterns with `*`.
    `kv_cache` is "fp8" if keys and values are stored so. `mxfp4` concerns fused experts only. An
    unquantized checkpoint has no format anywhere. `doubtful` are exclusions that not every
    description has, and `unread_method` may be left over: `settle_quantization` decides both.
    `stored_under`: in exclusions, a module's name may begin with the first instead of the second.
    """

    default: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    kv_cache: str | None = None
    mxfp4: bool = False
    doubtful: tuple[str, ...] = ()
    unread_method: UnreadMethod | None = None
    stored_under: tuple[str, str] | None = None

    @property
    def is_quantized(self) -> bool:
        """Tell whether any linear can have a format."""
        return self.default is not None or bool(self.modules) or self.mxfp4

    def format_of(self, module: str) -> WeightFormat | None:
        """Return the format of the linear `module`, None if it is not quantized."""
        name = self.modules.get(module)
        if name is None and self.default is not None and self.excluded_by(module) is None:
            name = self.default
        return FORMATS[name] if name else None

    def format_of_experts(self, name: str) -> WeightFormat | None:
        """Return the format of the fused experts `name`, None if they are not quantized."""
        return MXFP4 if self.mxfp4 and self.excluded_by(name) is None else None

    def excluded_by(self, module: str) -> str | None:
        """Return the first entry of `excluded` that covers the module."""
        return next((entry for entry in self.excluded if self.covers(entry, module)), None)

    def covers(self, pattern: str, module: str) -> bool:
        """Tell whether an exclusion covers a module under either of its names."""
        if covers(pattern, module):
            return True
        if self.stored_under is None:
            return False
        stored, ours = self.stored_under
        return module.startswith(ours) and covers(pattern, stored + module.removeprefix(ours))


def algos_of(formats: Iterable[WeightFormat]) -> str:
    """Join ModelOpt's names of some formats, each once."""
    return ", ".join(dict.fromkeys(fmt.algo for fmt in formats))


def covers(pattern: str, module: str) -> bool:
    """Tell whether an exclusion covers a module: a name, or a pattern with `*`."""
    if "*" in pattern or "?" in pattern:
        return fnmatchcase(module, pattern)
    return module == pattern or module.startswith(f"{pattern}.")
