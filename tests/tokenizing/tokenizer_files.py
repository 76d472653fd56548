"""Tokenizer directories with something changed: a key, a file, a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.runtime import tiny_tokenizer as tiny


def write(directory: Path, *, template: Any = None, config: Any = None, **keys: Any) -> Path:
    """Write a byte-level tokenizer.

    `template` replaces its chat template, `config` and `keys` those of tokenizer_config.json and
    tokenizer.json.
    """
    tiny.write_byte_level(directory)
    if keys:
        change(directory / "tokenizer.json", keys)
    more = dict(config or {})
    if template is not None:
        more["chat_template"] = template
    if more:
        change(directory / "tokenizer_config.json", more)
    return directory


def change(path: Path, keys: dict[str, Any]) -> None:
    """Replace keys of a JSON file."""
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(data | keys), "utf-8")
