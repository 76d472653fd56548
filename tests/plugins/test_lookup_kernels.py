"""The kernel of DFlashLookup against its meaning in plain Python, and its plugin."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from trtllm_dflash.graph.ops import lookup as operator

pytest.importorskip("tensorrt_rtx")
from tests.plugins.emulated_plugin import EmulatedModule, enqueue
from tests.plugins.library import Library
from tests.plugins.lookup_reference import (
    CASES,
    LONG,
    PRIORS,
    Arrays,
    Case,
    inputs,
    lookup,
    run,
)
from trtllm_dflash.errors import EngineError
from trtllm_dflash.options.draft_sources import NO_MATCH, NUM_CLASSES, SOURCE_BITS, TALLY_SIZE
from trtllm_dflash.trt_plugins import params
from trtllm_dflash.trt_plugins.kernel_sources import constants

pytestmark = pytest.mark.slow


def _assert_same(got: Arrays, expected: Arrays) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number(any_order: Library, case: Case) -> None:
    arrays = inputs(case)
    _assert_same(run(any_order, arrays), lookup(arrays))


def test_random_uses(library: Library) -> None:
    """Small texts of few tokens, in which most places match somewhere."""
    random = np.random.default_rng(0)
    for seed in range(120):
        width = int(random.integers(1, 12))
        rows = width + int(random.integers(2, 150))
        batch, drafts, vocab = (int(n) for n in random.integers(1, 6, 3))
        case = Case(batch, rows, width, drafts, vocab, bool(seed % 4 == 0), seed=seed)
        arrays = inputs(case)
        _assert_same(run(library, arrays), lookup(arrays))


@pytest.mark.parametrize("length", [-5, 70, 1 << 30])
def test_lengths_that_cannot_be_right_touch_nothing_else(library: Library, length: int) -> None:
    """The other slot's numbers are as ever; guards around all memory hold."""
    arrays = inputs(CASES[1])
    expected = lookup(arrays)
    for name in ("past_len", "next_len"):
        arrays[name][1] = length
    got = run(library, arrays)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name][0], values[0], err_msg=name)


def test_a_long_text(library: Library) -> None:
    arrays = inputs(replace(LONG, batch=1))
    _assert_same(run(library, arrays), lookup(arrays))


def test_the_numbers_are_the_operators(library: Library) -> None:
    """Header, operator and reference have the same numbers, and the structure its size."""
    library.c.dflash_lookup_params_bytes.restype = ctypes.c_int64
    assert library.c.dflash_lookup_params_bytes() == ctypes.sizeof(params.LookupParams)
    found = constants("lookup_params.h")
    names = ("Drafter", "First", "Second", "Third", "Fourth")
    priors = tuple(found[f"kPriorOf{name}"] for name in names)
    assert priors == operator.PRIORS == PRIORS
    matches = tuple(found[name] for name in ("kSecondMatch", "kThirdMatch", "kMaxMatch"))
    assert matches == operator.CLASS_MATCHES
    assert (found["kNumClasses"], found["kTallySize"]) == (NUM_CLASSES, TALLY_SIZE)
    assert (found["kMinMatch"], found["kMeanUnit"]) == (operator.MIN_MATCH, operator.MEAN_UNIT)
    assert found["kNoMatch"] == NO_MATCH
    assert found["kMeanShare"] == operator.MEAN_SHARE
    bits = {"lookup": found["kFromLookup"], "both": found["kFromBoth"], "dflash": 1}
    assert bits == SOURCE_BITS


@pytest.mark.parametrize("case", CASES[2:4], ids=str)
def test_the_plugin_launches_what_the_library_does(
    case: Case, module: EmulatedModule, emulated: Library
) -> None:
    arrays = inputs(case)
    _assert_same(enqueue("DFlashLookup", arrays, {}), run(emulated, arrays))
    assert module.launched == [("dflash_lookup_choose", 77)]


def test_a_plugin_refuses_a_step_as_wide_as_its_history(module: EmulatedModule) -> None:
    arrays = inputs(CASES[1])
    arrays["history"] = arrays["history"][:, :, :5]
    with pytest.raises(
        EngineError, match="5 tokens, and one behind them, in a history of 5 rows"
    ):
        enqueue("DFlashLookup", arrays, {})
    assert module.launched == []
