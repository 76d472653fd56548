"""Rotary position embedding: the cos and sin tables of Hugging Face's static types.

The formulas run in float32, in Hugging Face's order of operations. "Mathematically equal" is not
enough: at position 100,000 a last-bit difference in a frequency is 0.005 rad in the angle.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_dflash.models.context import ContextLimit, context_limit
from trtllm_dflash.models.hf_config import HfReader, quote

Floats = npt.NDArray[np.float32]

_LOG = logging.getLogger(__name__)

_ORIGINAL = "original_max_position_embeddings"
# rope_type -> (required parameters, optional ones). A key outside its row would change the tables,
# so it is refused.
_PARAMETERS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset()),
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
        frozenset({_ORIGINAL}),
    ),
    "yarn": (
        frozenset(),
        frozenset(
            {
                "factor",
                _ORIGINAL,
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            }
        ),
    ),
}
# Types that read the original length; where it is missing, it is max_position_embeddings.
_WITH_ORIGINAL = ("llama3", "yarn")
# Allowed for every type; some yarn configs carry `finetuned`, a remark that nothing reads.
_COMMON_KEYS = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned", _ORIGINAL}
)
# Factors that Hugging Face does not read in a type, though other engines may: 1 changes nothing.
_FACTORS_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "default": ("factor", "attention_factor"),
    "linear": ("attention_factor",),
    "dynamic": ("attention_factor",),
    "llama3": ("attention_factor",),
    "yarn": ("attn_factor", "extrapolation_factor"),
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotate-half RoPE: `theta`, the scaling `rope_type` and its parameters.

    Parameters of other types are unused. `partial_rotary_factor`: the share of a head that is
    rotated, its first dimensions.
    """

    head_dim: int
    theta: float
    rope_type: str = "default"
    factor: float = 0.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    partial_rotary_factor: float = 1.0

    @property
    def rotary_dim(self) -> int:
        """Return how many dimensions of a head are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_hf(
        cls,
        reader: HfReader,
        head_dim: int,
        *,
        default_theta: float | None = None,
        default_partial_factor: float | None = None,
        ignored: Collection[str] = (),
    ) -> RopeConfig:
        """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of transformers 4.

        Where the original length is missing, it is `max_position_embeddings`. A part of the head is
        rotated only where there is a `default_partial_factor`. Keys of `ignored` are not read.
        """
        if head_dim % 2:
            reader.fail(
                "head_dim",
                f"is {head_dim}, expected an even number: RoPE rotates pairs of dimensions.",
            )
        section = _scaling_section(reader)
        rope_type = section.read(str, "rope_type", "type", default="default")
        if rope_type not in _PARAMETERS:
            section.fail(
                "rope_type",
                f"is {quote(rope_type)}, and only {', '.join(_PARAMETERS)} are supported.",
            )
        required, optional = _PARAMETERS[rope_type]
        _check_strange_keys(section, rope_type, ignored)
        theta = _read_theta(reader, section, default_theta)
        return cls(
            head_dim=head_dim,
            theta=theta,
            rope_type=rope_type,
            original_max_position_embeddings=_read_original_length(reader, section, rope_type),
            partial_rotary_factor=_read_partial_factor(
                reader, section, head_dim, default_partial_factor
            ),
            **_read_parameters(section, required, optional),
        )._with_yarn_factor(reader)

    def _with_yarn_factor(self, reader: HfReader) -> RopeConfig:
        """Return yarn without a factor with that by which the positions exceed the original."""
        if self.rope_type != "yarn" or self.factor:
            return self
        length = _positions(reader)
        factor = length / self.original_max_position_embeddings
        if factor < 1:
            reader.fail(
                "max_position_embeddings",
                f"is {length}, less than the {self.original_max_position_embeddings} of yarn"
                " RoPE, which has no factor of its own. Add the factor.",
            )
        return replace(self, factor=factor)

    def context_limit(self, max_position_embeddings: int) -> ContextLimit:
        """Return how many positions a model may have with this RoPE, and why."""
        return context_limit(
            max_position_embeddings,
            self.rope_type,
            factor=self.factor,
            original=self.original_max_position_embeddings,
        )

    def inverse_frequencies(self) -> Floats:
        """Return the angle per position of each pair of dimensions, float32 [rotary_dim / 2]."""
        return _FREQUENCIES[self.rope_type](self, self._powers())

    @property
    def attention_scaling(self) -> float:
        """Return the factor on cos and sin, by which yarn scales the logits; 1 for other types."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    def cos_sin(self, num_positions: int) -> tuple[Floats, Floats]:
        """Return cos and sin of positions 0 … num_positions-1.

        Both are float32 [num_positions, rotary_dim / 2].
        """
        angles = (
            np.arange(num_positions, dtype=np.float32)[:, None] * self.inverse_frequencies()
        )
        exact = angles.astype(np.float64)
        scaling = np.float32(self.attention_scaling)
        return (
            np.cos(exact).astype(np.float32) * scaling,
            np.sin(exact).astype(np.float32) * scaling,
        )

    def _powers(self) -> Floats:
        """Return theta ** (2i / rotary_dim): exponents in float32, the power rounded once."""
        size = self.rotary_dim
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        return np.power(np.float64(self.theta), exponents.astype(np.float64)).astype(np.float32)


