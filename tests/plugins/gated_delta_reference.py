"""DFlashGatedDelta in float64, and the arrays of its tests: what must not be read is NaN."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.plugins.library import BFLOAT16, Library, LibraryError, poisoned

HEAD_DIM = 128
HISTORY = 3  # rows before a row that its convolution sees
WRITTEN = ("window", "state", "out")
NAMES = (
    *("qkv", "gates", "conv_weight", "a_log", "dt_bias", "window", "state"),
    *("past_len", "state_len", "num_known", "out"),
)
Arrays = dict[str, np.ndarray]


class GatedDeltaOptions(ctypes.Structure):
    """DFlashGatedDeltaOptions of dflash.h."""

    _fields_ = (("key_heads", ctypes.c_int32),)


class GatedDeltaPlan(ctypes.Structure):
    """DFlashGatedDeltaPlan of dflash.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("row_limit", "row_vectors", "row_chunks")),
        *((name, ctypes.c_int32) for name in ("rule_blocks", "shared_bytes", "reserved")),
        ("workspace_bytes", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Slot:
    """A sequence: positions in its state, open rows behind them, rows of the step that are
    certain.
    """

    state_len: int
    open: int
    known: int

    @property
    def commit(self) -> int:
        """Return how many of its rows go into the state."""
        return self.open + self.known


@dataclass(frozen=True)
class Case:
    """A step of `rows` rows a slot; at most `most_open` may be open. `kind`: "random", "repeated"
    (one key again and again, no decay) or "vanishing" (decays of e^-80).
    """

    slots: tuple[Slot, ...]
    rows: int
    key_heads: int = 1
    group: int = 3
    most_open: int = 15
    kind: str = "random"
    seed: int = 0

    @property
    def value_heads(self) -> int:
        return self.key_heads * self.group

    @property
    def channels(self) -> int:
        return (2 * self.key_heads + self.value_heads) * HEAD_DIM

    @property
    def fields(self) -> dict[str, float]:
        """Return the fields of its plugin."""
        sizes = {"key_dim": HEAD_DIM, "value_dim": HEAD_DIM, "conv_kernel": HISTORY + 1}
        return {"num_key_heads": self.key_heads, **sizes}

    def __str__(self) -> str:
        slots = " ".join(f"{s.state_len}+{s.open}+{s.known}" for s in self.slots)
        heads = f"{self.key_heads}:{self.value_heads}"
        return f"[{slots}]-{self.rows}rows-{heads}-open{self.most_open}-{self.kind}"


def weights(case: Case) -> Arrays:
    """Return the parameters of a layer."""
    rng = np.random.default_rng(case.seed)
    heads = case.value_heads
    conv = rng.standard_normal((case.channels, 1, HISTORY + 1)) * 0.5
    a_log, dt_bias = np.log(rng.uniform(0.02, 1, heads)), rng.uniform(-4, 0, heads)
    if case.kind == "repeated":
        a_log = np.full(heads, -30.0)
    if case.kind == "vanishing":
        a_log, dt_bias = np.full(heads, np.log(8.0)), np.full(heads, 10.0)
    made = {"conv_weight": conv.astype(BFLOAT16), "a_log": a_log, "dt_bias": dt_bias}
    return {key: x if x.dtype == BFLOAT16 else x.astype(np.float32) for key, x in made.items()}


def raw_rows(case: Case, rng: np.random.Generator, *leading: int) -> np.ndarray:
    """Return rows of qkv and gates beside one another, [*leading, C+2Hv]."""
    channels = rng.standard_normal((*leading, case.channels))
    gates = rng.standard_normal((*leading, 2 * case.value_heads)) * 1.5
    if case.kind == "repeated":
        channels[:] = channels[(0,) * len(leading)]
        gates[..., : case.value_heads] = 4  # beta .98
    if case.kind == "vanishing":
        gates[..., case.value_heads :] = 0
    return np.concatenate([channels, gates], -1).astype(BFLOAT16)


def split(case: Case, rows: np.ndarray) -> Arrays:
    """Return raw rows as the operator's inputs."""
    parts = np.split(rows, [case.channels], -1)
    return dict(zip(("qkv", "gates"), map(np.ascontiguousarray, parts), strict=True))


def lengths(case: Case) -> Arrays:
    """Return the control inputs."""
    found = {
        "past_len": [s.state_len + s.open for s in case.slots],
        "state_len": [s.state_len for s in case.slots],
        "num_known": [s.known for s in case.slots],
    }
    return {name: np.array(values, np.int32) for name, values in found.items()}


def inputs(case: Case) -> Arrays:
    """Return all inputs by name; rows of the window that do not count, and states of no positions,
    are NaN.
    """
    rng = np.random.default_rng(case.seed + 1)
    batch, heads = len(case.slots), case.value_heads
    window = raw_rows(case, rng, batch, 1, HISTORY + case.most_open)
    state = rng.standard_normal((batch, heads, HEAD_DIM, HEAD_DIM)).astype(np.float32) * 0.3
    for index, slot in enumerate(case.slots):
        window[index, 0, HISTORY + slot.open :] = np.nan
        window[index, 0, : max(HISTORY - slot.state_len, 0)] = np.nan
        if slot.state_len == 0:
            state[index] = np.nan
    step = split(case, raw_rows(case, rng, batch, case.rows))
    made = {**step, **weights(case), "window": window, "state": state, **lengths(case)}
    return {name: made[name] for name in NAMES if name in made}


def rows_of(case: Case, given: Arrays, index: int) -> np.ndarray:
    """Return a slot's raw rows in order, from HISTORY rows before its open ones on; 0 before
    position 0.
    """
    slot = case.slots[index]
    step = np.concatenate([given["qkv"][index], given["gates"][index]], -1)
    rows = np.concatenate([given["window"][index, 0, : HISTORY + slot.open], step])
    rows[: max(HISTORY - slot.state_len, 0)] = 0
    return rows


def _normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def _recurrence(
    case: Case, given: Arrays, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield q, k [Hv, D], v [Hv, D], decay and beta [Hv] of each row behind the history."""
    hk, hv, count = case.key_heads, case.value_heads, len(rows) - HISTORY
    conv = given["conv_weight"].astype(np.float64)[:, 0]  # [C, 4]
    u = rows[:, : case.channels]
    y = sum(conv[:, o] * u[o : o + count] for o in range(HISTORY + 1))
    q, k, v = np.split(y / (1 + np.exp(-y)), [hk * HEAD_DIM, 2 * hk * HEAD_DIM], -1)
    q, k = (_normed(x.reshape(count, hk, HEAD_DIM)).repeat(case.group, 1) for x in (q, k))
    b, a = np.split(rows[HISTORY:, case.channels :], 2, -1)
    rate = np.exp(given["a_log"].astype(np.float64))
    decay = np.exp(-rate * np.logaddexp(0, a + given["dt_bias"]))
    yield from zip(
        q * HEAD_DIM**-0.5,
        k,
        v.reshape(count, hv, HEAD_DIM),
        decay,
        1 / (1 + np.exp(-b)),
        strict=True,
    )


def expected(case: Case, given: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return out [B, S, Hv, D] and the state behind the certain rows, in float64."""
    outs, states = [], []
    for index, slot in enumerate(case.slots):
        s = given["state"][index].astype(np.float64) if slot.state_len else 0.0
        s = np.broadcast_to(s, given["state"].shape[1:])
        kept, out = given["state"][index].astype(np.float64), []
        rows = rows_of(case, given, index).astype(np.float64)
        for n, (q, k, v, decay, beta) in enumerate(_recurrence(case, given, rows), 1):
            s = s * decay[:, None, None]
            change = (v - np.einsum("hkv,hk->hv", s, k)) * beta[:, None]
            s = s + k[:, :, None] * change[:, None]
            out.append(np.einsum("hkv,hk->hv", s, q))
            if n == slot.commit:
                kept = s
        outs.append(np.stack(out[slot.open :]))
        states.append(kept)
    return np.stack(outs), np.stack(states)


def expected_window(case: Case, given: Arrays) -> np.ndarray:
    """Return the window moved on: rows from HISTORY before the certain ones' end. Behind the
    step's last row it is as it was.
    """
    window = given["window"].copy()
    for index, slot in enumerate(case.slots):
        rows = rows_of(case, given, index)[slot.commit :][: window.shape[2]]
        window[index, 0, : len(rows)] = rows
    return window


def plan(library: Library, *sizes: int) -> GatedDeltaPlan:
    """Return the plan for (batch, rows, window_rows, key_heads, value_heads)."""
    made = GatedDeltaPlan()
    if status := library.c.dflash_gated_delta_plan(
        *map(ctypes.c_int32, sizes), ctypes.byref(made)
    ):
        raise LibraryError(status, library.c.dflash_last_error().decode())
    return made


def run(library: Library, case: Case, given: Arrays) -> Arrays:
    """Return what dflash_gated_delta writes: window, state, out."""
    batch, rows = given["qkv"].shape[:2]
    out = poisoned((batch, rows, case.value_heads, HEAD_DIM), BFLOAT16)
    heads = case.key_heads, case.value_heads
    needed = plan(library, batch, rows, given["window"].shape[2], *heads).workspace_bytes
    options = GatedDeltaOptions(case.key_heads)
    arrays = {**given, "out": out}
    return library.call("dflash_gated_delta", arrays, NAMES, WRITTEN, needed, options)


def assert_close(case: Case, given: Arrays, got: Arrays) -> None:
    """Check out and state against float64 and the window bit for bit.

    A float32 recurrence loses some last bits of numbers of the state's size, and `out` is rounded
    to bfloat16.
    """
    out, state = expected(case, given)
    bits = got["window"].view(np.uint16), expected_window(case, given).view(np.uint16)
    np.testing.assert_array_equal(*bits)
    for index, slot in enumerate(case.slots):
        lost = 2.0**-20 * max(np.abs(np.nan_to_num(state[index])).max(), 1)
        error = np.abs(got["out"][index].astype(np.float64) - out[index])
        assert (error <= 2.0**-8 * np.abs(out[index]) + lost).all(), (
            f"{case}: out of slot {index}"
        )
        if slot.commit:
            error = np.abs(got["state"][index] - state[index])
            assert (error <= 2 * lost).all(), f"{case}: state of slot {index}"
