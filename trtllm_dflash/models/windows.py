"""Reading of attention windows: how far back each layer of a target sees; 0 is everything."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.models.hf_config import HfReader, quote

FULL = "full_attention"
SLIDING = "sliding_attention"


def no_windows(reader: HfReader, num_layers: int) -> tuple[int, ...]:
    """Return a window of 0 for each layer; refuse a config.json in which a layer slides."""
    model_type = reader.get("model_type")
    default = (FULL,) * num_layers
    read_layer_types(reader, num_layers, model_type, allowed=(FULL,), default=default)
    return (0,) * num_layers


def read_layer_types(
    reader: HfReader,
    num_layers: int,
    model_type: str,
    *,
    allowed: Sequence[str] = (FULL, SLIDING),
    default: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """Read `layer_types`, one of `allowed` for each layer; without a `default` it is required."""
    if default is None:
        layer_types = reader.read_list(str, "layer_types")
    else:
        layer_types = reader.read_list(str, "layer_types", default=default)
    for index, layer_type in enumerate(layer_types):
        if layer_type not in allowed:
            expected = f"expected {' or '.join(allowed)} in {model_type}"
            reader.fail(f"layer_types[{index}]", f"is {quote(layer_type)}, {expected}.")
    if len(layer_types) != num_layers:
        found = f"has {len(layer_types)} entries"
        reader.fail("layer_types", f"{found}, expected num_hidden_layers = {num_layers}.")
    return layer_types


def windows_of(reader: HfReader, layer_types: Sequence[str]) -> tuple[int, ...]:
    """Return `sliding_window` for the layers that slide, and 0 for the others."""
    if SLIDING not in layer_types:
        return (0,) * len(layer_types)
    window = reader.read(int, "sliding_window", low=1)
    return tuple(window if layer_type == SLIDING else 0 for layer_type in layer_types)
