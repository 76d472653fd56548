"""Which pairs of the catalog are supported.

The published part of each config.json goes through the code that `build` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trtllm_dflash import log
from trtllm_dflash.builder.format_support import check_kernels
from trtllm_dflash.catalog.pairs import PAIRS, Role, pair_of
from trtllm_dflash.catalog.published import (
    KnownDrafter,
    KnownTarget,
    Pair,
    drafter_json,
    target_json,
)
from trtllm_dflash.checkpoint.formats import LINEAR_FORMATS, MXFP4, Quantization
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.pair_checks import pair_mismatches
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.errors import BuildError, ConfigError, DFlashError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config


@dataclass(frozen=True)
class PairSupport:
    """The archs a pair can be built for, or why target and drafter are unsupported."""

    pair: Pair
    archs: tuple[str, ...]
    refusals: tuple[str, ...]

    @property
    def builds(self) -> str:
        """Return the archs as text; "hand-over" where TensorRT-LLM serves the pair instead.

        A pair that is handed over for its size can be planned all the same.
        """
        if self.pair.handover:
            return "hand-over"
        if not self.archs:
            return "no"
        return "every --arch" if len(self.archs) == len(ARCHS) else ", ".join(self.archs)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Return the refusals for people: a role ("" for both), and the reason.

        The reason has no repository's name.
        """
        return [_split_refusal(self.pair, refusal) for refusal in self.refusals]

    def to_json(self) -> dict[str, Any]:
        """Return one row of `dflash-trt list --json`."""
        target = self.pair.target
        drafter = self.pair.drafter
        return {
            "name": self.pair.name,
            "target": target.repository,
            "target_architecture": target.architecture,
            "drafter": drafter.repository,
            "drafter_architecture": drafter.architecture,
            "block_size": drafter.block_size,
            "archs": list(self.archs),
            "refusals": list(self.refusals),
            "handover": self.pair.handover,
            "licence": drafter.licence or "unknown",
            "licence_source": drafter.licence_source,
            "acceptance_length": drafter.acceptance_length,
            "acceptance_source": drafter.acceptance_source,
            "note": drafter.note,
            "chat_template_kwargs": dict(drafter.chat_template_kwargs),
            "source": self.pair.source,
        }


def _split_refusal(pair: Pair, refusal: str) -> tuple[str, str]:
    for role, model in (("target", pair.target), ("drafter", pair.drafter)):
        start = f"{role} {model.repository}: "
        if refusal.startswith(start):
            return role, refusal.removeprefix(start)
    return "", refusal


def list_support(pairs: Sequence[Pair] = PAIRS) -> list[PairSupport]:
    """Return the support of every pair, in the catalog's order."""
    return [check_support(pair) for pair in pairs]


def check_support(pair: Pair) -> PairSupport:
    """Return for which archs a pair can be built, as far as its config.json files tell.

    No file is read. `build` checks weights too, whose names and types are not known here.
    """
    target, refusals = _try(_read_target, pair.target)
    drafter, more = _try(_read_drafter, pair.drafter)
    refusals += more
    if target is None or drafter is None:
        return PairSupport(pair, (), tuple(refusals))
    config, quantization = target
    refusals += pair_mismatches(config, drafter)
    formats = [LINEAR_FORMATS[name] for name in quantization.names]
    formats += [MXFP4] * quantization.mxfp4
    check = partial(
        check_kernels,
        expert_formats=formats,
        block_size=drafter.block_size,
    )
    _, more = _try(check, {"target": config, "drafter": drafter})
    refusals += more
    return PairSupport(pair, () if refusals else _archs_for(quantization), tuple(refusals))


def _archs_for(quantization: Quantization) -> tuple[str, ...]:
    """Return the archs that compute all formats of a checkpoint."""
    formats = [LINEAR_FORMATS[name] for name in quantization.names]
    return tuple(arch for arch in ARCHS if all(arch in fmt.archs for fmt in formats))


def published_target(name: str) -> Checkpoint[TargetConfig] | None:
    """Return a target of the catalog by its published sizes, None for an unknown name."""
    pair = pair_of(name)
    if pair is None:
        return None
    return checkpoint_of_config(*_read_target(pair.target), pair.target.repository)


