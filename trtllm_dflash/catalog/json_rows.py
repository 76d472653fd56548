"""Reads a JSON file of this package and makes objects of its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from importlib import resources
from typing import Any, TypeVar

Row = TypeVar("Row")


def read_json(name: str) -> Any:
    """Return the content of a JSON file that lies beside this module."""
    return json.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def make_row(row_type: type[Row], values: Mapping[str, Any], where: str) -> Row:
    """Return `values` as an object of a dataclass.

    Raises:
        ValueError: naming the keys that are missing or unknown in the row `where`.
    """
    known = fields(row_type)  # type: ignore[arg-type]  # a dataclass
    needed = {field.name for field in known if _is_needed(field)}
    missing = sorted(needed - values.keys())
    unknown = sorted(values.keys() - {field.name for field in known})
    if missing or unknown:
        raise ValueError(f"{where}: keys missing: {missing}, unknown: {unknown}")
    return row_type(**values)
