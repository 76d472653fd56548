"""The masks of a drafter's layers: causal inside the block or not, and windows."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from trtllm_dflash.models.drafter_keys import either
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.windows import FULL, SLIDING, read_layer_types

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DraftLayerConfig:
    """One drafter layer's mask: `causal` inside the block, or bidirectional.

    A query at position p sees the key at k if p - k < window and, where not causal, k - p < window.
    A window of 0 hides nothing.
    """

    causal: bool
    window: int


def read_masks(reader: HfReader, num_layers: int) -> tuple[DraftLayerConfig, ...]:
    """Resolve each layer's mask.

    `is_causal` decides, else `dflash_config.causal`, else a layer is causal where it slides.
    """
    explicit = _read_causal(reader)
    sliding = _read_sliding(reader, num_layers, has_causal_key=explicit is not None)
    window = _read_window(reader) if any(sliding) else 0
    masks = tuple(
        DraftLayerConfig(
            causal=slides if explicit is None else explicit, window=window if slides else 0
        )
        for slides in sliding
    )
    _LOG.debug(
        "%s: drafter masks, first layer first: %s", reader.where, "; ".join(map(str, masks))
    )
    return masks


def _read_sliding(
    reader: HfReader, num_layers: int, *, has_causal_key: bool
) -> tuple[bool, ...]:
    use_swa = reader.read(bool, *either("use_swa"), default=False)
    if reader.get("layer_types") is None:
        if reader.read(bool, "use_sliding_window", default=False) and not use_swa:
            reader.fail(
                "use_sliding_window",
                "is true but layer_types is missing, so which layers slide is open. Add it.",
            )
        layer_types: tuple[str, ...] = (FULL,) * num_layers
    else:
        layer_types = read_layer_types(reader, num_layers, "a DFlash drafter")
    sliding = tuple(layer_type == SLIDING for layer_type in layer_types)
    if not use_swa or any(sliding):
        return sliding
    # ModelOpt writes use_swa beside all-full layer types and means a window on every layer,
    # whatever their causality.
    if not has_causal_key:
        reader.fail(
            "dflash_config.use_swa",
            "is true for full_attention layers, but no key says if they are causal. Add is_causal.",
        )
    return (True,) * num_layers


def _read_causal(reader: HfReader) -> bool | None:
    top = reader.read(bool, "is_causal", default=None)
    nested = reader.read(bool, "dflash_config.causal", default=None)
    if top is not None and nested is not None and top != nested:
        _LOG.warning(
            "%s: is_causal is %s but dflash_config.causal is %s; is_causal is used, other engines"
            " may read the other.",
            reader.where,
            top,
            nested,
        )
    return nested if top is None else top


def _read_window(reader: HfReader) -> int:
    """Read the window of all sliding layers; `swa_window_size` and `sliding_window` must agree."""
    paths = (*either("swa_window_size"), "sliding_window")
    is_exported = any(reader.get(path) is not None for path in paths[:2])
    if not is_exported and not reader.read(bool, "use_sliding_window", default=True):
        reader.fail(
            "use_sliding_window",
            "is false beside sliding_attention layers; engines differ on that. Set it to true.",
        )
    return reader.read(int, *paths, low=1)