def published_drafter(name: str) -> Checkpoint[DrafterConfig] | None:
    """Return a drafter of the catalog by its published sizes.

    None stands for an unknown name, and for a drafter whose sizes are not published.
    """
    pair = pair_of(name, "drafter")
    if pair is None or not pair.drafter.has_sizes:
        return None
    return checkpoint_of_config(_read_drafter(pair.drafter), name=pair.drafter.repository)


def _try(read: Callable[[Any], Any], argument: Any) -> tuple[Any, list[str]]:
    """Return the result and no refusal, or None and the refusal."""
    try:
        return read(argument), []
    except DFlashError as error:
        return None, [str(error)]


def _read_target(target: KnownTarget) -> tuple[TargetConfig, Quantization]:
    """Return both configurations, read in the loader's order."""
    config_json = target_json(target)
    where = f"target {target.repository}"
    if not config_json:
        raise ConfigError(f"{where}: its config.json could not be read for the table of pairs")
    quantization = read_quantization(config_json, None, where)
    return read_target_config(config_json, None, where), quantization


def _read_drafter(drafter: KnownDrafter) -> DrafterConfig:
    config_json = drafter_json(drafter)
    where = f"drafter {drafter.repository}"
    config = DrafterConfig.from_hf(config_json, where)
    read_quantization(config_json, None, where)
    return config


def reject_unsupported_pair(target: str, drafter: str | None) -> None:
    """Refuse models of the catalog that cannot be built, before they are fetched.

    Local directories are not checked, since their own files are read.

    Raises:
        BuildError: with every reason.
    """
    refusals, instead = [], ""
    pair = _catalog_pair(target, "target")
    if pair is not None:
        refusals += _try(_read_target, pair.target)[1]
        if pair.handover:
            instead = (
                f"; {pair.handover}: `dflash-trt export-trtllm --target {pair.name}` writes what it"
                " needs"
            )
    pair = _catalog_pair(drafter, "drafter")
    if pair is not None:
        refusals += _try(_read_drafter, pair.drafter)[1]
    if refusals:
        reasons = "".join(f"\n  {refusal}" for refusal in refusals)
        raise BuildError(
            "nothing was fetched, since this version cannot build it by what is published of its"
            f" config.json:{reasons}\n`dflash-trt list` shows the pairs that can be built; files"
            f" that differ can be given as directories{instead}"
        )


def reject_handed_over(target: str) -> None:
    """Refuse to fetch a target of the catalog that TensorRT-LLM serves instead.

    Raises:
        BuildError: with the reason, and what plans or exports it.
    """
    pair = _catalog_pair(target, "target")
    if pair is not None and pair.handover:
        raise BuildError(
            f"--target {target}: nothing was fetched, since {pair.handover}. `dflash-trt"
            f" export-trtllm --target {pair.name}` writes what it needs, and --dry-run plans this"
            " build; a quantized checkpoint that fits on one GPU can be given as a directory"
        )


def _catalog_pair(name: str | None, role: Role) -> Pair | None:
    return None if name is None or Path(name).is_dir() else pair_of(name, role)


def markdown_table(pairs: Sequence[PairSupport]) -> str:
    """Return published pairs as the README's table."""
    titles = ("`--target`", "target", "drafter", "block", "builds for")
    rows = []
    for row in pairs:
        reasons = []
        for role, reason in row.reasons:
            reasons.append(f"{role}: {_first_clause(reason)}" if role else reason)
        builds = f"{row.builds} ({'; '.join(reasons)})" if reasons else row.builds
        models = (row.pair.target.repository, row.pair.drafter.repository)
        rows.append((f"`{row.pair.name}`", *models, format_block_size(row), builds))
    return log.markdown_table(titles, rows)


def format_block_size(row: PairSupport) -> str:
    """Return the drafter's block size as text, "?" if it is not published."""
    size = row.pair.drafter.block_size
    return "?" if size is None else str(size)


def _first_clause(reason: str) -> str:
    return reason.split(", and ")[0].split(": ")[0].rstrip(".")
