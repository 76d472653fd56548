"""Published pairs of target and DFlash drafter, from `pairs.json`.

A row has the keys of both config.json files that are published and decide whether the pair can be
built. It has no others, so `build` reads the files themselves. Which pairs are supported is in
`builder.pair_support`.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from trtllm_dflash.catalog.json_rows import make_row, read_json
from trtllm_dflash.catalog.published import KnownDrafter, KnownTarget, Pair

Role = Literal["target", "drafter"]
_MAX_NEAREST = 3
_MIN_SIMILARITY = 0.6


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    target = make_row(KnownTarget, row["target"], f"{where}, target")
    drafter = make_row(KnownDrafter, row["drafter"], f"{where}, drafter")
    return make_row(Pair, {**row, "target": target, "drafter": drafter}, where)


_CATALOG = read_json("pairs.json")

# The name and the repository of a target stand for the first row that has them.
PAIRS: tuple[Pair, ...] = tuple(
    _pair(row, f"pairs.json, row {index}") for index, row in enumerate(_CATALOG["pairs"])
)

# Models that other projects name. Neither their config.json nor their pair of repositories could be
# read, so a row would be a guess.
UNLISTED: tuple[str, ...] = tuple(_CATALOG["unlisted"])


def pair_of(name: str, role: Role = "target") -> Pair | None:
    """Return the first pair whose target (or drafter) `name` stands for, None for an unknown name.

    A target is known by its name in the table, and every model by its repository, with or without
    the owner. Case does not matter.
    """
    wanted = name.casefold()
    for pair in PAIRS:
        if wanted in _names_of(pair, role):
            return pair
    return None


def drafter_licence(name: str) -> str:
    """Return the licence of the drafter that a repository's name stands for, on one line.

    Of a directory, and of a repository that is not listed, nothing is known.
    """
    pair = pair_of(name, "drafter")
    return KnownDrafter(name, {}).licence_text if pair is None else pair.drafter.licence_text


def _names_of(pair: Pair, role: Role) -> tuple[str, ...]:
    if role == "target":
        repository = pair.target.repository.casefold()
        return pair.name.casefold(), repository, _without_owner(repository)
    repository = pair.drafter.repository.casefold()
    return repository, _without_owner(repository)


def _without_owner(repository: str) -> str:
    return repository.rpartition("/")[2]


def nearest_names(name: str, role: Role = "target") -> list[str]:
    """Return at most three names that look like `name`, the nearest first.

    They are targets' names in the table, or drafters' repositories. Owners are not compared.
    """
    names = {}
    for pair in PAIRS:
        if role == "target":
            names[pair.name.casefold()] = pair.name
        else:
            repository = pair.drafter.repository
            names[_without_owner(repository.casefold())] = repository
    wanted = _without_owner(name.casefold())
    found = get_close_matches(wanted, names, n=_MAX_NEAREST, cutoff=_MIN_SIMILARITY)
    return [names[match] for match in found]


def unknown_name_message(name: str, role: Role) -> str:
    """Return what is wrong with a name that is neither a directory nor known.

    The sentence has no end, so that callers can add to it.
    """
    near = nearest_names(name, role)
    nearest = f"; the nearest are {', '.join(near)}" if near else ""
    return f"--{role} {name}: neither a directory nor a {role} of `dflash-trt list`{nearest}"
