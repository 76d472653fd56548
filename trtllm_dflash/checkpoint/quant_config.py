"""Reading of ModelOpt's quantization settings, from both files that may have them.

ModelOpt writes them into hf_quant_config.json and again, spelled differently, into config.json's
`quantization_config`; engines differ in which they read. Here both are read, and they must agree.
Formats that cannot be built are refused by name: under the wrong format, a weight is noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_dflash.checkpoint.config_groups import (
    AWQ,
    check_group_size,
    describe_element_type,
    read_element_type,
    read_group_format,
)
from trtllm_dflash.checkpoint.formats import FORMATS, HF_QUANT_CONFIG, MXFP4, Quantization
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.base import REQUANTIZE
from trtllm_dflash.models.hf_config import HfReader, quote

MAX_PATTERNS = 4096  # of excluded modules; each is tried on every linear
_BY_ALGO = {fmt.algo: fmt.name for fmt in FORMATS.values()}
_MIXED = "MIXED_PRECISION"

_INTEGER = "its weights are integers, and only E4M3 and E2M1 weights are built"
# ModelOpt's names, in capitals -> why an engine of it cannot be built.
REFUSED_ALGOS: Mapping[str, str] = {
    "MXFP4": "its blocks of 32 share a power of two; NVFP4 has blocks of 16",
    "MXFP8": "its blocks of 32 share a power of two; FP8 has one scale a tensor",
    "W4A8_MXFP4_FP8": "4-bit weights with 8-bit activations have no kernel here",
    "W4A8_NVFP4_FP8": "4-bit weights with 8-bit activations have no kernel here",
    "W4A8_AWQ": AWQ,
    "W4A16_AWQ": AWQ,
    "INT4_AWQ": AWQ,
    "NVFP4_AWQ": AWQ,
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
_MEANINGS = {
    "default": "the format",
    "modules": "the formats of single modules",
    "excluded": "the excluded modules",
    "kv_cache": "the type of the caches",
}


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
    """Read hf_quant_config.json, in which everything is in `quantization`."""
    section = reader.section("quantization")
    if section is None:
        reader.fail("quantization", "is missing. It has no safe default; add it.")
    return _read_algo(section, excluded="exclude_modules")


def _read_flat(reader: HfReader) -> Quantization:
    """Read config.json's quantization_config.

    An exported drafter may have hf_quant_config.json's layout in there.
    """
    if reader.get("quant_method") == MXFP4.name:
        return Quantization(
            excluded=_read_patterns(reader, "modules_to_not_convert"), mxfp4=True
        )
    _refuse_methods(reader)
    if reader.get("quantization") is not None:
        return _read_original(reader)
    groups = reader.section("config_groups")
    keys = ("quant_algo", "config_groups", "kv_cache_scheme")
    if all(reader.get(key) is None for key in keys):
        reader.fail(
            "quant_algo",
            "is missing, and so are config_groups: nothing says how weights are stored. Add it.",
        )
    if groups is None:
        return _read_algo(reader, excluded="ignore")
    if reader.get("quant_algo") is None:
        return _read_groups(reader, groups)
    # quant_algo first: it is refused by name, groups by their element types.
    by_algo = _read_algo(reader, excluded="ignore")
    names = ("quant_algo", "config_groups")
    _require_same(by_algo, _read_groups(reader, groups), names, reader.where)
    return by_algo


def _read_algo(reader: HfReader, *, excluded: str) -> Quantization:
    """Read the layout around `quant_algo`; only the name of the exclusions differs by file."""
    algo = reader.read(str, "quant_algo", default=None)
    layers = reader.section("quantized_layers")
    default = None
    modules = {}
    if algo == _MIXED:
        if layers is None or not layers.data:
            reader.fail(
                "quantized_layers",
                f"is missing, and quant_algo {_MIXED} needs it: no layer has a format.",
            )
        modules = {name: _format_of_layer(layers, name) for name in layers.data}
    elif algo is not None:
        default = _format_of_algo(reader, algo)
    return Quantization(
        default, modules, _read_patterns(reader, excluded), _read_kv_cache(reader)
    )


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
        reason = REFUSED_ALGOS.get(algo.upper(), f"it is none of {', '.join(_BY_ALGO)}")
        reader.fail(
            "quant_algo", f"is {quote(algo)}, which cannot be built: {reason}. {REQUANTIZE}"
        )
    if reader.read(bool, "pre_quant_scale", default=False):
        reader.fail("pre_quant_scale", f"is true, which cannot be built: {AWQ}. {REQUANTIZE}")
    check_group_size(reader, FORMATS[name])
    return name


def _read_groups(reader: HfReader, groups: HfReader) -> Quantization:
    default = None
    modules = dict[str, str]()
    for key in groups.data:
        group = groups.section(key)
        if group is None:
            groups.fail(key, "is empty. Remove it.")
        name = read_group_format(group)
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
    return Quantization(
        default, modules, _read_patterns(reader, "ignore"), _read_kv_cache(reader)
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
    """Read the type of the caches: `kv_cache_scheme` as an object, or either key as a name."""
    if isinstance(reader.get("kv_cache_scheme"), dict):
        element_type = read_element_type(reader, "kv_cache_scheme")
        if element_type != ("float", 8):
            found = describe_element_type(element_type)
            problem = f"is {found}, and caches can be 8-bit float. Remove it."
            reader.fail("kv_cache_scheme", problem)
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
        ours = getattr(first, key)
        theirs = getattr(second, key)
        if ours != theirs:
            raise ConfigError(
                f"{where}: {names[0]} and {names[1]} contradict each other about {_MEANINGS[key]}:"
                f" {_difference(ours, theirs)}. Engines differ in which one they read; get an"
                " intact copy, or make them agree."
            )


def _difference(first: Any, second: Any) -> str:
    """Return both values; of collections only what differs."""
    if isinstance(first, tuple):
        return (
            f"{quote(sorted(set(first) - set(second)))} against"
            f" {quote(sorted(set(second) - set(first)))}"
        )
    if isinstance(first, Mapping):
        names = sorted(
            name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
        )
        return (
            f"{names[0]} is {quote(first.get(names[0]))} against {quote(second.get(names[0]))}"
        )
    return f"{quote(first)} against {quote(second)}"
