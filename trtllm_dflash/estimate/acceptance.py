"""How many tokens a step yields, by how many drafts it verifies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError


@dataclass(frozen=True)
class Acceptance:
    """`reached[j]`: the share of steps in which more than j drafts are accepted; it never grows
    with j.
    """

    reached: tuple[float, ...]

    @classmethod
    def of_tau(cls, tau: float, draft_len: int) -> Acceptance:
        """Every draft is accepted with one and the same probability, given those before it; `tau`
        tokens in all.

        A step of k drafts then yields 1 + p + … + p^k. p is found by halving.

        Raises:
            UsageError: for a tau that no such step can have.
        """
        if not 1.0 <= tau <= draft_len + 1:
            raise UsageError(
                f"--tau {tau} is impossible: a step that verifies {draft_len} drafts yields 1 to"
                f" {draft_len + 1}"
            )
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if _yield(middle, draft_len) < tau else (low, middle)
        return cls(tuple(high ** (j + 1) for j in range(draft_len)))

    def tau(self, draft_len: int) -> float:
        """Tokens that a step of `draft_len` drafts yields, the bonus included."""
        return 1 + sum(self.reached[:draft_len])


def read_acceptance(path: Path, draft_len: int) -> Acceptance:
    """Read what was measured: the JSON that `dflash-trt profile` writes, or {"by_position": [...]},
    or {"tau": number}.

    Of a profile, the DFlash result with most drafts counts. Positions beyond those that were
    measured count as never accepted. A tau is that of steps of `draft_len` drafts.

    Raises:
        UsageError: for a file that says none of it, or what no step can do.
    """
    data = _of_profile(_read(path))
    shares, tau = data.get("by_position"), data.get("tau")
    if isinstance(shares, list):
        if not shares:
            raise UsageError(
                f"{path}: by_position is empty: nothing was drafted, so nothing was measured"
            )
        if not all(_is_number(share) for share in shares):
            raise UsageError(f"{path}: by_position must be a list of numbers")
        reached = [float(share) for share in shares]
        if not all(0 <= later <= earlier for earlier, later in pairwise([1.0, *reached])):
            raise UsageError(f"{path}: by_position must be shares from 1 to 0 that never grow")
        return Acceptance((*reached[:draft_len], *[0.0] * (draft_len - len(reached))))
    if _is_number(tau):
        return Acceptance.of_tau(float(tau), draft_len)  # type: ignore[arg-type]
    raise UsageError(
        f"{path}: it is no profile with a DFlash result that has drafts, and has neither"
        " by_position nor tau"
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"--tau {path} is neither a number nor a file")
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"--tau {path}: cannot be read ({error.strerror}). Give another file or a number."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--tau {path}: not JSON ({error}). Give a file of profile --json, or a number."
        ) from error
    return data if isinstance(data, dict) else {}


def _of_profile(data: dict[str, Any]) -> dict[str, Any]:
    """The acceptance in a profile; anything else as it is."""
    results = data.get("results")
    rows = [row for row in results if isinstance(row, dict)] if isinstance(results, list) else []
    drafted = [
        row
        for row in rows
        if row.get("implementation") == "dflash" and _is_number(row.get("draft_len"))
    ]
    drafted = [
        row for row in drafted if row["draft_len"] > 0
    ]  # DFlash's engine without drafts measures none
    if not drafted:
        return data
    found = max(drafted, key=lambda row: row["draft_len"]).get("acceptance")
    return found if isinstance(found, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _yield(p: float, drafts: int) -> float:
    return sum(p**j for j in range(drafts + 1))
