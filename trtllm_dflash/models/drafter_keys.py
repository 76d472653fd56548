"""Where published drafters keep their keys: at the top of config.json, or in dflash_config."""

from __future__ import annotations


def either(name: str) -> tuple[str, str]:
    """Return both places of a key."""
    return f"dflash_config.{name}", name
