"""Checks that the reference package and transformers compute a pair as an engine does."""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.checkpoint import reference_package
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.errors import UsageError


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
    reason = reference_package.missing_in_reference(found, decodes=True)
    if reason is not None:
        raise UsageError(
            f"--against reference: the package dflash 0.1.0 {reason}, as the drafter {drafter}"
            " needs. Use --against plain,hf"
        )
    return reference_package.reference_class(found)
