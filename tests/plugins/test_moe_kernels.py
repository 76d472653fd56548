"""The kernels of DFlashMoE against float64, over odd shapes: emulated, and on a GPU if there is
one.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.plugins.library import BFLOAT16, Library
from tests.plugins.moe_reference import (
    FORMATS,
    FP8_BLOCK,
    FP8_FORMAT,
    Case,
    assert_close,
    chosen,
    expected,
    fitting,
    gpt_oss,
    inputs,
    weights,
)

pytestmark = pytest.mark.slow

ORDERS = ("forward", "reverse", "random")


def run(library: Library, case: Case, given: dict[str, np.ndarray]) -> np.ndarray:
    library.order(case.order, case.seed)
    return library.moe(given, case.options)


def check(library: Library, case: Case) -> np.ndarray:
    given = inputs(case)
    got = run(library, case, given)
    assert_close(case, given, got)
    return got


def _numbered(cases: list[Case]) -> list[Case]:
    """Number the cases, each in another order than its neighbour."""
    return [
        fitting(replace(case, order=ORDERS[n % 3], seed=n), (FP8_BLOCK, 1)[n % 2])
        for n, case in enumerate(cases)
    ]


def _sizes() -> list[Case]:
    """Rows that fill no tile, columns that fill no chunk or several slabs; all activations and
    layouts in turn.
    """
    cases = []
    for n, (weight_format, (hidden, inner)) in enumerate(
        product(FORMATS, [(32, 32), (96, 160), (160, 96), (1184, 32), (64, 1120)])
    ):
        case = Case(
            (1, 3, 9)[n % 3], weight_format, hidden, inner, experts=(2, 5, 33)[n % 3], top_k=2
        )
        case = replace(
            case, interleaved=n % 2 == 0, normalize=n % 4 < 2, shift=n % 3, limit=0.5 * (n % 2)
        )
        cases.append(gpt_oss(case) if n % 5 == 0 else case)
    cases += [
        Case(4, 0, hidden, inner, 3)
        for hidden, inner in ((8, 8), (24, 40), (296, 8), (40, 312))
    ]
    for hidden, inner in ((16, 16), (144, 272), (2064, 16), (48, 400)):
        cases += [Case(tokens, FP8_FORMAT, hidden, inner, 3) for tokens in (3, 20)]
    return _numbered(cases)


def _tokens() -> list[Case]:
    """Return cases of one token up to full and partial tiles of 8, 16 and 32."""
    counts = (1, 2, 7, 8, 16, 17, 24, 25, 33, 70, 150)
    cases = []
    for weight_format, tokens in product(FORMATS, counts):
        case = Case(tokens, weight_format, 64, 32, experts=6, top_k=2)
        cases.append(replace(case, interleaved=bool(tokens % 2)))
    return _numbered(cases)


def _routing() -> list[Case]:
    """Ties, one expert for all, experts that nobody wants, more experts than a warp or than
    assignments, large k.
    """
    cases = [
        replace(Case(11, n % 4, 32, 32, experts, top_k, logits=logits), normalize=bool(n % 2))
        for n, (logits, (experts, top_k)) in enumerate(
            product(("random", "ties", "one", "few"), [(1, 1), (8, 8), (40, 4), (70, 5)])
        )
        if logits != "few" or experts >= 8
    ]
    cases += [
        Case(1, 1, 32, 32, 128, 4),
        Case(2, 2, 32, 32, 300, 8),
        Case(3, 0, 8, 8, 1024, 32),
    ]
    cases += [Case(130, 1, 32, 32, 8, 2, logits="one"), Case(40, 2, 32, 32, 6, 1, logits="one")]
    return _numbered(cases)


@pytest.mark.parametrize("case", _sizes(), ids=str)
def test_sizes(case: Case, library: Library) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _tokens(), ids=str)
def test_tokens(case: Case, library: Library) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _routing(), ids=str)
def test_routing(case: Case, library: Library) -> None:
    check(library, case)


def test_several_hundred_tokens(library: Library) -> None:
    check(library, gpt_oss(Case(300, 1, 32, 32, 6, 3, order="random")))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_same_bits_in_every_order(weight_format: int, library: Library) -> None:
    """And whatever else is in the batch: a token's result is its own."""
    case = fitting(Case(20, weight_format, 160, 96, 4, 2))
    given = inputs(case)
    first = run(library, case, given).view(np.uint16)
    for seed, order in enumerate(("forward", "reverse", "random", "random")):
        again = run(library, replace(case, order=order, seed=seed), given)
        np.testing.assert_array_equal(again.view(np.uint16), first)
    some = given | {
        name: np.ascontiguousarray(given[name][3:8]) for name in ("x", "router_logits")
    }
    alone = run(library, replace(case, tokens=5), some)
    np.testing.assert_allclose(
        alone.astype(float), first[3:8].view(BFLOAT16).astype(float), rtol=2.0**-6, atol=2.0**-7
    )


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_token_alone_has_the_bits_that_it_has_among_others(
    weight_format: int, library: Library
) -> None:
    """Up to five tokens an expert, whose tile is one token's: wherever it stands in its group."""
    case = fitting(Case(15, weight_format, 160, 96, experts=6, top_k=2, logits="ties"))
    given = inputs(case)
    together = run(library, case, given).view(np.uint16)
    for token in range(case.tokens):
        own = {
            name: np.ascontiguousarray(given[name][token : token + 1])
            for name in ("x", "router_logits")
        }
        alone = run(library, replace(case, tokens=1), given | own).view(np.uint16)
        np.testing.assert_array_equal(alone[0], together[token])


