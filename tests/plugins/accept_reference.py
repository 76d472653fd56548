"""DFlashAccept in NumPy: the body's procedure with exact sums, so that it can say where rounding
decides.

The scores are float32, bit for bit those of the body and of the kernel. So are the middles of the
bisection: top-k is exact. Masses and their sums are float64. Where a sum in float32 may fall to
either side of what it is compared with, all the tokens that rounding may choose are admissible.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.fixtures.sampling import CHOICE_NAMES, choice_arrays, unadjusted

_FLOOR, _BISECTIONS = np.float32(-104), 32
EPS = float(np.finfo(np.float32).eps) / 2  # the largest relative error of one rounding


def rounding(vocab: int) -> float:
    """Return the relative error of the kernel's sums of masses.

    It is 5 roundings in each mass: expf has 2 ulp in CUDA's manual, 1 in glibc. A lane sums
    V / 1024 in order. A warp takes 5 steps. Over warps it is 5 steps for a total, 32 for its
    prefixes.

    The sums of the scan are of chunks. A thread sums 34 masses, a warp takes 5 steps. Over warps it
    is 8, then V / 8192 chunks. Their scores are off by 9 roundings, as a mass by that times its
    score. The mean of those is no larger than log V.
    """
    row = 5 + vocab / 1024 + 5 + 32
    chunks = 5 + 34 + 5 + 8 + vocab / 8192 + 9 * np.log(vocab)
    return max(row, float(chunks)) * EPS


def _kept(x: np.ndarray, weight: np.ndarray, limit: float) -> np.ndarray:
    """Mark the scores x [V] with less weight than `limit` above them, by the bisection of
    graph/ops/sampling.py.
    """
    low, high = _FLOOR, np.float32(0)
    for _ in range(_BISECTIONS):
        middle = (low + high) * np.float32(0.5)
        if weight[x > middle].sum() < limit:
            high = middle
        else:
            low = middle
    return x > low


def admissible(
    logits: np.ndarray, settings: Mapping[str, float], uniform: float, slack: float
) -> np.ndarray:
    """Return which tokens [V] a row of float32 logits may become when sums are off by the relative
    error `slack`.
    """
    temperature, top_p, top_k = (settings[name] for name in ("temperature", "top_p", "top_k"))
    if not temperature > 0:
        return np.arange(logits.size) == logits.argmax()
    with np.errstate(over="ignore"):  # the coldest
        x = (logits - logits.max()) / np.float32(temperature)
    mass = np.exp(x.astype(np.float64))
    mass[x <= _FLOOR] = 0  # exp is 0 there in float32
    if top_k > 0:
        mass[~_kept(x, np.ones(x.size), top_k)] = 0
    limit = float(np.float32(top_p)) * mass.sum() if top_p < 1 else np.inf
    found = np.zeros(x.size, bool)
    for off in (-2, 2):  # the limit is a sum, and so is what is compared with it
        lowest = np.log(settings["min_p"]) - off * slack if settings["min_p"] > 0 else -np.inf
        kept = _kept(x, mass, limit * (1 + off * slack)) & (x >= min(lowest, 0))
        rest = np.where(kept, mass, 0.0)
        cdf = np.cumsum(rest)
        target, either = float(np.float32(uniform)) * cdf[-1], 4 * slack * cdf[-1]
        found |= (rest > 0) & (cdf >= target - either) & (cdf - rest <= target + either)
    return found


def accept_prefix(arrays: dict[str, np.ndarray], choice: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs that follow from the choices [B, R], row by row."""
    batch, rows = choice.shape
    ids, known = arrays["input_ids"], arrays["num_known"]
    new_ids = np.full((batch, rows), -1, np.int64)
    accepted = np.zeros(batch, np.int32)
    for b in range(batch):
        drafts = ids[b, known[b] :][: rows - 1]
        while accepted[b] < len(drafts) and drafts[accepted[b]] == choice[b, accepted[b]]:
            accepted[b] += 1
        new_ids[b, : accepted[b] + 1] = choice[b, : accepted[b] + 1]
    return {
        "new_ids": new_ids,
        "num_new": accepted + 1,
        "next_len": arrays["past_len"] + known + accepted,
        "bonus": choice[np.arange(batch), accepted][:, None].astype(np.int64),
    }


def accept_case(
    logits: np.ndarray, *, width: int = 0, **given: np.ndarray
) -> dict[str, np.ndarray]:
    """Inputs for logits [B, R, V], greedy and with wrong drafts if not told otherwise; `uniforms`
    [B, R] is by row.
    """
    batch, rows, _ = logits.shape
    ids = given.get("input_ids", np.full((batch, width or rows), -7))
    known = np.asarray(given.get("num_known", np.ones(batch)), np.int32)
    past = np.arange(batch, dtype=np.int32) * 3
    # A table by position: NaN wherever no row has to look.
    table = np.full((batch, int((past + known).max()) + rows), np.nan, np.float32)
    for b in range(batch):
        table[b, past[b] + known[b] :][:rows] = given.get("uniforms", np.zeros((batch, rows)))[
            b
        ]
    return {
        "logits": logits.astype(np.float32),
        "input_ids": ids.astype(np.int64),
        "num_known": known,
        "past_len": past,
        **choice_arrays(batch, **given),
        "uniforms": table,
        **unadjusted(logits),
    }


def assert_admissible(arrays: Mapping[str, np.ndarray], got: np.ndarray) -> int:
    """Check the tokens `got` [B] of one row a slot, and return of how many rounding decides."""
    logits = arrays["logits"][:, 0]
    slack, open_to_rounding = rounding(logits.shape[1]), 0
    for b, token in enumerate(got):
        settings = {name: arrays[name][b].item() for name in CHOICE_NAMES}
        uniform = arrays["uniforms"][b, arrays["past_len"][b] + arrays["num_known"][b]]
        tokens = admissible(logits[b], settings, uniform, slack)
        assert token in np.flatnonzero(tokens), (
            f"slot {b}: token {token}, admissible {np.flatnonzero(tokens)[:5]}, settings {settings}"
        )
        open_to_rounding += int(tokens.sum() > 1)
    return open_to_rounding
