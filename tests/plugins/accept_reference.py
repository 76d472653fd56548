"""DFlashAccept in NumPy: the body's procedure with exact sums, so that it can say where rounding
decides.

The scores are float32, bit for bit those of the body and of the kernel. So are the middles of the
bisection, and the bits of the noise: top-k is exact. Masses, their sums and the noise's logarithms
are float64. Where a number in float32 may fall to either side of what it is compared with, all the
tokens that rounding may choose are admissible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.fixtures.noise import NOISE_ERROR, noise, noise_keys
from tests.fixtures.sampling import CHOICE_NAMES, choice_arrays, unadjusted

_FLOOR, _BISECTIONS = np.float32(-104), 32
EPS = float(np.finfo(np.float32).eps) / 2  # the largest relative error of one rounding


def rounding(vocab: int) -> float:
    """Return the relative error of the kernel's sums of masses.

    It is 5 roundings in each mass: expf has 2 ulp in CUDA's manual, 1 in glibc. A lane sums
    V / 1024 in order. A warp takes 5 steps, and 5 over warps.

    The sums of the scan are of chunks. A thread sums 64 masses, a warp takes 5 steps. Over warps it
    is 8, then V / 8188 chunks. Their scores are off by 9 roundings, as a mass by that times its
    score. The mean of those is no larger than log V.
    """
    row = 5 + vocab / 1024 + 5 + 5
    chunks = 5 + 64 + 5 + 8 + vocab / 8188 + 9 * np.log(vocab)
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
    logits: np.ndarray, settings: Mapping[str, float], noises: np.ndarray, slack: float
) -> np.ndarray:
    """Return which tokens [V] a row of float32 logits may become when sums are off by the relative
    error `slack`; noises float64 [V].
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
        kept = (mass > 0) & _kept(x, mass, limit * (1 + off * slack)) & (x >= min(lowest, 0))
        scores = np.where(kept, x + noises, -np.inf)
        found |= scores >= scores.max() - NOISE_ERROR
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


def accept_case(logits: np.ndarray, *, width: int = 0, **given: Any) -> dict[str, np.ndarray]:
    """Return inputs for logits [B, R, V], greedy and with wrong drafts if not told otherwise."""
    batch, rows, _ = logits.shape
    ids = given.get("input_ids", np.full((batch, width or rows), -7))
    return {
        "logits": logits.astype(np.float32),
        "input_ids": ids.astype(np.int64),
        "num_known": np.asarray(given.get("num_known", np.ones(batch)), np.int32),
        "past_len": np.arange(batch, dtype=np.int32) * 3,
        **choice_arrays(batch, **given),
        "noise_key": noise_keys(batch, given.get("seed", 0)),
        **unadjusted(logits),
    }


def row_noise(arrays: Mapping[str, np.ndarray], slot: int, row: int = 0) -> np.ndarray:
    """Return the noise [V] of a row."""
    position = int(arrays["past_len"][slot]) + int(arrays["num_known"][slot]) + row
    tokens = np.arange(arrays["logits"].shape[-1])
    return noise(arrays["noise_key"][slot], np.array([position]), tokens)[0]


def assert_admissible(arrays: Mapping[str, np.ndarray], got: np.ndarray) -> int:
    """Check the tokens `got` [B] of one row a slot, and return of how many rounding decides."""
    logits = arrays["logits"][:, 0]
    slack, open_to_rounding = rounding(logits.shape[1]), 0
    for b, token in enumerate(got):
        settings = {name: arrays[name][b].item() for name in CHOICE_NAMES}
        tokens = admissible(logits[b], settings, row_noise(arrays, b), slack)
        assert token in np.flatnonzero(tokens), (
            f"slot {b}: token {token}, admissible {np.flatnonzero(tokens)[:5]}, settings {settings}"
        )
        open_to_rounding += int(tokens.sum() > 1)
    return open_to_rounding
