"""Reading of compressed-tensors' configuration, which llm-compressor writes for vLLM.

| weights | activations | format here |
|---|---|---|
| 8-bit float, one scale a tensor | 8-bit float, a scale in the checkpoint | FP8 |
| the same | others, or as they are | W8A16_FP8 |
| 8-bit float, a scale a row ("channel") | any | W8A16_FP8 |
| 8-bit float, blocks of 128 x 128 | any | FP8_BLOCK |
| 4-bit float, groups of 16 | 4-bit float, a global scale in the checkpoint | NVFP4 |
| the same | others, or as they are | W4A16_NVFP4 |

Activations that would be quantized while the engine runs are left as they are: nearer to the
original than that checkpoint's own engines. All else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from trtllm_dflash.checkpoint.formats import (
    FP8_BLOCK,
    FP8_BLOCK_SIZE,
    NVFP4_GROUP_SIZE,
    W8A16_FP8,
    Layout,
    Quantization,
)
from trtllm_dflash.models.base import REQUANTIZE
from trtllm_dflash.models.hf_config import HfReader, quote

SIBLING = f"Take its FP8 or NVFP4 sibling, or {REQUANTIZE[0].lower()}{REQUANTIZE[1:]}"
# Names of what is not read -> why.
REFUSED_FORMATS: Mapping[str, str] = {
    "pack-quantized": "its weights are integers, and only E4M3 and E2M1 weights are built",
    "int-quantized": "its weights are integers, and only E4M3 and E2M1 weights are built",
    "marlin-24": "its weights are sparse, and are not unpacked",
    "sparse-bitmask": "its weights are sparse, and are not unpacked",
    "sparse-24-bitmask": "its weights are sparse, and are not unpacked",
    "mxfp4-pack-quantized": "its blocks of 32 share a power of two; NVFP4 has blocks of 16",
    "mxfp6-pack-quantized": "there is no arithmetic for 6 bits",
    "mxfp8-quantized": "its blocks of 32 share a power of two; FP8 has a scale a tensor or row",
}
ReadPatterns = Callable[[HfReader, str, tuple[str, ...]], tuple[str, ...]]


def read_compressed_tensors(reader: HfReader, read_patterns: ReadPatterns) -> Quantization:
    """Read a section of that method; `read_patterns` turns entries into names and patterns.

    Raises: ConfigError: for what cannot be built, by its name.
    """
    _check_transforms(reader)
    _check_format(reader)
    found = Quantization(
        excluded=read_patterns(reader, "ignore", reader.read_list(str, "ignore", default=())),
        kv_cache=_read_kv_cache(reader),
        layout=Layout.COMPRESSED_TENSORS,
    )
    groups = reader.section("config_groups")
    if not (groups and groups.data) and found.kv_cache is None:
        reader.fail("config_groups", "is missing: nothing says how weights are stored. Add it.")
    for key in groups.data if groups else ():
        group = groups.section(key) if groups else None
        if group is None:
            reader.fail(f"config_groups.{key}", "is empty. Remove it.")
        found = _with_group(found, group, read_patterns)
    return found


def _with_group(
    known: Quantization, group: HfReader, read_patterns: ReadPatterns
) -> Quantization:
    """Return the quantization with one more group's targets."""
    name = _read_group(group)
    targets = group.read_list(str, "targets", default=("Linear",))
    for target in read_patterns(group, "targets", targets):
        if target != "Linear":
            known = replace(known, targets=(*known.targets, (target, name)))
        elif known.default in (None, name):
            known = replace(known, default=name)
        else:
            group.fail(
                "targets", f'contains "Linear", which another group stores as {known.default}.'
            )
    return known


def _check_transforms(reader: HfReader) -> None:
    """Refuse weights that are stored sparsely, or turned by a matrix."""
    sparsity = reader.section("sparsity_config")
    if sparsity is not None and sparsity.read(str, "format", default="dense") != "dense":
        sparsity.fail(
            "format",
            f"is {quote(sparsity.get('format'))}, which is not read: weights that are stored"
            f" without their zeros are not unpacked. {SIBLING}",
        )
    transforms = reader.section("transform_config")
    if transforms is not None and transforms.get("config_groups"):
        transforms.fail(
            "config_groups",
            "is not empty, which cannot be built: the weights are meant for inputs that a matrix"
            f" has turned. {SIBLING}",
        )


