"""Reading of a checkpoint's quantization settings, ModelOpt's from both files that may have them.

ModelOpt writes them into hf_quant_config.json and again, spelled differently, into config.json's
`quantization_config`; engines differ in which they read. Here both are read: quant_statements.py
says what they mean together. Hugging Face's FP8 and compressed-tensors have only the second, and
modules of their own. Formats that cannot be built are refused by name: under the wrong format, a
weight is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_dflash.checkpoint.compressed_tensors import SIBLING, read_compressed_tensors
from trtllm_dflash.checkpoint.config_groups import (
    AWQ,
    check_group_size,
    describe_element_type,
    read_element_type,
    read_group_format,
)
from trtllm_dflash.checkpoint.fine_grained_fp8 import read_fine_grained_fp8
from trtllm_dflash.checkpoint.formats import (
    FORMATS,
    FP8_BLOCK,
    HF_QUANT_CONFIG,
    LINEAR_FORMATS,
    MXFP4,
    W8A16_FP8,
    Layout,
    Quantization,
    UnreadMethod,
)
from trtllm_dflash.checkpoint.module_patterns import patterns_of
from trtllm_dflash.checkpoint.quant_statements import Exactness, Statement, combine
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.base import REQUANTIZE
from trtllm_dflash.models.hf_config import HfReader, quote

MAX_PATTERNS = 4096  # of excluded modules; each is tried on every linear
_BY_ALGO = {fmt.algo: fmt.name for fmt in FORMATS.values()}
# In capitals: other names of ModelOpt for what is read as weights alone.
_OF_WEIGHTS: Mapping[str, str] = {
    "FP8_PER_CHANNEL_PER_TOKEN": W8A16_FP8.name,
    "FP8_PC_PT": W8A16_FP8.name,
    "FP8_PB_WO": FP8_BLOCK.name,
}
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
    "FP8_PB_REAL": "its activations have scales of blocks; FP8_PB_WO leaves them as they are",
    "W8A16": _INTEGER,
    "W8A8_SQ_PER_CHANNEL": _INTEGER,
    "INT8_SQ": _INTEGER,
    "INT8_WO": _INTEGER,
    "W4A16_GPTQ": _INTEGER,
}
# Methods of others whose tensors are not read -> why.
REFUSED_METHODS: Mapping[str, str] = {
    "gptq": "its 4-bit weights are integers with zero points, which are not built",
    "awq": "its 4-bit weights are integers with zero points, which are not built",
    "bitsandbytes": "its weights are indices into a table, which are not built",
    "fbgemm_fp8": "its scales are stored for another engine",
    "gguf": "its blocks have scales of their own kinds, which are not built",
}
_KV_ALGOS: Mapping[str, str] = {"FP8": "fp8"}
_SECTIONS = ("quantization_config", "compression_config")  # the second is an older spelling


def read_quantization(
    config_json: dict[str, Any],
    hf_quant_config: dict[str, Any] | None,
    where: str,
    *,
    has_weights: bool = False,
) -> Quantization:
    """Read both files' quantization; none in both is an unquantized checkpoint.

    With `has_weights`, a method that is not read is returned and not raised. It may be left over:
    the caller settles it by the tensors.

    Raises: ConfigError: for a format that cannot be built, by its name, and for two descriptions
    that contradict each other.
    """
    reader = HfReader(config_json, where)
    for key in _SECTIONS:
        section = reader.section(key)
        method = _method(section, key)
        if section is None or method is None:
            continue
        try:
            return _read_method(section, method, hf_quant_config)
        except ConfigError as refusal:
            if not has_weights:
                raise
            path = f"{key}.quant_method" if key == _SECTIONS[0] else key
            return Quantization(unread_method=UnreadMethod(path, method, str(refusal)))
    statements: list[Statement] = []
    if hf_quant_config is not None:
        original = HfReader(hf_quant_config, f"{where} ({HF_QUANT_CONFIG})")
        statements += _read_original(original, HF_QUANT_CONFIG)
    section = reader.section(_SECTIONS[0])
    if section is not None and section.data:
        statements += _read_flat(section)
    return combine(statements, where)


def _method(section: HfReader | None, key: str) -> str | None:
    """Return the method of a section of config.json; None if it is empty or as ModelOpt writes."""
    if section is None or not section.data:
        return None
    default = Layout.MODELOPT if key == _SECTIONS[0] else Layout.COMPRESSED_TENSORS
    name = section.read(str, "quant_method", default=default.value)
    return None if name.startswith(Layout.MODELOPT.value) or name == MXFP4.name else name


def _read_method(
    section: HfReader, method: str, hf_quant_config: dict[str, Any] | None
) -> Quantization:
    """Read a section of another method than ModelOpt's."""
    if method not in (Layout.FINE_GRAINED_FP8.value, Layout.COMPRESSED_TENSORS.value):
        why = REFUSED_METHODS.get(method, "it is none of modelopt, compressed-tensors and fp8")
        section.fail(
            "quant_method", f"is {quote(method)}, which cannot be built: {why}. {SIBLING}"
        )
    if hf_quant_config is not None:
        section.fail(
            "quant_method",
            f"is {quote(method)}, and {HF_QUANT_CONFIG} is there, which ModelOpt writes: one of"
            " them is left over. Get an intact copy of the checkpoint.",
        )
    if method == Layout.COMPRESSED_TENSORS.value:
        return read_compressed_tensors(section, _as_patterns)
    spelled = ("modules_to_not_convert", "ignored_layers")
    stated = section.read_list(str, *spelled, default=None)
    return read_fine_grained_fp8(
        section, None if stated is None else _as_patterns(section, spelled[0], stated)
    )


