"""Random JSON schemas, from seeds; every answer of one is short."""

from __future__ import annotations

from random import Random
from typing import Any

WORDS = ("name", "size", "city", "Größe", "a b", 'q"t', "kind", "items")


def random_schema(seed: int) -> dict[str, Any]:
    """Return the schema of a seed: an object, whose values may be nested three deep."""
    random = Random(seed)
    return _object(random, 2)


def _value(random: Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _choice, _constant, _simple]
    if depth:
        makers += [_object, _array, _either]
    return random.choice(makers)(random, depth)


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(WORDS, random.randint(1, 4))
    required = [name for name in names if random.random() < 0.7]
    properties = {name: _value(random, depth - 1) for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _array(random: Random, depth: int) -> dict[str, Any]:
    low = random.randint(0, 2)
    return {
        "type": "array",
        "items": _value(random, depth - 1),
        "minItems": low,
        "maxItems": low + random.randint(0, 2),
    }


def _either(random: Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(random, depth - 1) for _ in range(random.randint(2, 3))]}


def _string(random: Random, _: int) -> dict[str, Any]:
    if random.random() < 0.3:
        return {"type": "string", "pattern": "^[a-f]{2,4}(-[0-9]+)?$", "maxLength": 8}
    low = random.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + random.randint(0, 6)}


def _integer(random: Random, _: int) -> dict[str, Any]:
    low = random.randint(-500, 500)
    return {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 2000)}


def _choice(random: Random, _: int) -> dict[str, Any]:
    values: list[Any] = random.sample([*WORDS, 7, 1.5, True, None], random.randint(2, 4))
    return {"enum": values}


def _constant(random: Random, _: int) -> dict[str, Any]:
    return {"const": {"version": random.randint(1, 99), "by": random.choice(WORDS)}}


def _simple(random: Random, _: int) -> dict[str, Any]:
    return {"type": random.choice(["boolean", "null"])}
