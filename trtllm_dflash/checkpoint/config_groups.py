"""Reading of `config_groups`: formats that are described by element types and scales."""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_dflash.checkpoint.formats import FORMATS, WeightFormat
from trtllm_dflash.models.base import REQUANTIZE
from trtllm_dflash.models.hf_config import HfReader, quote

AWQ = "its weights are meant for inputs that are rescaled per channel (pre_quant_scale)"

ElementType = tuple[str, int] | None
_BY_ELEMENT_TYPES: Mapping[tuple[ElementType, ElementType], str] = {
    (("float", 8), ("float", 8)): "fp8",
    (("float", 4), ("float", 4)): "nvfp4",
    (("float", 4), None): "w4a16_nvfp4",
}


def read_group_format(group: HfReader) -> str:
    """Return the name of a group's format, found by the element types and scales it states."""
    if group.get("pre_quant_scale") is True:
        group.fail("pre_quant_scale", f"is true, which cannot be built: {AWQ}. {REQUANTIZE}")
    weights, inputs = (
        read_element_type(group, name) for name in ("weights", "input_activations")
    )
    name = _BY_ELEMENT_TYPES.get((weights, inputs))
    if name is None:
        found = f"{describe_element_type(weights)} and {describe_element_type(inputs)}"
        algos = ", ".join(fmt.algo for fmt in FORMATS.values())
        problem = f"are {found}, which cannot be built: that is none of {algos}. {REQUANTIZE}"
        group.fail("weights", f"and input_activations {problem}")
    for part in ("weights", "input_activations"):
        section = group.section(part)
        if section is not None:
            check_group_size(section, FORMATS[name])
    return name


def read_element_type(group: HfReader, name: str) -> ElementType:
    """Read the type and bits of the section `name`, None if it is missing."""
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


def describe_element_type(element_type: ElementType) -> str:
    """Return an element type for people."""
    return f"{element_type[1]}-bit {element_type[0]}" if element_type else "unquantized"


def check_group_size(reader: HfReader, fmt: WeightFormat) -> None:
    """Raise ConfigError if `group_size` is not the format's."""
    size = reader.read(int, "group_size", default=None)
    if fmt.group_size is None and size:
        reader.fail(
            "group_size", f"is {size}, but {fmt.algo} has one scale a tensor. {REQUANTIZE}"
        )
    if fmt.group_size is not None and size not in (None, fmt.group_size):
        reader.fail(
            "group_size",
            f"is {size}, and only blocks of {fmt.group_size} can be built. {REQUANTIZE}",
        )
