"""Seeded mutations of JSON values, of bytes and of directories.

Every function takes a `random.Random`, so a number names a mutant: `Random(f"{seed}")` makes it
again. What is mutated is never changed in place.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

# Values of every JSON type, and those at which programs have failed before.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**31 - 1,
    2**31,
    2**63,
    10**9,
    10**30,
    -(10**18),
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "nothing",
    "ß\u0000\ud800",
    "../../etc/passwd",
    "a" * 5000,
    [],
    {},
    [None],
    [[[]]],
    {"": None},
)
_DEEP = 5000  # levels, beyond every parser's recursion


def json_paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value, but not the empty one."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (key,)
        for path in json_paths(inner):
            yield (key, *path)


def mutate_json(value: Any, random: Random, *, times: int = 1) -> Any:
    """Return a JSON value with `times` random changes: of types, numbers, keys or lengths."""
    value = copy.deepcopy(value)
    for _ in range(times):
        paths = list(json_paths(value))
        if not paths:
            return random.choice(ODD_VALUES)
        *parents, key = random.choice(paths)
        inside = value
        for parent in parents:
            inside = inside[parent]
        random.choice(_JSON_CHANGES)(inside, key, random)
    return value


def _replace(inside: Any, key: Any, random: Random) -> None:
    inside[key] = copy.deepcopy(random.choice(ODD_VALUES))


def _nudge(inside: Any, key: Any, random: Random) -> None:
    """Change a number, a flag or a text a little, so that it stays plausible."""
    old = inside[key]
    if isinstance(old, bool):
        inside[key] = not old
    elif isinstance(old, int | float):
        changed = (old + 1, old - 1, old * 2, -old, old * 1000, old / 3, str(old), [old])
        inside[key] = random.choice(changed)
    elif isinstance(old, str) and old:
        place = random.randrange(len(old))
        inside[key] = random.choice((old[:place], old[place:], old + old, old.upper()))
    else:
        _replace(inside, key, random)


def _delete(inside: Any, key: Any, random: Random) -> None:
    del inside[key]


def _wrap(inside: Any, key: Any, random: Random) -> None:
    inside[key] = random.choice(([inside[key]], {"value": inside[key]}))


def _repeat(inside: Any, key: Any, random: Random) -> None:
    """Repeat an element of a list, or a value under another key."""
    old = copy.deepcopy(inside[key])
    if isinstance(inside, list):
        inside.insert(random.randrange(len(inside) + 1), old)
    else:
        inside[random.choice((f"{key}_", "unknown", ""))] = old


def _swap(inside: Any, key: Any, random: Random) -> None:
    """Exchange a value with a neighbour's."""
    other = random.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    inside[key], inside[other] = inside[other], inside[key]


_JSON_CHANGES: tuple[Callable[[Any, Any, Random], None], ...] = (
    _replace,
    _replace,
    _nudge,
    _nudge,
    _delete,
    _wrap,
    _repeat,
    _swap,
)


def mutate_json_text(text: str, random: Random, *, times: int = 1) -> bytes:
    """Return the bytes of a JSON text whose values or whose syntax were changed."""
    if random.random() < 0.1:
        return mutate_bytes(text.encode(), random)
    value = mutate_json(json.loads(text), random, times=times)
    made = json.dumps(value)
    if random.random() < 0.03:
        made = random.choice(
            (
                f"{made[:1]}{made[1:-1]},{made[1:-1]}{made[-1:]}",  # every key twice
                "[" * _DEEP + made + "]" * _DEEP,
                f"\ufeff{made}",
            )
        )
    return made.encode("utf-8", errors="surrogatepass")


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Return bytes that were cut, zeroed, overwritten, repeated or moved."""
    if not data:
        return random.randbytes(random.randrange(1, 64))
    begin = random.randrange(len(data))
    length = random.randrange(1, min(len(data), 512) + 1)
    before, middle, after = data[:begin], data[begin : begin + length], data[begin + length :]
    return random.choice(
        (
            b"",
            before,
            after,
            before + after,
            before + bytes(len(middle)) + after,
            bytes(len(data)),
            before + random.randbytes(len(middle)) + after,
            before + middle + middle + after,
            after + middle + before,
            before + bytes([middle[0] ^ 1 << random.randrange(8)]) + middle[1:] + after,
        )
    )


def damage_file(path: Path, random: Random) -> None:
    """Change a file as broken copies do: other bytes, gone, a folder, a link, a neighbour's."""
    neighbours = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    kind = random.choice(("bytes", "bytes", "bytes", "gone", "folder", "link", "neighbour"))
    if kind == "neighbour" and neighbours:
        shutil.copyfile(random.choice(sorted(neighbours)), path)
        return
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(random.choice((path.name, "/nowhere/at/all", "/")))
    elif kind != "gone":
        path.write_bytes(mutate_bytes(data, random))
