"""The layout of NVIDIA NeMo AutoModel: the published one under class names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# AutoModel's class -> the published class that computes the same.
_CLASSES = {
    "Qwen3DFlashDraftModel": "DFlashDraftModel",
    "Qwen3DFlash2DraftModel": "DFlash2DraftModel",
}


def is_automodel(config_json: Mapping[str, Any]) -> bool:
    """Tell whether a drafter's config.json names a class of AutoModel."""
    names = config_json.get("architectures")
    return isinstance(names, list) and any(
        name in _CLASSES for name in names if isinstance(name, str)
    )


def published_config(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with the published class."""
    names = [_CLASSES.get(name, name) for name in config_json["architectures"]]
    return {**config_json, "architectures": names}
