"""The kernels of DFlashAdjust against their meaning in NumPy, and their plugin."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
from tests.plugins.accept_reference import accept_case
from tests.plugins.adjust_reference import CASES, JUNK, Arrays, Case, adjust, inputs, run
from tests.plugins.emulated_plugin import EmulatedModule, enqueue
from tests.plugins.library import POISON, Library
from trtllm_dflash.errors import EngineError
from trtllm_dflash.options import logit_adjustments as bits
from trtllm_dflash.trt_plugins import params
from trtllm_dflash.trt_plugins.kernel_sources import constants

pytestmark = pytest.mark.slow
POISONED = np.full(4, POISON, np.uint8).view(np.float32)[0]


def _assert_same(got: Arrays, expected: Arrays, asks: np.ndarray) -> None:
    """Compare bit for bit; what the kernels must not write has its poison."""
    np.testing.assert_array_equal(got["history_out"], expected["history_out"])
    np.testing.assert_array_equal(got["adjusted"][asks], expected["adjusted"][asks])
    rest = got["adjusted"][~asks].view(np.uint8)
    assert (rest == POISON).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number(any_order: Library, case: Case) -> None:
    arrays = inputs(case)
    _assert_same(run(any_order, arrays), adjust(arrays), arrays["adjusts"] != 0)


def test_random_uses(library: Library) -> None:
    """Small texts of few tokens, in which words end everywhere and drafts repeat."""
    random = np.random.default_rng(0)
    for seed in range(60):
        rows = int(random.integers(1, 9))
        length = rows + int(random.integers(1, 60))
        batch, words, tokens = (int(n) for n in random.integers(1, 6, 3))
        vocab, kinds = int(random.integers(9, 400)), int(random.integers(1, 5))
        case = Case(
            batch, rows, vocab, length, rows, words=words, word_tokens=tokens, seed=seed
        )
        arrays = inputs(replace(case, text_tokens=kinds))
        _assert_same(run(library, arrays), adjust(arrays), arrays["adjusts"] != 0)


@pytest.mark.parametrize("length", [-5, 70, 1 << 30])
def test_lengths_that_cannot_be_right_touch_nothing_else(library: Library, length: int) -> None:
    """The other slot's numbers are as ever; guards around all memory hold."""
    arrays = inputs(replace(CASES[1], batch=2))
    expected = adjust(arrays)
    arrays["past_len"][1] = length
    got = run(library, arrays)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name][0], values[0], err_msg=name)


def test_text_of_no_tokens_is_passed_over(library: Library) -> None:
    """A history's numbers outside the vocabulary count for nothing."""
    case = Case(1, 2, 20, 30, 2, adjusts=1, seed=3)
    arrays = inputs(case)
    arrays["past_len"][:] = 20
    arrays["history"][:] = JUNK
    arrays["history"][0, 0, 3:9, 0] = [-1, 20, 1e9, -1e30, np.inf, np.nan]
    clean = {name: array.copy() for name, array in arrays.items()}
    clean["history"][0, 0, 3:9, 0] = JUNK
    clean["frequency_penalty"][:] = arrays["frequency_penalty"][:] = 0
    np.testing.assert_array_equal(
        run(library, arrays)["adjusted"], run(library, clean)["adjusted"]
    )


def test_acceptance_reads_adjusted_logits_where_a_slot_asks(library: Library) -> None:
    """And only there: elsewhere they are NaN, of which no token comes."""
    random = np.random.default_rng(4)
    for temperature in (0.0, 0.7):
        logits = random.standard_normal((3, 4, 9000))
        others = random.standard_normal((3, 4, 9000))
        options = {"temperature": np.full(3, temperature)}
        mixed = accept_case(logits, **options)
        mixed["adjusts"][1] = 2
        mixed["adjusted"] = np.full(logits.shape, np.nan, np.float32)
        mixed["adjusted"][1] = others[1]
        logits[1] = others[1]
        expected = library.accept(accept_case(logits, **options))
        for name, values in library.accept(mixed).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_the_numbers_are_the_operators(library: Library) -> None:
    """Header and options have the same numbers, and the structure its size."""
    library.c.dflash_adjust_params_bytes.restype = ctypes.c_int64
    assert library.c.dflash_adjust_params_bytes() == ctypes.sizeof(params.AdjustParams)
    found = constants("adjust_params.h")
    names = {"kPenalties": "PENALTIES", "kBiases": "BIASES", "kBadWords": "BAD_WORDS"}
    names["kMask"] = "MASK"
    for name, option in names.items():
        assert found[name] == getattr(bits, option)


@pytest.mark.parametrize("case", CASES[2:4], ids=str)
def test_the_plugin_launches_what_the_library_does(
    case: Case, module: EmulatedModule, emulated: Library
) -> None:
    arrays = inputs(case)
    asks = arrays["adjusts"] != 0
    got, expected = enqueue("DFlashAdjust", arrays, {}), run(emulated, arrays)
    np.testing.assert_array_equal(got["history_out"], expected["history_out"])
    np.testing.assert_array_equal(got["adjusted"][asks], expected["adjusted"][asks])
    kernels = [f"dflash_adjust_{part}" for part in ("count", "rows", "few")]
    assert [name for name, _ in module.launched] == kernels


def test_a_plugin_refuses_a_step_longer_than_its_history(module: EmulatedModule) -> None:
    arrays = inputs(CASES[1])
    arrays["history"] = arrays["history"][:, :, :5]
    with pytest.raises(EngineError, match="8 tokens into a history of 5 rows"):
        enqueue("DFlashAdjust", arrays, {})
    assert module.launched == []
