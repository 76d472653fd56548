"""The kernels of DFlashArgmax against the operator's body, in the emulator and on a GPU; and its
plugin.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.fixtures.noise import noise_bits
from tests.graph.run_op import run_op

pytest.importorskip("tensorrt_rtx")
from tests.plugins.emulated_plugin import EmulatedModule, enqueue
from tests.plugins.launcher_calls import argmax_arrays
from tests.plugins.library import BFLOAT16, Library, poisoned
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.trt_plugins.params import ArgmaxParams, argmax_plan

pytestmark = pytest.mark.slow

CHUNK = 16376  # kArgmaxElements
WARP_STEP = 2048  # logits that a CTA loads at once
SIZES = [(1, 1), (3, 5), (4, 8), (5, 97), (7, 1000), (2, CHUNK), (9, CHUNK + 1), (3, 40_003)]


class ArgmaxPlan(ctypes.Structure):
    """DFlashArgmaxPlan of dflash.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("chunks", "reserved")),
        ("workspace_bytes", ctypes.c_int64),
    )


def plan(library: Library, rows: int, vocab: int) -> ArgmaxPlan:
    made = ArgmaxPlan()
    sizes = map(ctypes.c_int32, (rows, vocab))
    assert library.c.dflash_argmax_plan(*sizes, ctypes.byref(made)) == 0
    return made


def run_argmax(library: Library, logits: np.ndarray, **given: Any) -> np.ndarray:
    """Return the places; greedy, of one slot, if not told otherwise."""
    given = argmax_arrays({"logits": logits}, **({"slots": 1} | given))
    names = (*(tensor.name for tensor in OPS["DFlashArgmax"].inputs), "places")
    arrays = given | {"places": poisoned([len(logits)], np.int64)}
    space = plan(library, *logits.shape).workspace_bytes
    return library.call("dflash_argmax", arrays, names, ("places",), space)["places"]


def body(logits: np.ndarray, **given: Any) -> np.ndarray:
    given = argmax_arrays({"logits": logits.astype(np.float32)}, **({"slots": 1} | given))
    return run_op("DFlashArgmax", given)["places"]


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_the_first_of_equals(any_order: Library, rows: int, vocab: int) -> None:
    """Rows begin at any address, and few values tie everywhere: as the body, and as NumPy."""
    logits = np.random.default_rng(vocab).integers(-3, 4, (rows, vocab)).astype(BFLOAT16)
    got = run_argmax(any_order, logits)
    np.testing.assert_array_equal(got, logits.astype(np.float32).argmax(-1))
    np.testing.assert_array_equal(got, body(logits))


@pytest.mark.parametrize(
    "at", [0, 7, WARP_STEP - 1, WARP_STEP, CHUNK - 1, CHUNK, 2 * CHUNK + 2]
)
def test_the_largest_anywhere(library: Library, at: int) -> None:
    """With an equal one at the end, in rows that begin at each residue of a 16-byte address."""
    logits = np.random.default_rng(at).standard_normal((8, 2 * CHUNK + 3)).astype(BFLOAT16)
    logits[:, [at, -1]] = 9
    np.testing.assert_array_equal(run_argmax(library, logits), [at] * 8)


def test_rows_of_infinities_and_zeros(any_order: Library) -> None:
    """The smallest number is one too, zeros of both signs tie, and so do infinities."""
    logits = np.full((4, CHUNK + 20), -np.inf, BFLOAT16)
    logits[1, CHUNK + 3] = -3e38
    logits[2, 5:] = np.where(np.arange(CHUNK + 15) % 2, 0.0, -0.0)
    logits[3, [40, CHUNK + 9]] = np.inf
    got = run_argmax(any_order, logits)
    assert got.tolist() == [0, CHUNK + 3, 5, 40]
    np.testing.assert_array_equal(got, body(logits))


