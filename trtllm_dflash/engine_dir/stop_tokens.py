"""Tokens that end an answer by the tokenizer or the chat template, against the stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.log import printable


@dataclass(frozen=True)
class TurnEnd:
    """A token behind which nothing of an answer follows, and where that is said."""

    text: str
    token_id: int
    origin: str  # "eos_token" or "chat template"

    def __str__(self) -> str:
        """Return text and id for people."""
        return f"{printable(self.text)[:40]} ({self.token_id})"


def turn_ends_of(rows: Any) -> list[TurnEnd]:
    """Return the ends that an engine's config.json lists; earlier engines have no such list."""
    if not isinstance(rows, list):
        return []
    return [TurnEnd(**row) for row in rows if _is_turn_end(row)]


def _is_turn_end(row: Any) -> bool:
    known = {"text": str, "token_id": int, "origin": str}
    if not isinstance(row, dict) or row.keys() != known.keys():
        return False
    return all(isinstance(row[name], known[name]) for name in known)


def missed_ends(
    stop_token_ids: Sequence[int], ends: Sequence[TurnEnd], *, advice: str
) -> list[str]:
    """Return a sentence for each end that is no stop token; `advice` is what takes the ids."""
    if not stop_token_ids:
        return []
    sentences = []
    told = set(stop_token_ids)
    for end in ends:
        if end.token_id in told:
            continue
        told.add(end.token_id)
        whose = "which the template writes behind an answer"
        if end.origin == "eos_token":
            whose = "the tokenizer's eos_token"
        stops = ", ".join(map(str, stop_token_ids))
        wanted = ",".join(map(str, (*stop_token_ids, end.token_id)))
        sentences.append(
            f"{end}, {whose}, is no stop token ({stops}): an answer goes on behind it. If the model"
            f" ends its turns with it, {advice} {wanted}"
        )
    return sentences
