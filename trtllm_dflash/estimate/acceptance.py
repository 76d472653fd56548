"""How many tokens a step yields, by how many drafts it verifies.

Shares describe that: `shares[j]` is the share of steps that accept more than j drafts. It never
grows with j.
"""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.estimate import read_acceptance

Shares = tuple[float, ...]


def acceptance_length(shares: Shares, draft_len: int) -> float:
    """Return the tokens that a step of `draft_len` drafts yields, the bonus included."""
    return 1 + sum(shares[:draft_len])


def shares_of_length(length: float, draft_len: int) -> Shares:
    """Return shares as if every draft were accepted with one probability p, given those before it.

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
    return tuple(high ** (j + 1) for j in range(draft_len))


def find_shares(given: str | None, drafter: Path, draft_len: int) -> tuple[Shares, str]:
    """Return the shares that the user gives or a drafter's authors publish, and their source.

    Of a file, positions beyond those that were measured count as never accepted.

    Raises:
        UsageError: if none is given or published, and for values that no step can have.
    """
    if given is not None:
        measured, source = read_acceptance(given)
        if isinstance(measured, list):
            return (*measured, *[0.0] * draft_len)[:draft_len], source
        return shares_of_length(measured, draft_len), source
    listed = None if drafter.is_dir() else pair_of(str(drafter), "drafter")
    if listed is None or listed.drafter.acceptance_length is None:
        raise UsageError(
            f"--acceptance-length is needed: no published one is known for the drafter {drafter}"
        )
    length, source = listed.drafter.acceptance_length, listed.drafter.acceptance_source
    return shares_of_length(length, draft_len), f"{length} ({source})"