@pytest.mark.parametrize("vocab", [1, 97, CHUNK + 5])
def test_nan_gives_a_place_of_the_row(any_order: Library, vocab: int) -> None:
    """Other rows do not change."""
    logits = np.random.default_rng(vocab).standard_normal((6, vocab)).astype(BFLOAT16)
    logits[0] = np.nan
    logits[2, vocab // 2] = np.nan
    got = run_argmax(any_order, logits)
    assert ((got >= 0) & (got < vocab)).all()
    sound = [1, 3, 4, 5]
    np.testing.assert_array_equal(got[sound], logits[sound].astype(np.float32).argmax(-1))


def test_plans_and_parameters_are_the_headers(library: Library) -> None:
    library.c.dflash_argmax_params_bytes.restype = ctypes.c_int64
    assert library.c.dflash_argmax_params_bytes() == ctypes.sizeof(ArgmaxParams)
    for rows, vocab in [*SIZES, (480, 151936), (1, 248320), (65535, 8 * CHUNK + 8)]:
        made, ours = plan(library, rows, vocab), argmax_plan(rows=rows, vocab=vocab)
        assert (made.chunks, made.workspace_bytes) == (ours.chunks, ours.workspace_bytes)


@pytest.mark.parametrize("vocab", [5, 211, 9001, 40_003])
def test_sampled_slots_choose_by_noise(any_order: Library, vocab: int) -> None:
    """As the body, with every filter, of listed tokens and of all."""
    rng = np.random.default_rng(vocab)
    slots, rows = 8, 3
    logits = (2 * rng.standard_exponential((slots * rows, vocab)) - 7).astype(BFLOAT16)
    given = {
        "slots": slots,
        "temperature": [0, 0.6, 1, 0.6, 1, 1, 2, 0],
        "top_p": [1, 1, 1, 0.9, 0.5, 1, 1, 0.5],
        "top_k": [0, 0, 0, 0, 20, 7, 0, 9],
        "min_p": [0, 0, 0, 0, 0, 0, 0.05, 0.1],
    }
    for tokens in ({}, {"tokens": np.sort(rng.choice(10**6, vocab, replace=False))}):
        got = run_argmax(any_order, logits, **given, **tokens)
        np.testing.assert_array_equal(got, body(logits, **given, **tokens))
        greedy = logits.astype(np.float32).argmax(-1)
        assert (got == greedy)[[0, 1, 2, -3, -2, -1]].all()
        assert vocab < 100 or (got != greedy).any()


def test_drafts_have_the_noise_of_their_positions(library: Library) -> None:
    """Of equal logits the one with the smallest bits is chosen, by the tokens' own numbers."""
    logits = np.full((6, 500), 1.5, BFLOAT16)
    tokens = np.arange(500) * 3 + 7
    given = argmax_arrays({"logits": logits}, temperature=1.0, tokens=tokens)
    got = run_argmax(library, logits, slots=2, temperature=1.0, tokens=tokens)
    for slot, key in enumerate(given["noise_key"]):
        positions = given["next_len"][slot] + np.arange(1, 4)
        want = noise_bits(key, positions, tokens).argmin(-1)
        np.testing.assert_array_equal(got[3 * slot : 3 * slot + 3], want)


@pytest.mark.parametrize(("slots", "rows", "vocab"), [(1, 7, 211), (2, 6, 211), (1, 3, 40_003)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_plugin_launches_what_the_library_does(
    slots: int,
    rows: int,
    vocab: int,
    temperature: float,
    module: EmulatedModule,
    emulated: Library,
) -> None:
    """It tells the kernels which slot a row is of, whose noise counts."""
    logits = np.random.default_rng(rows).integers(-9, 9, (rows, vocab)).astype(BFLOAT16)
    given = argmax_arrays({"logits": logits}, slots=slots, temperature=temperature)
    got = enqueue("DFlashArgmax", given, {})["places"]
    want = run_argmax(emulated, logits, slots=slots, temperature=temperature)
    np.testing.assert_array_equal(got, want)
    assert module.launched == [(f"dflash_argmax_{part}", 77) for part in ("scan", "choose")]
