"""The number of drafts in a step, as a number or as "auto"."""

from __future__ import annotations

from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer, parse_integer, shown

AUTO = "auto"
"""As many drafts as pay, by what is accepted and what steps cost (`runtime.draft_len_chooser`)."""


def check_draft_len(value: Any) -> None:
    """Raise UsageError unless `value` is "auto", an integer of at least 0, or None."""
    if value is None or (isinstance(value, str) and value == AUTO):
        return
    if isinstance(value, str):
        raise UsageError(f'draft_len is {shown(value)}, expected an integer or "{AUTO}".')
    check_integer("draft_len", value, low=0)


def parse_draft_len(text: str) -> Any:
    """Return the number or AUTO that a text stands for.

    Raises:
        UsageError: for anything else.
    """
    if text == AUTO:
        return AUTO
    return parse_integer("--draft-len", text, low=0, advice=f" {AUTO}: as many as pay.")
