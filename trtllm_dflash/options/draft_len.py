"""The number of drafts in a step, as a number or as "auto"."""

from __future__ import annotations

from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer, parse_integer, shown

AUTO = "auto"
"""As many drafts as pay, by what is accepted and what steps cost (`runtime.draft_len_chooser`)."""


def check_draft_len(value: Any, *, low: int = 0, name: str = "draft_len") -> None:
    """Raise UsageError unless `value` is "auto", an integer of at least `low`, or None."""
    if value is None or (isinstance(value, str) and value == AUTO):
        return
    if isinstance(value, str):
        raise UsageError(f'{name} is {shown(value)}, expected an integer or "{AUTO}".')
    check_integer(name, value, low=low)


def parse_draft_len(text: str, *, low: int = 0, name: str = "--draft-len") -> Any:
    """Return the number or AUTO that a text stands for.

    Raises:
        UsageError: for anything else.
    """
    if text == AUTO:
        return AUTO
    return parse_integer(name, text, low=low, advice=f" {AUTO}: as many as pay.")


def parse_own_draft_len(text: str) -> Any:
    """Return what an engine's own number of drafts can be: AUTO, or at least 1.

    Raises:
        UsageError: for anything else.
    """
    return parse_draft_len(text, low=1)


def own_drafts(draft_len: int, *, auto: bool) -> str:
    """Return what an engine verifies where a request does not say: "3 drafts"."""
    if auto:
        return "as many drafts as pay"
    return "1 draft" if draft_len == 1 else f"{draft_len} drafts"