def _check_strange_keys(section: HfReader, rope_type: str, ignored: Collection[str]) -> None:
    """Refuse keys that are no parameters of the type and that other engines may read."""
    required, optional = _PARAMETERS[rope_type]
    elsewhere = _FACTORS_ELSEWHERE[rope_type]
    for key in sorted(set(section.data) - required - optional - _COMMON_KEYS - set(ignored)):
        value = section.data[key]
        if value is None:
            continue
        if key not in elsewhere:
            section.fail(
                quote(key)[1:-1],
                f"is no parameter of {rope_type} RoPE, whose are {sorted(required | optional)}.",
            )
        if section.read(float, key) == 1.0:
            continue
        if rope_type != "yarn":
            section.fail(
                key,
                f"is {quote(value)}, and {rope_type} RoPE has none: Hugging Face ignores it, other"
                " engines may not. Remove it, or name the rope_type that was meant.",
            )
        _LOG.warning(
            "%s: %s%s is %s: Hugging Face does not read it, and neither does this build; vLLM does",
            section.where,
            section.prefix,
            key,
            value,
        )


def _positions(reader: HfReader) -> int:
    return reader.read(int, "max_position_embeddings", low=1)


def _read_original_length(reader: HfReader, section: HfReader, rope_type: str) -> int:
    """Read the length before scaling, which some configs keep at the top level; 0: not read."""
    if rope_type not in _WITH_ORIGINAL:
        return 0
    inner = section.read(int, _ORIGINAL, default=0, low=1)
    outer = reader.read(int, _ORIGINAL, default=0, low=1)
    if inner and outer and inner != outer:
        section.fail(
            _ORIGINAL, f"is {inner} but {outer} at the top level. Make them agree or drop one."
        )
    return inner or outer or _positions(reader)


def _scaling_section(reader: HfReader) -> HfReader:
    new = reader.section("rope_parameters")
    old = reader.section("rope_scaling")
    if old is not None and not old.data:
        old = None  # Hugging Face takes an empty object for none
    if (
        new is not None
        and old is not None
        and {**old.data, "rope_theta": None} != {**new.data, "rope_theta": None}
    ):
        reader.fail(
            "rope_parameters",
            "and rope_scaling are both present and differ. Keep the one used in training.",
        )
    return new or old or HfReader({}, reader.where)


def _read_theta(reader: HfReader, section: HfReader, default_theta: float | None) -> float:
    inner, outer = (
        holder.read(float, "rope_theta", default=None) for holder in (section, reader)
    )
    if inner is not None and outer is not None and inner != outer:
        section.fail(
            "rope_theta",
            f"is {inner} but rope_theta at the top level is {outer}. Make them agree.",
        )
    theta = next((value for value in (inner, outer, default_theta) if value is not None), None)
    if theta is None:
        return reader.read(float, "rope_theta")
    if theta <= 1:
        reader.fail(
            "rope_theta",
            f"is {theta}, expected more than 1: it is the base of the wavelengths.",
        )
    return theta