def test_many_assignments_of_many_experts_are_sorted(library: Library) -> None:
    """Every warp of the sort has a range, several times 32 long, and counters of its own."""
    check(library, _numbered([Case(900, 0, 8, 8, experts=1024, top_k=9)])[0])
    check(library, _numbered([Case(700, 0, 8, 8, experts=40, top_k=4, logits="ties")])[0])


@pytest.mark.parametrize("weight_format", FORMATS)
def test_experts_that_nobody_chose_are_not_read(weight_format: int, library: Library) -> None:
    """Their weights, scales and biases are NaN, and a product with one would be."""
    case = fitting(Case(5, weight_format, 64, 32, experts=9, top_k=2, logits="few"))
    given = inputs(case)
    unused = np.setdiff1d(np.arange(case.experts), chosen(case, given)[0])
    assert len(unused) >= 4
    for name in given.keys() - {"x", "router_logits"}:
        given[name].view(np.uint8).reshape(case.experts, -1)[unused] = 0xFF
    assert np.isfinite(run(library, case, given).astype(float)).all()
    assert_close(case, given, run(library, case, given))


@pytest.mark.parametrize("weight_format", [1, 2])
def test_a_nan_scale_is_seen(weight_format: int, library: Library) -> None:
    """Of MXFP4 255, of NVFP4 E4M3's NaN: wherever their row counts, and nowhere else."""
    case = Case(3, weight_format, 64, 64, experts=2, top_k=2)
    given = inputs(case)
    given["down_scale"].view(np.uint8).reshape(2, 64, -1)[1, 17, 0] = (
        255 if weight_format == 1 else 0x7F
    )
    got = run(library, case, given)
    assert np.isnan(got[:, 17].astype(float)).all()
    assert np.isfinite(np.delete(got.astype(float), 17, axis=1)).all()


@pytest.mark.parametrize("scale", [0, 1, 60, 128, 129, 140, 200])
def test_mxfp4_scales_from_smallest_to_large(scale: int, library: Library) -> None:
    """Some of down's rows: of a warp's sixteen only among the first eight, or the last, or both."""
    case = Case(2, 1, 64, 64, experts=2, top_k=1, order="random")
    given = inputs(case)
    given["down_scale"].view(np.uint8).reshape(2, 64, 2)[:, [3, 25, 32, 47, 48], 0] = scale
    assert_close(case, given, run(library, case, given))
    assert np.abs(weights(given, "down", 1)).max() >= 6 * 2.0 ** (scale - 127)


