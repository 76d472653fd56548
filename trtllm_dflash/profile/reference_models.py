"""What the reference package `dflash` 0.1.0 and transformers compute as an engine does.

Both load a checkpoint of another layout without an error, or with one that names nothing. So it is
checked first.
"""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.checkpoint.loader import Checkpoint, load_drafter, load_target
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.draft_tables import EMBEDDING, HEAD
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.speculators import is_speculators


def check_target(directory: Path) -> None:
    """Raise UsageError for a target whose linears are quantized: torch does not run them here."""
    target = load_target(directory)
    if target.quantization.names:
        names = ", ".join(sorted(target.quantization.names))
        raise UsageError(
            f"--against reference and hf: the target {directory} has linears in {names}, and"
            " transformers computes with them on a GPU only, or not at all. Use --against plain,"
            " or profile an engine of its unquantized original"
        )


def reference_class(target: Path, drafter: Path) -> str:
    """Return the class of the reference package that computes a drafter.

    Raises: UsageError: if none computes what an engine of it does.
    """
    found = check_pair(load_target(target), load_drafter(drafter))
    reason = _what_is_missing(found)
    if reason is not None:
        raise UsageError(
            f"--against reference: the package dflash 0.1.0 {reason}, as the drafter {drafter}"
            " needs. Use --against plain,hf"
        )
    return "DFlash2DraftModel" if found.config.selector else "DFlashDraftModel"


def _what_is_missing(drafter: Checkpoint[DrafterConfig]) -> str | None:
    """Return what the package does not do for a drafter, None if it does all of it."""
    config = drafter.config
    own = {EMBEDDING, HEAD} & set(drafter.tensors)
    lacks = (
        ("does not read the layout of speculators", is_speculators(_config_json(drafter))),
        ("has no Markov head", config.markov_rank is not None),
        ("has no drafts from the anchor's row", config.sample_from_anchor),
        ("has no attention sinks", config.has_sinks),
        ("has no embedding or head of the drafter's own", bool(own)),
        ("does not read quantized weights", drafter.quantization.is_quantized),
        ("does not run without the key num_target_layers", config.num_target_layers is None),
    )
    return next((what for what, is_needed in lacks if is_needed), None)


def _config_json(drafter: Checkpoint[DrafterConfig]) -> dict[str, object]:
    return read_json_in(drafter.directory, "config.json") or {}