def _check_format(reader: HfReader) -> None:
    found = reader.read(str, "format", default="dense")
    if found in REFUSED_FORMATS:
        reader.fail(
            "format",
            f"is {quote(found)}, which cannot be built: {REFUSED_FORMATS[found]}. {SIBLING}",
        )


def _read_group(group: HfReader) -> str:
    """Return the name of a group's format."""
    _check_format(group)
    weights = group.section("weights")
    if weights is None:
        group.fail("weights", "is missing: nothing says how weights are stored. Add it.")
    if not weights.read(bool, "symmetric", default=True):
        weights.fail(
            "symmetric", f"is false, which cannot be built: no code has a zero point. {SIBLING}"
        )
    if weights.get("dynamic") not in (None, False):
        weights.fail("dynamic", f"is true, and weights have their scales stored. {SIBLING}")
    number, bits = weights.read(str, "type", default="int"), weights.read(int, "num_bits")
    strategy = weights.read(str, "strategy", default="tensor")
    if number == "float" and bits == 8 and strategy in ("tensor", "channel", "block"):
        return _read_fp8(weights, group.section("input_activations"), strategy)
    size = weights.read(int, "group_size", default=None)
    if (number, bits, size) != ("float", 4, NVFP4_GROUP_SIZE):
        groups = f", groups of {size}" if size and size > 0 else ""
        weights.fail(
            "num_bits",
            f"is {bits}, of {quote(number)}, strategy {quote(strategy)}{groups}, which cannot be"
            " built: only E4M3 weights with a scale a tensor, row or block, and NVFP4's are."
            f" {SIBLING}",
        )
    return _read_fp4(group.section("input_activations"))


def _read_fp8(weights: HfReader, inputs: HfReader | None, strategy: str) -> str:
    if strategy == "block":
        usual = (FP8_BLOCK_SIZE, FP8_BLOCK_SIZE)
        if weights.read_list(int, "block_structure") != usual:
            found = quote(weights.get("block_structure"))
            weights.fail(
                "block_structure",
                f"is {found}, and only blocks of {FP8_BLOCK_SIZE} x {FP8_BLOCK_SIZE} are read."
                f" {SIBLING}",
            )
        return FP8_BLOCK.name
    is_static = (
        inputs is not None
        and (inputs.get("type"), inputs.get("num_bits")) == ("float", 8)
        and inputs.get("dynamic") in (None, False)
        and inputs.get("strategy") in (None, "tensor")
    )
    return "fp8" if is_static and strategy == "tensor" else W8A16_FP8.name


def _read_fp4(inputs: HfReader | None) -> str:
    """Return NVFP4, of weights alone where activations have no global scale in the checkpoint."""
    is_nvfp4 = (
        inputs is not None
        and (inputs.get("type"), inputs.get("num_bits")) == ("float", 4)
        and inputs.get("dynamic") in (None, False, "local")
    )
    return "nvfp4" if is_nvfp4 else "w4a16_nvfp4"


def _read_kv_cache(reader: HfReader) -> str | None:
    scheme = reader.section("kv_cache_scheme")
    if scheme is None:
        return None
    number, bits = scheme.read(str, "type", default="int"), scheme.read(int, "num_bits")
    strategy = scheme.read(str, "strategy", default="tensor")
    is_static = scheme.get("dynamic") in (None, False)
    if (number, bits, strategy) != ("float", 8, "tensor") or not is_static:
        when = "static" if is_static else "dynamic"
        reader.fail(
            "kv_cache_scheme",
            f"is {bits}-bit {number}, {strategy}, {when}, and caches can be 8-bit float with one"
            " scale a layer that is in the checkpoint. Remove it.",
        )
    return "fp8"