def _read_original(reader: HfReader, source: str) -> list[Statement]:
    """Read hf_quant_config.json, in which everything is in `quantization`."""
    section = reader.section("quantization")
    if section is None:
        reader.fail("quantization", "is missing. It has no safe default; add it.")
    return list(_read_algo(section, source, excluded="exclude_modules"))


def _read_flat(reader: HfReader) -> list[Statement]:
    """Read config.json's quantization_config.

    An exported drafter may have hf_quant_config.json's layout in there.
    """
    source = "config.json"
    if reader.get("quant_method") == MXFP4.name:
        kept = _read_patterns(reader, "modules_to_not_convert")
        return [Statement(source, Exactness.ALGO, excluded=kept, mxfp4=True)]
    if reader.get("quantization") is not None:
        return _read_original(reader, source)
    groups = reader.section("config_groups")
    keys = ("quant_algo", "config_groups", "kv_cache_scheme", "quantized_layers")
    if all(reader.get(key) is None for key in keys):
        reader.fail(
            "quant_algo",
            "is missing, and so are config_groups: nothing says how weights are stored. Add it, or"
            " remove quantization_config if they are not quantized.",
        )
    statements: list[Statement] = []
    if groups is None or reader.get("quant_algo") is not None or reader.get(keys[-1]):
        # First, since quant_algo is refused by name, groups by their element types.
        statements += _read_algo(reader, source, excluded="ignore")
    if groups is not None:
        statements.append(_read_groups(reader, groups))
    return statements


def _read_algo(reader: HfReader, source: str, *, excluded: str) -> Iterator[Statement]:
    """Read the layout around `quant_algo`; only the name of the exclusions differs by file."""
    algo = reader.read(str, "quant_algo", default=None)
    layers = reader.section("quantized_layers")
    modules = {name: _format_of_layer(layers, name) for name in layers.data} if layers else {}
    lacking = (
        f"{reader.where}: {reader.prefix}quantized_layers is missing, and quant_algo {_MIXED}"
        " needs it: no layer has a format."
    )
    if modules:
        yield Statement(
            f"{source}'s quantized_layers",
            Exactness.LAYERS,
            modules=modules,
            is_complete=algo in (_MIXED, None),
        )
    yield Statement(
        f"{source}'s quant_algo",
        Exactness.ALGO,
        default=None if algo in (_MIXED, None) else _format_of_algo(reader, algo),
        is_complete=algo == _MIXED,
        lacking=lacking if algo == _MIXED and not modules else None,
        excluded=_read_patterns(reader, excluded),
        kv_cache=_read_kv_cache(reader),
    )


def _format_of_layer(layers: HfReader, name: str) -> str:
    value = layers.data[name]
    if not isinstance(value, dict):
        layers.fail(name, f"is {quote(value)}, expected an object.")
    # Not `section`: a module's name has dots of its own.
    reader = HfReader(value, layers.where, prefix=f"{layers.prefix}{name}.")
    return _format_of_algo(reader, reader.read(str, "quant_algo"))


def _format_of_algo(reader: HfReader, algo: str) -> str:
    name = _BY_ALGO.get(algo) or _OF_WEIGHTS.get(algo.upper())
    if name is None:
        reason = REFUSED_ALGOS.get(algo.upper(), f"it is none of {', '.join(_BY_ALGO)}")
        reader.fail(
            "quant_algo", f"is {quote(algo)}, which cannot be built: {reason}. {REQUANTIZE}"
        )
    if reader.read(bool, "pre_quant_scale", default=False):
        reader.fail("pre_quant_scale", f"is true, which cannot be built: {AWQ}. {REQUANTIZE}")
    check_group_size(reader, LINEAR_FORMATS[name])
    return name


def _read_groups(reader: HfReader, groups: HfReader) -> Statement:
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
    return Statement(
        "config_groups",
        Exactness.GROUPS,
        default,
        modules,
        _read_patterns(reader, "ignore"),
        _read_kv_cache(reader),
    )


def _read_patterns(reader: HfReader, name: str) -> tuple[str, ...]:
    return tuple(sorted(_as_patterns(reader, name, reader.read_list(str, name, default=()))))


def _as_patterns(reader: HfReader, name: str, entries: tuple[str, ...]) -> tuple[str, ...]:
    """Return names and patterns of modules; regular expressions ("re:") become patterns."""
    if len(entries) > MAX_PATTERNS:
        reader.fail(name, f"has {len(entries)} entries, expected at most {MAX_PATTERNS}.")
    found = dict[str, None]()
    for entry in entries:
        patterns = [entry]
        if entry.startswith("re:"):
            patterns = patterns_of(entry.removeprefix("re:")) or reader.fail(
                name,
                f"contains {quote(entry)}: of regular expressions, names with .* and (a|b) are"
                " read. Write names, or x.*",
            )
        found |= dict.fromkeys(patterns)
    return tuple(found)


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
