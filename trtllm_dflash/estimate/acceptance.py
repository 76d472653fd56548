"""How many tokens a step yields, by how many drafts it verifies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError


@dataclass(frozen=True)
class AcceptanceByPosition:
    """`shares[j]` is the share of steps that accept more than j drafts; it never grows with j."""

    shares: tuple[float, ...]

    @classmethod
    def from_acceptance_length(cls, length: float, draft_len: int) -> AcceptanceByPosition:
        """Accept every draft with one probability p, given those before it.

        A step of k drafts then yields 1 + p + … + p^k tokens. p is found by halving, such that
        `draft_len` drafts yield `length`.

        Raises:
            UsageError: for a length that no such step can have.
        """
        if not 1.0 <= length <= draft_len + 1:
            raise UsageError(
                f"--acceptance-length {length} is impossible: a step that verifies {draft_len}"
                f" drafts yields 1 to {draft_len + 1}"
            )
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if sum(middle**j for j in range(draft_len + 1)) < length:
                low = middle
            else:
                high = middle
        return cls(tuple(high ** (j + 1) for j in range(draft_len)))

    def acceptance_length(self, draft_len: int) -> float:
        """Return the tokens that a step of `draft_len` drafts yields, the bonus included."""
        return 1 + sum(self.shares[:draft_len])


def read_acceptance(path: Path, draft_len: int) -> AcceptanceByPosition:
    """Read the JSON of `dflash-trt profile`, or {"by_position": [...]}, or {"tau": number}.

    Of a profile, the DFlash result with most drafts counts. Positions beyond those that were
    measured count as never accepted. A single number is that of steps of `draft_len` drafts.

    Raises:
        UsageError: for a file that has none of it, or for values that no step can have.
    """
    data = _from_profile(_read_json(path))
    shares, length = data.get("by_position"), data.get("tau")
    if isinstance(shares, list):
        reached = _checked_shares(path, shares)[:draft_len]
        return AcceptanceByPosition((*reached, *[0.0] * (draft_len - len(reached))))
    if length is not None and _is_number(length):
        return AcceptanceByPosition.from_acceptance_length(float(length), draft_len)
    raise UsageError(
        f"{path}: it is no profile with a DFlash result that has drafts, and has neither"
        " by_position nor tau"
    )


def _checked_shares(path: Path, shares: list[Any]) -> list[float]:
    if not shares:
        raise UsageError(
            f"{path}: by_position is empty: nothing was drafted, so nothing was measured"
        )
    if not all(_is_number(share) for share in shares):
        raise UsageError(f"{path}: by_position must be a list of numbers")
    if not all(0 <= later <= earlier for earlier, later in pairwise([1.0, *shares])):
        raise UsageError(f"{path}: by_position must be shares from 1 to 0 that never grow")
    return [float(share) for share in shares]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"--acceptance-length {path} is neither a number nor a file")
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"--acceptance-length {path}: cannot be read ({error.strerror}). Give another file or"
            " a number."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--acceptance-length {path}: not JSON ({error}). Give a file of profile --json, or"
            " a number."
        ) from error
    return data if isinstance(data, dict) else {}


def _from_profile(data: dict[str, Any]) -> dict[str, Any]:
    """Return the acceptance in a profile; anything else as it is."""
    results = data.get("results")
    best: dict[str, Any] = {}
    for row in results if isinstance(results, list) else []:
        if not isinstance(row, dict):
            continue
        # Profiles of schema 1 say "maker".
        if row.get("implementation", row.get("maker")) != "dflash":
            continue
        # DFlash's engine without drafts measures no acceptance.
        if _is_number(row.get("draft_len")) and row["draft_len"] > best.get("draft_len", 0):
            best = row
    if not best:
        return data
    found = best.get("acceptance")
    return found if isinstance(found, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
