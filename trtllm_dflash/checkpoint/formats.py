"""How a checkpoint's linears are quantized: ModelOpt's two files, read once, compared and frozen.

ModelOpt says it in hf_quant_config.json and again, spelled differently, in config.json's
`quantization_config`; engines differ in which they read. Both are read here, and where both are
present they must say the same. Only formats that can be built get past this file. What is refused
is refused by its name: loaded under the wrong format, a weight is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from trtllm_dflash.errors import ConfigError
from trtllm_dflash.hardware.archs import ARCHS, archs_with
from trtllm_dflash.models.base import REQUANTIZE
from trtllm_dflash.models.hf_config import HfReader, quote

HF_QUANT_CONFIG = "hf_quant_config.json"
NVFP4_GROUP_SIZE = (
    16  # elements that share a scale in NVFP4: the only size that Blackwell multiplies
)
MAX_PATTERNS = 4096  # of excluded modules; each is tried on every linear


@dataclass(frozen=True)
class WeightFormat:
    """How one linear is stored and computed. `archs` are those that have the arithmetic; the CPU
    engine emulates it.
    """

    name: str
    algo: str  # ModelOpt's name of it
    meaning: str
    group_size: int | None  # elements along `in` that share a block scale; None: one scale a tensor
    has_input_scale: bool  # activations are quantized too
    archs: tuple[str, ...]
    hardware: str

    def weight_bits(self) -> float:
        """Bits that a weight takes, its share of block scales included."""
        return 8.0 if self.group_size is None else 4.0 + 8.0 / self.group_size


FORMATS: Mapping[str, WeightFormat] = {
    fmt.name: fmt
    for fmt in (
        WeightFormat(
            "fp8", "FP8", "E4M3 weights and activations, a scale each", None, True,
            archs_with("fp8"), "sm89 (Ada), sm90 (Hopper) and Blackwell",
        ),
        WeightFormat(
            "nvfp4", "NVFP4", "4-bit weights and activations in blocks of 16", NVFP4_GROUP_SIZE, True,
            archs_with("nvfp4"), "Blackwell",
        ),
        WeightFormat(
            "w4a16_nvfp4", "W4A16_NVFP4", "4-bit weights in blocks of 16, activations as they are", NVFP4_GROUP_SIZE, False,
            archs_with("w4a16_nvfp4"), "Blackwell",
        ),
    )
}  # fmt: skip
# Not one of a linear: only gpt-oss has it, for its experts, and every arch can have the numbers.
MXFP4 = WeightFormat(
    "mxfp4", "MXFP4", "4-bit weights of experts in blocks of 32 that share a power of two, activations as they are",
    32, False, tuple(ARCHS), "every GPU",
)  # fmt: skip
_BY_ALGO = {fmt.algo: fmt.name for fmt in FORMATS.values()}
_MIXED = "MIXED_PRECISION"

_AWQ = "its weights are meant for inputs that are rescaled per channel (pre_quant_scale)"
_INTEGER = "its weights are integers, and only E4M3 and E2M1 weights are built"
# ModelOpt's names, in capitals -> why an engine of it cannot be built.
_REFUSED_ALGOS: Mapping[str, str] = {
    "MXFP4": "its blocks of 32 share a power of two; NVFP4 has blocks of 16",
    "MXFP8": "its blocks of 32 share a power of two; FP8 has one scale a tensor",
    "W4A8_MXFP4_FP8": "4-bit weights with 8-bit activations have no kernel here",
    "W4A8_NVFP4_FP8": "4-bit weights with 8-bit activations have no kernel here",
    "W4A8_AWQ": _AWQ,
    "W4A16_AWQ": _AWQ,
    "INT4_AWQ": _AWQ,
    "NVFP4_AWQ": _AWQ,
    "NVFP4_SVD": "it adds a low-rank matrix to every linear",
    "NVFP4_SVDQUANT": "it adds a low-rank matrix to every linear",
    "FP8_PB_WO": "its scales belong to blocks of 128 x 128",
    "FP8_PB_REAL": "its scales belong to blocks of 128 x 128",
    "FP8_PER_CHANNEL_PER_TOKEN": (
        "its scales belong to rows and tokens, and one scale a tensor is built"
    ),
    "FP8_PC_PT": "its scales belong to rows and tokens, and one scale a tensor is built",
    "W8A16": _INTEGER,
    "W8A8_SQ_PER_CHANNEL": _INTEGER,
    "INT8_SQ": _INTEGER,
    "INT8_WO": _INTEGER,
    "W4A16_GPTQ": _INTEGER,
}
_KV_ALGOS: Mapping[str, str] = {"FP8": "fp8"}


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint says of its linears: `modules` by full name first, then `excluded`, then
    `default`.

    `excluded` are module names, which cover what is inside of them, and patterns with `*`.
    `kv_cache` is "fp8" if keys and values are to be that. `mxfp4` is about experts that are one
    tensor, and nothing else. An unquantized checkpoint has no format anywhere.
    """

    default: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    kv_cache: str | None = None
    mxfp4: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether any linear can have a format."""
        return self.default is not None or bool(self.modules) or self.mxfp4

    def format_of(self, module: str) -> WeightFormat | None:
        """The format of the linear `module`, None if it is not quantized."""
        name = self.modules.get(module)
        if name is None and self.default is not None and self.excluded_by(module) is None:
            name = self.default
        return FORMATS[name] if name else None

    def format_of_experts(self, name: str) -> WeightFormat | None:
        """The format of the tensor `name` that holds all experts of a layer, None if it is not
        quantized.
        """
        return MXFP4 if self.mxfp4 and self.excluded_by(name) is None else None

    def excluded_by(self, module: str) -> str | None:
        """The first entry of `excluded` that covers the module."""
        return next((pattern for pattern in self.excluded if _covers(pattern, module)), None)


def read_quantization(
    config_json: dict[str, Any], hf_quant_config: dict[str, Any] | None, where: str
) -> Quantization:
    """Read both files' quantization; none in both is an unquantized checkpoint.

    Raises: ConfigError: for a format that cannot be built, by its name, and for two files that
    contradict each other.
    """
    readings: dict[str, Quantization] = {}
    if hf_quant_config is not None:
        name = f"{where} ({HF_QUANT_CONFIG})"
        readings[HF_QUANT_CONFIG] = _read_original(HfReader(hf_quant_config, name))
    section = HfReader(config_json, where).section("quantization_config")
    if section is not None and section.data:
        readings["config.json"] = _read_flat(section)
    if len(readings) == 2:
        first, second = readings.values()
        _require_same(first, second, tuple(readings), where)
    return next(iter(readings.values()), Quantization())


def _read_original(reader: HfReader) -> Quantization:
    """hf_quant_config.json: everything in `quantization`."""
    section = reader.section("quantization")
    if section is None:
        reader.fail("quantization", "is missing. It has no safe default; add it.")
    return _read_algo(section, excluded="exclude_modules")


def _read_flat(reader: HfReader) -> Quantization:
    """config.json's quantization_config; an exported drafter may have hf_quant_config.json's layout
    in there.
    """
    if reader.get("quant_method") == MXFP4.name:
        return Quantization(excluded=_read_patterns(reader, "modules_to_not_convert"), mxfp4=True)
    _refuse_methods(reader)
    if reader.get("quantization") is not None:
        return _read_original(reader)
    groups = reader.section("config_groups")
    if (
        reader.get("quant_algo") is None
        and groups is None
        and reader.get("kv_cache_scheme") is None
    ):
        reader.fail(
            "quant_algo",
            "is missing, and so are config_groups: nothing says how weights are stored. Add it.",
        )
    if groups is None:
        return _read_algo(reader, excluded="ignore")
    if reader.get("quant_algo") is None:
        return _read_groups(reader, groups)
    by_algo = _read_algo(
        reader, excluded="ignore"
    )  # first: it is refused by a name, groups by their numbers
    _require_same(
        by_algo, _read_groups(reader, groups), ("quant_algo", "config_groups"), reader.where
    )
    return by_algo


def _read_algo(reader: HfReader, *, excluded: str) -> Quantization:
    """The layout around `quant_algo`, which both files share but for the name of the exclusions."""
    algo = reader.read(str, "quant_algo", default=None)
    layers = reader.section("quantized_layers")
    default, modules = None, {}
    if algo == _MIXED:
        if layers is None or not layers.data:
            reader.fail(
                "quantized_layers",
                f"is missing, and quant_algo {_MIXED} needs it: no layer has a format.",
            )
        modules = {name: _format_of_layer(layers, name) for name in layers.data}
    elif algo is not None:
        default = _format_of_algo(reader, algo)
    return Quantization(default, modules, _read_patterns(reader, excluded), _read_kv_cache(reader))


def _format_of_layer(layers: HfReader, name: str) -> str:
    value = layers.data[name]
    if not isinstance(value, dict):
        layers.fail(name, f"is {quote(value)}, expected an object.")
    # Not `section`: a module's name has dots of its own.
    reader = HfReader(value, layers.where, prefix=f"{layers.prefix}{name}.")
    return _format_of_algo(reader, reader.read(str, "quant_algo"))


def _format_of_algo(reader: HfReader, algo: str) -> str:
    name = _BY_ALGO.get(algo)
    if name is None:
        reason = _REFUSED_ALGOS.get(algo.upper(), f"it is none of {', '.join(_BY_ALGO)}")
        reader.fail(
            "quant_algo", f"is {quote(algo)}, which cannot be built: {reason}. {REQUANTIZE}"
        )
    if reader.read(bool, "pre_quant_scale", default=False):
        reader.fail("pre_quant_scale", f"is true, which cannot be built: {_AWQ}. {REQUANTIZE}")
    _check_group_size(reader, FORMATS[name])
    return name


def _read_groups(reader: HfReader, groups: HfReader) -> Quantization:
    default, modules = None, dict[str, str]()
    for key in groups.data:
        group = groups.section(key)
        if group is None:
            groups.fail(key, "is empty. Remove it.")
        name = _format_of_group(group)
        for target in group.read_list(str, "targets", default=("Linear",)):
            if target != "Linear":
                known = modules.setdefault(target, name)
            else:
                known = default = default or name
            if known != name:
                group.fail(
                    "targets",
                    f"contains {quote(target)}, which another group stores as {known}. Drop one.",
                )
    return Quantization(default, modules, _read_patterns(reader, "ignore"), _read_kv_cache(reader))


_Numbers = tuple[str, int] | None
_BY_NUMBERS: Mapping[tuple[_Numbers, _Numbers], str] = {
    (("float", 8), ("float", 8)): "fp8",
    (("float", 4), ("float", 4)): "nvfp4",
    (("float", 4), None): "w4a16_nvfp4",
}


def _format_of_group(group: HfReader) -> str:
    """A format by its numbers: bits, type, group size and who has one scale for what."""
    if group.get("pre_quant_scale") is True:
        group.fail("pre_quant_scale", f"is true, which cannot be built: {_AWQ}. {REQUANTIZE}")
    weights, inputs = (_numbers_of(group, name) for name in ("weights", "input_activations"))
    name = _BY_NUMBERS.get((weights, inputs))
    if name is None:
        group.fail(
            "weights",
            f"and input_activations are {_in_words(weights)} and {_in_words(inputs)}, which cannot"
            f" be built: that is none of {', '.join(_BY_ALGO)}. {REQUANTIZE}",
        )
    for part in ("weights", "input_activations"):
        section = group.section(part)
        if section is not None:
            _check_group_size(section, FORMATS[name])
    return name


def _numbers_of(group: HfReader, name: str) -> _Numbers:
    section = group.section(name)
    if section is None:
        return None
    strategy = section.read(str, "strategy", default="tensor")
    if strategy not in ("tensor", "group", "tensor_group"):
        section.fail(
            "strategy",
            f"is {quote(strategy)}, which cannot be built: one scale a tensor is. {REQUANTIZE}",
        )
    if section.read(bool, "dynamic", default=False):
        section.fail(
            "dynamic",
            f"is true, and only scales that are in the checkpoint are built. {REQUANTIZE}",
        )
    return section.read(str, "type"), section.read(int, "num_bits")


def _in_words(numbers: _Numbers) -> str:
    return f"{numbers[1]}-bit {numbers[0]}" if numbers else "unquantized"


def _check_group_size(reader: HfReader, fmt: WeightFormat) -> None:
    size = reader.read(int, "group_size", default=None)
    if fmt.group_size is None and size:
        reader.fail("group_size", f"is {size}, but {fmt.algo} has one scale a tensor. {REQUANTIZE}")
    if fmt.group_size is not None and size not in (None, fmt.group_size):
        reader.fail(
            "group_size",
            f"is {size}, and only blocks of {fmt.group_size} can be built. {REQUANTIZE}",
        )


def _refuse_methods(reader: HfReader) -> None:
    method = reader.read(str, "quant_method", default="modelopt")
    if not method.startswith("modelopt"):
        reader.fail(
            "quant_method",
            f"is {quote(method)}, and quantized checkpoints are read as ModelOpt writes them:"
            f" others store other scales. {REQUANTIZE}",
        )


def _read_patterns(reader: HfReader, name: str) -> tuple[str, ...]:
    patterns = reader.read_list(str, name, default=())
    if len(patterns) > MAX_PATTERNS:
        reader.fail(name, f"has {len(patterns)} entries, expected at most {MAX_PATTERNS}.")
    for pattern in patterns:
        if pattern.startswith("re:"):
            reader.fail(
                name,
                f"contains {quote(pattern)}: regular expressions are not read. Write names, or x.*",
            )
    return tuple(sorted(set(patterns)))


def _read_kv_cache(reader: HfReader) -> str | None:
    """`kv_cache_quant_algo` is a name; `kv_cache_scheme` is an object, or a name for what has no
    numbers.
    """
    if isinstance(reader.get("kv_cache_scheme"), dict):
        numbers = _numbers_of(reader, "kv_cache_scheme")
        if numbers != ("float", 8):
            reader.fail(
                "kv_cache_scheme",
                f"is {_in_words(numbers)}, and caches can be 8-bit float. Remove it.",
            )
        return "fp8"
    algo = reader.read(str, "kv_cache_quant_algo", "kv_cache_scheme", default=None)
    if algo is not None and algo not in _KV_ALGOS:
        reader.fail(
            "kv_cache_quant_algo",
            f"is {quote(algo)}, and caches can be quantized to {', '.join(_KV_ALGOS)}. Export"
            " without it.",
        )
    return _KV_ALGOS[algo] if algo else None


def _require_same(
    first: Quantization, second: Quantization, names: tuple[str, ...], where: str
) -> None:
    for key in ("default", "modules", "excluded", "kv_cache"):
        ours, theirs = getattr(first, key), getattr(second, key)
        if ours != theirs:
            raise ConfigError(
                f"{where}: {names[0]} and {names[1]} contradict each other about {_MEANINGS[key]}:"
                f" {_difference(ours, theirs)}. Engines differ in which one they read; get an"
                " intact copy, or make them agree."
            )


_MEANINGS = {
    "default": "the format",
    "modules": "the formats of single modules",
    "excluded": "the excluded modules",
    "kv_cache": "the type of the caches",
}


def _difference(first: Any, second: Any) -> str:
    """Both values; of collections only what differs."""
    if isinstance(first, tuple):
        return (
            f"{quote(sorted(set(first) - set(second)))} against"
            f" {quote(sorted(set(second) - set(first)))}"
        )
    if isinstance(first, Mapping):
        names = sorted(
            name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
        )
        return f"{names[0]} is {quote(first.get(names[0]))} against {quote(second.get(names[0]))}"
    return f"{quote(first)} against {quote(second)}"


def _covers(pattern: str, module: str) -> bool:
    if "*" in pattern or "?" in pattern:
        return fnmatchcase(module, pattern)
    return module == pattern or module.startswith(f"{pattern}.")


def algos_of(formats: Iterable[WeightFormat]) -> str:
    """The names of some formats, each once, as ModelOpt writes them."""
    return ", ".join(dict.fromkeys(fmt.algo for fmt in formats))
