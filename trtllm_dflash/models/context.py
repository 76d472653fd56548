"""How long a sequence a target may have: one answer for every command.

A model was trained for `max_position_embeddings`. RoPE scaling reaches further, and some documented
configurations leave that key as it was: the larger number counts, as vLLM, SGLang and TensorRT-LLM
take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtllm_dflash.models.hf_config import HfReader

_SECTIONS = ("", "text_config.")  # models with images keep the decoder's keys in the second


@dataclass(frozen=True)
class ContextLimit:
    """The positions that a sequence may have, and why no more, for people."""

    tokens: int
    reason: str


def context_limit(
    positions: int, rope_type: str, *, factor: float, original: int
) -> ContextLimit:
    """Return the limit of a model with `positions` trained ones and this RoPE scaling.

    `original` is the length before scaling, 0 where none is stated. llama3 states scaled positions,
    and dynamic RoPE changes all of them beyond its positions.
    """
    stated = f"max_position_embeddings {positions}"
    if rope_type == "dynamic":
        return ContextLimit(
            positions,
            f"the target's {stated}: beyond it, dynamic RoPE changes all positions with the length,"
            " and a cache cannot follow",
        )
    length, source = positions, stated
    if "yarn" in rope_type and original:
        length, source = original, f"original_max_position_embeddings {original}"
    scales = rope_type == "linear" or "yarn" in rope_type
    reach = int(factor * length) if scales else 0
    if reach > positions:
        return ContextLimit(
            reach, f"the reach of the target's {rope_type} RoPE: factor {factor:g} x {source}"
        )
    scaled = "" if rope_type == "default" else f", with {rope_type} RoPE"
    return ContextLimit(
        positions, f"the target's {stated}{scaled}: it was never trained further"
    )


def read_context_limit(reader: HfReader) -> ContextLimit | None:
    """Return the limit that any target's config.json states, supported or not; None if none.

    Raises: ConfigError: for values of wrong types.
    """
    positions = _read(reader, int, "max_position_embeddings")
    if positions is None:
        return None
    scaling = _scaling(reader)
    if scaling is None:
        return context_limit(positions, "default", factor=1.0, original=0)
    rope_type = scaling.read(str, "rope_type", "type", default="default")
    original = scaling.read(int, "original_max_position_embeddings", default=0, low=1)
    original = original or _read(reader, int, "original_max_position_embeddings") or 0
    factor = scaling.read(float, "factor", default=0.0, low=0.0)
    return context_limit(positions, rope_type, factor=factor, original=original)


def _read(reader: HfReader, value_type: type[int], key: str) -> int | None:
    return reader.read(value_type, *(f"{part}{key}" for part in _SECTIONS), default=None, low=1)


def _scaling(reader: HfReader) -> HfReader | None:
    """Return RoPE's parameters under the first key that has any."""
    for section in _SECTIONS:
        for key in ("rope_parameters", "rope_scaling"):
            found: Any = reader.get(f"{section}{key}")
            if isinstance(found, dict) and found:
                return reader.section(f"{section}{key}")
    return None
