"""A published pair of target and drafter, and the config.json of each as far as it is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DFLASH = "DFlashDraftModel"

# Keys that every drafter has, with values that decide nothing. They stand where a row has none.
_ANY_DRAFTER = {
    "model_type": "qwen3",
    "num_hidden_layers": 5,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "block_size": 16,
    "mask_token_id": 0,
    "target_layer_ids": [1],
}
# The keys without which a drafter cannot be planned.
_SIZES = {
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "block_size",
    "target_layer_ids",
}


# Drafters of speculators have their layers' sizes in a section, and count taps from 1.
_SECTION, _SECTION_TAPS = "transformer_layer_config", "aux_hidden_state_layer_ids"
_BESIDE_SECTION = ("block_size", "mask_token_id")


@dataclass(frozen=True)
class _PublishedModel:
    """A model's repository, and the keys of its config.json that are published."""

    repository: str
    config: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Return the model's class in Hugging Face, "unknown" if its config.json was not read."""
        name: str = self.config.get("architectures", ["unknown"])[0]
        return name


@dataclass(frozen=True)
class KnownTarget(_PublishedModel):
    """A published target."""


@dataclass(frozen=True)
class KnownDrafter(_PublishedModel):
    """A published drafter. Its keys include those that tell an unsupported drafter from others.

    `acceptance_length`: published tokens a step with the whole block, the bonus included, and
    `acceptance_source` where and on what. `licence` is "" where no source states it. `note`: what a
    user of the row must know besides. `inferred` keys are not published, but follow from its size
    and its siblings: plans and estimates use them, exports leave them to the user.
    """

    acceptance_length: float | None = None
    acceptance_source: str = ""
    # Options of the target's chat template with which it was trained.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    licence_source: str = ""
    note: str = ""
    inferred: Mapping[str, Any] = field(default_factory=dict)

    @property
    def block_size(self) -> int | None:
        """Return the tokens of a block with its anchor, None if that is not published."""
        size: int | None = self.config.get("block_size")
        return size

    @property
    def licence_text(self) -> str:
        """Return its licence and who states it, or that it is not known, on one line."""
        if not self.licence:
            return "unknown: read its model card"
        return f"{self.licence} ({self.licence_source})"

    @property
    def has_sizes(self) -> bool:
        """Return whether everything is published or inferred that estimates and plans need."""
        keys = self.config.keys() | self.inferred.keys()
        if _is_sectioned(self):
            keys |= self.config.get(_SECTION, {}).keys()
            keys |= {"target_layer_ids"} if _SECTION_TAPS in keys else set()
        return keys >= _SIZES


@dataclass(frozen=True)
class Pair:
    """A target with a drafter trained for it.

    `name` is what --target takes. `source` says where the facts are published. `handover`: why
    TensorRT-LLM serves the pair and `build` does not, "" for other pairs.
    """

    name: str
    target: KnownTarget
    drafter: KnownDrafter
    source: str
    handover: str = ""


def target_json(target: KnownTarget) -> dict[str, Any]:
    """Return the target's config.json, as far as it is published."""
    return dict(target.config)


def drafter_json(drafter: KnownDrafter) -> dict[str, Any]:
    """Return the drafter's config.json.

    A key that is not published has its inferred value, else a value of any drafter.
    """
    stated = dict(drafter.inferred) | dict(drafter.config)
    if not _is_sectioned(drafter):
        return _ANY_DRAFTER | stated
    beside = {key: _ANY_DRAFTER[key] for key in _BESIDE_SECTION}
    section = {key: value for key, value in _ANY_DRAFTER.items() if key not in _BESIDE_SECTION}
    section |= stated.get(_SECTION, {})
    return beside | {_SECTION_TAPS: [2]} | stated | {_SECTION: section}


def _is_sectioned(drafter: KnownDrafter) -> bool:
    return "speculators_model_type" in drafter.config
