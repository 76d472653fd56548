"""What of the registry can be built: what is published of each config.json is put to the code that
`build` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trtllm_dflash import log
from trtllm_dflash.builder.format_support import check_kernels
from trtllm_dflash.catalog.pairs import PAIRS, pair_of
from trtllm_dflash.catalog.published import (
    KnownDrafter,
    KnownTarget,
    Pair,
    drafter_json,
    target_json,
)
from trtllm_dflash.checkpoint.formats import FORMATS, Quantization, read_quantization
from trtllm_dflash.checkpoint.from_config import drafter_headers, target_headers
from trtllm_dflash.checkpoint.loader import Checkpoint, pair_mismatches
from trtllm_dflash.errors import BuildError, DFlashError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config


@dataclass(frozen=True)
class PairSupport:
    """Whether a pair can be built: for which archs, or by what it is refused (both halves have
    their say).
    """

    pair: Pair
    archs: tuple[str, ...]
    refusals: tuple[str, ...]

    @property
    def builds(self) -> str:
        """The archs, in words."""
        if not self.archs:
            return "no"
        return "every --arch" if len(self.archs) == len(ARCHS) else ", ".join(self.archs)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """The refusals, for people: which half ("": the two together), and its reason without the
        repository's name.
        """
        halves = {"target": self.pair.target.repository, "drafter": self.pair.drafter.repository}
        found = []
        for refusal in self.refusals:
            half = next(
                (half for half, name in halves.items() if refusal.startswith(f"{half} {name}: ")),
                "",
            )
            found.append((half, refusal.removeprefix(f"{half} {halves.get(half)}: ")))
        return found

    def to_json(self) -> dict[str, Any]:
        """One row of `dflash-trt list --json`."""
        target, drafter = self.pair.target, self.pair.drafter
        return {
            "name": self.pair.name,
            "target": target.repository,
            "target_architecture": target.architecture,
            "drafter": drafter.repository,
            "drafter_architecture": drafter.architecture,
            "block_size": drafter.block_size,
            "archs": list(self.archs),
            "refusals": list(self.refusals),
            "source": self.pair.source,
        }


def list_support(pairs: Sequence[Pair] = PAIRS) -> list[PairSupport]:
    """The status of every pair, in the registry's order."""
    return [check_support(pair) for pair in pairs]


def check_support(pair: Pair) -> PairSupport:
    """Ask the code. Reads no file: weights, whose names and types are checked too, are not known
    here.
    """
    target, refusals = _try(_read_target, pair.target)
    drafter, more = _try(_read_drafter, pair.drafter)
    refusals += more
    if target is None or drafter is None:
        return PairSupport(pair, (), tuple(refusals))
    config, quantization = target
    refusals += pair_mismatches(config, drafter)
    check = partial(check_kernels, quantized_experts=quantization.is_quantized)
    _, more = _try(check, {"target": config, "drafter": drafter})
    refusals += more
    formats = [
        FORMATS[name] for name in {quantization.default, *quantization.modules.values()} if name
    ]
    archs = (
        [] if refusals else [name for name in ARCHS if all(name in row.archs for row in formats)]
    )
    return PairSupport(pair, tuple(archs), tuple(refusals))


def published_target(name: str) -> Checkpoint[TargetConfig] | None:
    """The checkpoint of a target of the registry (its name or its repository), by its published
    sizes.
    """
    pair = pair_of(name)
    return (
        None if pair is None else target_headers(*_read_target(pair.target), pair.target.repository)
    )


def published_drafter(name: str) -> Checkpoint[DrafterConfig] | None:
    """Likewise of a drafter; None as well where its sizes are not published."""
    pair = pair_of(name, "drafter")
    if pair is None or not pair.drafter.has_sizes:
        return None
    return drafter_headers(_read_drafter(pair.drafter), name=pair.drafter.repository)


def _try(ask: Callable[[Any], Any], question: Any) -> tuple[Any, list[str]]:
    """The answer, or the refusal."""
    try:
        return ask(question), []
    except DFlashError as error:
        return None, [str(error)]


def _read_target(target: KnownTarget) -> tuple[TargetConfig, Quantization]:
    """Both configurations, in the loader's order."""
    config_json, where = target_json(target), f"target {target.repository}"
    quantization = read_quantization(config_json, None, where)
    return read_target_config(config_json, None, where), quantization


def _read_drafter(drafter: KnownDrafter) -> DrafterConfig:
    config_json, where = drafter_json(drafter), f"drafter {drafter.repository}"
    config = DrafterConfig.from_hf(config_json, where)
    read_quantization(config_json, None, where)
    return config


def reject_unsupported_pair(target: str, drafter: str | None) -> None:
    """Refuse models of the registry that cannot be built, before they are fetched; local
    directories are read instead.

    Raises:
        BuildError: with every reason.
    """
    pair = None if Path(target).is_dir() else pair_of(target)
    refusals = [] if pair is None else _try(_read_target, pair.target)[1]
    of_drafter = None if drafter is None or Path(drafter).is_dir() else pair_of(drafter, "drafter")
    refusals += [] if of_drafter is None else _try(_read_drafter, of_drafter.drafter)[1]
    if refusals:
        raise BuildError(
            "nothing was fetched, since this version cannot build it by what is published of its"
            " config.json:"
            + "".join(f"\n  {refusal}" for refusal in refusals)
            + "\n`dflash-trt list` shows the pairs that can be built; files that differ can be"
            " given as directories"
        )


def markdown_table(pairs: Sequence[PairSupport]) -> str:
    """Format published pairs as the README's table."""
    titles = ("`--target`", "target", "drafter", "block", "builds for")
    rows = []
    for row in pairs:
        reasons = [
            f"{half}: {_first_clause(reason)}" if half else reason for half, reason in row.reasons
        ]
        builds = f"{row.builds} ({'; '.join(reasons)})" if reasons else row.builds
        models = (row.pair.target.repository, row.pair.drafter.repository)
        rows.append((f"`{row.pair.name}`", *models, format_block_size(row), builds))
    return log.markdown_table(titles, rows)


def format_block_size(row: PairSupport) -> str:
    """The drafter's block size, for people."""
    return "?" if row.pair.drafter.block_size is None else str(row.pair.drafter.block_size)


def _first_clause(reason: str) -> str:
    return reason.split(", and ")[0].split(": ")[0].rstrip(".")