def _read_partial_factor(
    reader: HfReader, section: HfReader, head_dim: int, default: float | None
) -> float:
    """Read the share of the head that is rotated; without a `default` it is all of it.

    As in Hugging Face, a null at the top level is 1.
    """
    key = "partial_rotary_factor"
    inner, outer = (holder.read(float, key, default=None) for holder in (section, reader))
    if inner is not None and outer is not None and inner != outer:
        problem = f"is {inner} but {key} at the top level is {outer}. Make them agree."
        section.fail(key, problem)
    holder = reader if inner is None else section
    missing = 1.0 if default is None or key in reader.data else default
    factor = next((value for value in (inner, outer) if value is not None), missing)
    if default is None and factor != 1.0:
        holder.fail(key, "is not 1, and RoPE over a part of the head is not supported.")
    size = int(head_dim * factor) if 0 < factor <= 1 else 0
    if size < 2 or size % 2:
        expected = f"expected a share of head_dim = {head_dim} that is an even number"
        holder.fail(key, f"is {factor}, {expected}: RoPE rotates pairs of dimensions.")
    return factor


def _read_parameters(
    section: HfReader, required: frozenset[str], optional: frozenset[str]
) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if "truncate" in optional and section.data.get("truncate", True) is None:
        section.fail(
            "truncate", "is null, which engines read as true or as false. Write which."
        )
    for key in sorted(required | optional):
        if key not in required and section.get(key) is None:
            continue
        if key == "truncate":
            parameters[key] = section.read(bool, key)
        elif key != _ORIGINAL:
            parameters[key] = section.read(float, key, low=1.0 if key == "factor" else 0.0)
    if (
        "low_freq_factor" in parameters
        and not 0 < parameters["low_freq_factor"] < parameters["high_freq_factor"]
    ):
        section.fail("low_freq_factor", "must be positive and below high_freq_factor.")
    return parameters


def _default(_: RopeConfig, powers: Floats) -> Floats:
    return np.float32(1.0) / powers


def _linear(rope: RopeConfig, powers: Floats) -> Floats:
    return _default(rope, powers) / np.float32(rope.factor)


def _llama3(rope: RopeConfig, powers: Floats) -> Floats:
    """Slow long wavelengths by `factor`, keep short ones, blend those between (Llama 3.1)."""
    plain = _default(rope, powers)
    old_length = rope.original_max_position_embeddings
    wavelength = np.float32(2 * math.pi) / plain
    is_long = wavelength > np.float32(old_length / rope.low_freq_factor)
    is_short = wavelength < np.float32(old_length / rope.high_freq_factor)
    slowed = np.where(is_long, plain / np.float32(rope.factor), plain)
    factors = np.float32(rope.high_freq_factor - rope.low_freq_factor)
    turns = np.float32(old_length) / wavelength
    smooth = (turns - np.float32(rope.low_freq_factor)) / factors
    blended = (np.float32(1.0) - smooth) * slowed / np.float32(rope.factor) + smooth * slowed
    return np.where(is_long | is_short, slowed, blended)


def _yarn(rope: RopeConfig, powers: Floats) -> Floats:
    """Keep dimensions that turn often within the original length, slow rare ones, ramp between."""

    def dimension_of(turns: float) -> float:
        length = rope.original_max_position_embeddings
        return (
            rope.rotary_dim
            * math.log(length / (turns * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    # Hugging Face reads a beta of 0 as "not given".
    low = dimension_of(rope.beta_fast or 32.0)
    high = dimension_of(rope.beta_slow or 1.0)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    dimensions = np.arange(rope.rotary_dim // 2, dtype=np.float32)
    ramp: Floats = (dimensions - np.float32(low)) / np.float32(high - low)
    kept: Floats = np.float32(1.0) - np.clip(ramp, np.float32(0.0), np.float32(1.0))
    slowed: Floats = np.float32(1.0) / (np.float32(rope.factor) * powers)
    blended: Floats = slowed * (np.float32(1.0) - kept) + np.float32(1.0) / powers * kept
    return blended


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_FREQUENCIES: Mapping[str, Callable[[RopeConfig, Floats], Floats]] = {
    "default": _default,
    "dynamic": _default,  # up to max_position_embeddings; longer sequences are refused
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
