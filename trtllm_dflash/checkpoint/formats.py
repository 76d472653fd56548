"""The formats of quantized weights, and which of a checkpoint's linears have one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase, translate
from functools import cached_property

from trtllm_dflash.hardware.archs import ARCHS, archs_with

HF_QUANT_CONFIG = "hf_quant_config.json"
NVFP4_GROUP_SIZE = 16  # the only size that Blackwell multiplies
FP8_BLOCK_SIZE = 128  # rows and columns that share a scale in published FP8 checkpoints
FP8_UNIT = 16  # columns of FP8 weights that our kernels read at once


class Holds(Enum):
    """Which quantized weights an engine holds packed; it has the others dequantized."""

    NOTHING = "none"
    COMPILED = "those that the compiler multiplies"
    KERNELS = "those that our kernels multiply, too"


@dataclass(frozen=True)
class WeightFormat:
    """How one linear is stored and computed.

    name             our name of it
    algo             ModelOpt's name of it, or the field's
    meaning          for people
    group_size       elements along `in` that share a block scale; None: no such scales
    has_input_scale  whether activations are quantized too
    archs            those with the arithmetic; the CPU engine emulates it
    hardware         these archs, for people
    has_row_scales   whether each row of the weight may have its own scale
    block_size       rows and columns that share a scale; None: no such blocks
    """

    name: str
    algo: str
    meaning: str
    group_size: int | None
    has_input_scale: bool
    archs: tuple[str, ...]
    hardware: str
    has_row_scales: bool = False
    block_size: int | None = None

    def weight_bits(self) -> float:
        """Return the bits of one weight, its share of block scales included."""
        return 8.0 if self.group_size is None else 4.0 + 8.0 / self.group_size

    def stays_packed(self, holds: Holds, *, experts: bool) -> bool:
        """Return whether an engine holds the codes, of a linear or of `experts`.

        Otherwise it holds the dequantized numbers, in its own type. The compiler multiplies FP8
        linears with scales of rows, but neither blocks nor experts.
        """
        if holds is Holds.COMPILED and self.group_size is None:
            return self.block_size is None and not experts
        return holds is not Holds.NOTHING


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
# What `quantize` makes. ModelOpt writes all of these.
FORMATS: Mapping[str, WeightFormat] = {fmt.name: fmt for fmt in (_FP8, _NVFP4, _W4A16_NVFP4)}
W8A16_FP8 = WeightFormat(
    "w8a16_fp8",
    "W8A16_FP8",
    "E4M3 weights with a scale for each row, activations as they are",
    group_size=None,
    has_input_scale=False,
    archs=archs_with("fp8"),
    hardware="sm89 (Ada), sm90 (Hopper) and Blackwell",
    has_row_scales=True,
)
# Our kernels expand its codes without FP8 arithmetic, so that every arch computes with it.
FP8_BLOCK = WeightFormat(
    "fp8_block",
    "FP8_BLOCK",
    "E4M3 weights in blocks of 128 x 128 that share a scale, activations as they are",
    group_size=None,
    has_input_scale=False,
    archs=tuple(ARCHS),
    hardware="every GPU",
    block_size=FP8_BLOCK_SIZE,
)
# All that a linear may have: what is published counts as well.
LINEAR_FORMATS: Mapping[str, WeightFormat] = {
    **FORMATS,
    W8A16_FP8.name: W8A16_FP8,
    FP8_BLOCK.name: FP8_BLOCK,
}
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


class Layout(Enum):
    """Who wrote a quantized checkpoint: names of tensors and the types of scales differ."""

    MODELOPT = "modelopt"
    FINE_GRAINED_FP8 = "fp8"
    COMPRESSED_TENSORS = "compressed-tensors"


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
    """The formats of a checkpoint's linears: by name in `modules`, by `targets`, else `default`.

    `targets` are patterns with a format each, of which the first counts. `excluded` modules have
    none: names, which cover what is inside of them, and patterns with `*`. `kv_cache` is "fp8" if
    keys and values are stored so. `mxfp4` concerns fused experts only. An unquantized checkpoint
    has no format anywhere. `doubtful` are exclusions that not every description has, and
    `unread_method` may be left over: `settle_quantization` decides both.
    `stored_under`: in exclusions, a module's name may begin with the first instead of the second.
    `layout` says under which names the tensors are stored.
    """

    default: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    kv_cache: str | None = None
    mxfp4: bool = False
    doubtful: tuple[str, ...] = ()
    unread_method: UnreadMethod | None = None
    stored_under: tuple[str, str] | None = None
    layout: Layout = Layout.MODELOPT
    targets: tuple[tuple[str, str], ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Tell whether any linear can have a format."""
        return bool(self.names) or self.mxfp4

    @property
    def names(self) -> set[str]:
        """Return the names of all formats that linears have."""
        stated = (self.default, *self.modules.values(), *(name for _, name in self.targets))
        return {name for name in stated if name}

    def format_of(self, module: str) -> WeightFormat | None:
        """Return the format of the linear `module`, None if it is not quantized."""
        name = self.modules.get(module)
        if name is None and self.excluded_by(module) is None:
            name = self._target_format(module) or self.default
        return LINEAR_FORMATS[name] if name else None

    def _target_format(self, module: str) -> str | None:
        return next((fmt for row, fmt in self.targets if self.covers(row, module)), None)

    def format_of_experts(self, name: str) -> WeightFormat | None:
        """Return the format of the fused experts `name`, None if they are not quantized."""
        return MXFP4 if self.mxfp4 and self.excluded_by(name) is None else None

    def excluded_by(self, module: str) -> str | None:
        """Return an entry of `excluded` that covers the module, under either of its names."""
        patterns, any_pattern, names = self._exclusions
        for name in self._names_of(module):
            inside_of = name
            while inside_of:
                if inside_of in names:
                    return inside_of
                inside_of = inside_of.rpartition(".")[0]
            if any_pattern is not None and any_pattern.match(name):
                return next(row for row in patterns if fnmatchcase(name, row))
        return None

    def covers(self, pattern: str, module: str) -> bool:
        """Tell whether a pattern covers a module under either of its names."""
        return any(covers(pattern, name) for name in self._names_of(module))

    def _names_of(self, module: str) -> tuple[str, ...]:
        """Return a module's name, and the one that it has in the files if that is another."""
        if self.stored_under is None:
            return (module,)
        stored, ours = self.stored_under
        if not module.startswith(ours):
            return (module,)
        return module, stored + module.removeprefix(ours)

    @cached_property
    def _exclusions(self) -> tuple[tuple[str, ...], re.Pattern[str] | None, frozenset[str]]:
        """Return the patterns of `excluded`, one expression of them all, and the names.

        Names are looked up, not tried. A model may have 100,000 linears, and patterns by layer.
        """
        patterns = tuple(filter(_is_pattern, self.excluded))
        names = frozenset(self.excluded) - set(patterns)
        if not patterns:
            return patterns, None, names
        return patterns, re.compile("|".join(map(translate, patterns))), names


def algos_of(formats: Iterable[WeightFormat]) -> str:
    """Join the names of some formats, each once."""
    return ", ".join(dict.fromkeys(fmt.algo for fmt in formats))


def covers(pattern: str, module: str) -> bool:
    """Tell whether an exclusion covers a module: a name, or a pattern with `*`."""
    if _is_pattern(pattern):
        return fnmatchcase(module, pattern)
    return module == pattern or module.startswith(f"{pattern}.")


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text