@pytest.mark.parametrize("block_rows", [FP8_BLOCK, 1])
def test_an_fp8_scale_counts_in_its_block_alone(block_rows: int, library: Library) -> None:
    """NaN in one scale of down and of up: in the rows of its block, and nowhere else."""
    case = fitting(Case(3, FP8_FORMAT, 272, 144, experts=2, top_k=2), block_rows)
    given = inputs(case)
    down = given["down_scale"].view(np.float32)
    down[1, -1] = np.nan  # of the last rows: 16 of a partial block, or one
    rows = 16 if block_rows == FP8_BLOCK else 1
    got = run(library, case, given).astype(float)
    assert np.isnan(got[:, -rows:]).all()
    assert np.isfinite(got[:, :-rows]).all()


def test_an_fp8_scale_of_zero_gives_zeros(library: Library) -> None:
    case = fitting(Case(3, FP8_FORMAT, 272, 144, experts=2, top_k=2))
    given = inputs(case)
    given["down_scale"][:] = 0
    given["down_bias"][:] = 0
    assert (run(library, case, given).astype(float) == 0).all()


def test_minus_zero_is_zero(library: Library) -> None:
    case = Case(2, 0, 32, 32, experts=4, top_k=1)
    given = inputs(case)
    given["router_logits"][:] = [[-1, -0.0, 0, -1], [-0.0, -1, -0.0, 0]]
    assert chosen(case, given)[0].tolist() == [[1], [0]]
    assert_close(case, given, run(library, case, given))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_moe_ignores_an_earlier_steps_workspace(weight_format: int, library: Library) -> None:
    """Here places 0 and 1 as a group of expert 1's, wherever a group may stand; only two of six
    have any.
    """
    case = fitting(Case(9, weight_format, 64, 32, experts=6, top_k=2, logits="one"))
    given = inputs(case)
    assert_close(case, given, library.moe(given, case.options, leftover=(1, 0, 2, 0)))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_logits_choose_existing_experts(library: Library) -> None:
    """NaN is chosen last, infinity first; with infinities and NaN everywhere nothing outside is
    read.
    """
    case = Case(4, 0, 32, 32, experts=4, top_k=2)
    given = inputs(case)
    given["router_logits"][1] = [np.nan, 1, np.nan, -3]
    given["router_logits"][2] = np.nan
    given["router_logits"][3] = [-np.inf, -np.inf, np.inf, np.nan]
    got = run(library, case, given).astype(float)
    fixed = given | {"router_logits": given["router_logits"].copy()}
    fixed["router_logits"][1] = [-9, 1, -9, -3]
    out, allowed = expected(case, fixed)
    assert (np.abs(got - out) <= allowed)[:2].all()


def test_a_wrong_result_would_be_seen(library: Library) -> None:
    """The bound is not so wide that eight signs of gate, one of down, a scale, a number or a row
    could be another.
    """
    case = gpt_oss(Case(3, 1, 64, 64, experts=3, top_k=2))
    given = inputs(case)
    got = run(library, case, given)
    used = chosen(case, given)[0][0]
    changes = {"gate_up": 0x08888888, "gate_up_scale": 0x07070707, "down": 8, "down_scale": 7}
    for name, change in changes.items():
        changed = {key: array.copy() for key, array in given.items()}
        changed[name].reshape(3, -1)[used[0], 4] ^= change
    with pytest.raises(AssertionError, match="wrong, first at"):
        assert_close(case, changed, got)
    with pytest.raises(AssertionError, match="wrong, first at"):
        assert_close(replace(case, alpha=1.6), given, got)
    with pytest.raises(AssertionError, match="wrong, first at"):
        assert_close(case, given | {"x": given["x"][::-1].copy()}, got)
