"""The number of drafts in a step, as a number or as "auto"."""

from __future__ import annotations

from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer, shown

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
    if not text.isdecimal() or len(text) > len("1024"):
        raise UsageError(
            f'--draft-len is {shown(text)}, expected an integer of at least 0, or "{AUTO}".'
        )
    return int(text)
