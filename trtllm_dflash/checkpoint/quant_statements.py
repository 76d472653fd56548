"""What the descriptions of one checkpoint's quantization say together.

A checkpoint may describe it up to five times. The most exact description of a linear counts: its
own entry in `quantized_layers`, then `quant_algo`, then `config_groups`. Silence contradicts
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from trtllm_dflash.checkpoint.formats import Quantization
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.hf_config import quote

_LOG = logging.getLogger(__name__)


class Exactness(IntEnum):
    """How exactly a description names what it describes; the most exact one first."""

    LAYERS = 0
    ALGO = 1
    GROUPS = 2


@dataclass(frozen=True)
class Statement:
    """One description: the format of all linears and of single `modules`, and what is excluded.

    `source` is for people. An `excluded` of None says nothing. `is_complete`: modules that are not
    named have no format, whatever a less exact description says. `lacking`: the error if no
    description names any.
    """

    source: str
    exactness: Exactness
    default: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] | None = None
    kv_cache: str | None = None
    mxfp4: bool = False
    is_complete: bool = False
    lacking: str | None = None


def combine(statements: Sequence[Statement], where: str) -> Quantization:
    """Return what the statements say together.

    Raises: ConfigError: where two of the same exactness contradict each other.
    """
    ordered = sorted(statements, key=lambda statement: statement.exactness)
    default = _combine_defaults(ordered, where)
    modules = _combine_modules(ordered, where)
    lacking = next((row.lacking for row in ordered if row.lacking), None)
    if lacking is not None and not modules:
        raise ConfigError(lacking)
    excluded, doubtful = _combine_exclusions(ordered)
    listed = [row for row in ordered if row.exactness is Exactness.GROUPS and row.modules]
    if default is not None and listed and all(row.default is None for row in listed):
        # Groups that name linears leave others out; quant_algo has all.
        doubtful = (*doubtful, "*")
    return Quantization(
        default,
        modules,
        tuple(sorted({*excluded, *doubtful})),
        next((row.kv_cache for row in ordered if row.kv_cache), None),
        any(row.mxfp4 for row in ordered),
        doubtful,
    )


def _combine_defaults(ordered: Sequence[Statement], where: str) -> str | None:
    """Return the format of all linears; a complete list of single ones leaves none."""
    if any(row.is_complete for row in ordered):
        return None
    stated = [row for row in ordered if row.default is not None or row.mxfp4]
    for other in stated[1:]:
        if other.default != stated[0].default:
            _fail(where, stated[0], other, "the format", stated[0].default, other.default)
    return stated[0].default if stated else None


def _combine_modules(ordered: Sequence[Statement], where: str) -> dict[str, str]:
    """Return the formats of single linears, each by its most exact description."""
    found: dict[str, tuple[str, Statement]] = {}
    overruled = dict[str, tuple[Statement, Statement]]()
    for row in ordered:
        for name, fmt in row.modules.items():
            known, by = found.setdefault(name, (fmt, row))
            if known == fmt:
                continue
            if by.exactness is row.exactness:
                _fail(where, by, row, f"the format of {name}", known, fmt)
            overruled.setdefault(name, (by, row))
    if overruled:
        name, (taken, other) = next(iter(overruled.items()))
        more = f" (and so of {len(overruled) - 1} more)" if len(overruled) > 1 else ""
        _LOG.warning(
            "%s: %s stores %s%s as %s, %s as %s: the first is taken, and compared with the tensors",
            where,
            taken.source,
            name,
            more,
            found[name][0],
            other.source,
            other.modules[name],
        )
    return {name: fmt for name, (fmt, _) in found.items()}


def _combine_exclusions(
    ordered: Sequence[Statement],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the exclusions that every description has, and those that only some have."""
    lists = [set(row.excluded) for row in ordered if row.excluded is not None]
    if not lists:
        return (), ()
    common = set.intersection(*lists)
    return tuple(sorted(common)), tuple(sorted(set.union(*lists) - common))


def _fail(
    where: str, first: Statement, second: Statement, what: str, ours: Any, theirs: Any
) -> None:
    raise ConfigError(
        f"{where}: {first.source} and {second.source} contradict each other about {what}:"
        f" {quote(ours)} against {quote(theirs)}. Engines differ in which one they read; get an"
        " intact copy, or make them agree."
    )
