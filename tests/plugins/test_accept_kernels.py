"""The accept kernels against the operator's ONNX body, and against a NumPy twin that knows where
rounding decides.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.fixtures.sampling import choice_arrays
from tests.graph.run_op import run_op
from tests.plugins.accept_reference import (
    EPS,
    accept_case,
    accept_prefix,
    admissible,
    assert_admissible,
)
from tests.plugins.library import PLUGINS, Library, poisoned
from trtllm_dflash.graph.ops import OPS

pytestmark = pytest.mark.slow

INPUTS = tuple(t.name for t in OPS["DFlashAccept"].inputs)
OUTPUTS = tuple(t.name for t in OPS["DFlashAccept"].outputs)
CHUNK = 8192  # kScanElements: logits that one CTA of the first pass reads
LISTED = 4096  # kListed: tokens of a filtered row that are gathered in shared memory

Arrays = dict[str, np.ndarray]


def run_accept(library: Library, arrays: Arrays) -> Arrays:
    batch, rows, vocab = arrays["logits"].shape
    outputs = {
        "new_ids": poisoned((batch, rows), np.int64),
        "num_new": poisoned((batch,), np.int32),
        "next_len": poisoned((batch,), np.int32),
        "bonus": poisoned((batch, 1), np.int64),
    }
    space = library.accept_plan(batch, rows, vocab).workspace_bytes
    return library.call(
        "dflash_accept", {**arrays, **outputs}, (*INPUTS, *OUTPUTS), OUTPUTS, space
    )


def _language(rng: np.random.Generator, slots: int, vocab: int) -> np.ndarray:
    """Logits [slots, 1, vocab] whose probabilities fall as a power of the rank, as words' do."""
    return 2 * rng.standard_exponential((slots, 1, vocab)) - 7


def _assert_same(got: Arrays, expected: Arrays) -> None:
    for name in OUTPUTS:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def _check_samples(library: Library, arrays: Arrays, *, unclear: int) -> np.ndarray:
    """Check one row a slot: every token is admissible, and rounding decides at most `unclear`."""
    got = run_accept(library, arrays)["bonus"][:, 0]
    assert assert_admissible(arrays, got) <= unclear
    return got


def test_sizes_of_the_tests_are_the_kernels(library: Library) -> None:
    assert [library.accept_plan(1, 1, vocab).chunks for vocab in (1, CHUNK, CHUNK + 1)] == [
        1,
        1,
        2,
    ]
    assert f"kListed = {LISTED};" in (PLUGINS / "kernels" / "accept_sample.cuh").read_text()


@pytest.mark.parametrize("vocab", [1, 5, 97, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 32003])
def test_greedy_is_the_body(any_order: Library, vocab: int) -> None:
    """Rows begin at any address; logits of few values tie everywhere, and the first of them
    counts.
    """
    rng = np.random.default_rng(vocab)
    logits = rng.integers(-3, 4, (2, 3, vocab))
    ids = np.concatenate([[[0], [0]], logits.argmax(-1)[:, :2]], axis=1)
    ids[1, 2] = -1  # slot 0 accepts all, slot 1 one
    arrays = accept_case(logits, input_ids=ids)
    got = run_accept(any_order, arrays)
    assert got["num_new"].tolist() == [3, 2]
    _assert_same(got, run_op("DFlashAccept", arrays))


@pytest.mark.parametrize("at", [0, 3, CHUNK - 1, CHUNK, 3 * CHUNK + 1])
def test_the_largest_logit_anywhere(library: Library, at: int) -> None:
    """One largest logit in rows that begin at each residue of a 16-byte address, and an equal one
    far behind it.
    """
    vocab = 3 * CHUNK + 3
    logits = np.random.default_rng(at).standard_normal((4, 1, vocab))
    logits[:, :, [at, -1]] = 9
    np.testing.assert_array_equal(run_accept(library, accept_case(logits))["bonus"], [[at]] * 4)


@pytest.mark.parametrize("rows", [1, 2, 7, 31, 32, 33, 34, 65, 70])
def test_prefix(any_order: Library, rows: int) -> None:
    """Drafts wrong nowhere or at one place, right again behind it; decided tokens in front, rows
    behind the width.
    """
    rng = np.random.default_rng(rows)
    places = {0, rows // 2, rows - 2, 31, 32}  # a warp looks at 32 rows at once
    wrong = [None, *sorted(place for place in places if 0 <= place < rows - 1)]
    known = np.array([1 + 2 * (i % 2) for i in range(len(wrong))])
    logits = rng.standard_normal((len(wrong), rows, 11))
    choice = logits.argmax(-1)
    width = rows + 1
    ids = rng.integers(0, 11, (len(wrong), width))
    for b, place in enumerate(wrong):
        ids[b, known[b] :] = choice[b, : width - known[b]]
        if place is not None and known[b] + place < width:
            ids[b, known[b] + place] = -1
    arrays = accept_case(logits, input_ids=ids, num_known=known)
    got = run_accept(any_order, arrays)
    _assert_same(got, accept_prefix(arrays, choice))
    _assert_same(got, run_op("DFlashAccept", arrays))


def test_prompt_rows_decide_one_token(library: Library) -> None:
    """All S positions are decided and R = 1: what stands in input_ids is not looked at."""
    logits = np.random.default_rng(0).standard_normal((3, 1, 50))
    best = logits[:, 0].argmax(-1)
    arrays = accept_case(
        logits, input_ids=np.repeat(best[:, None], 9, axis=1), num_known=np.array([9, 9, 4])
    )
    got = run_accept(library, arrays)
    assert got["num_new"].tolist() == [1, 1, 1]
    assert got["next_len"].tolist() == [9, 12, 10]
    np.testing.assert_array_equal(got["bonus"][:, 0], best)


@pytest.mark.parametrize("vocab", [1, 5, 97, 1000, 32003])
def test_sampled(any_order: Library, vocab: int) -> None:
    """Every filter on and off, each slot with its own settings."""
    rng = np.random.default_rng(vocab)
    filters = np.array(list(product([1, 0.9, 0.5, 1e-6], [0, 1, 20, 900], [0, 0.04])))
    slots = len(filters)
    settings = dict(zip(("top_p", "top_k", "min_p"), filters.T, strict=True))
    settings["temperature"] = rng.uniform(0.3, 2, slots)
    arrays = accept_case(
        _language(rng, slots, vocab), uniforms=rng.random((slots, 1)), **settings
    )
    _check_samples(any_order, arrays, unclear=1)


@pytest.mark.parametrize("vocab", [97, 300])
def test_sampled_is_the_body(library: Library, vocab: int) -> None:
    """Greedy and sampled slots of several rows, whose drafts are right up to some row; rounding has
    no say in them.
    """
    rng = np.random.default_rng(vocab)
    batch, rows = 12, 4
    logits = _language(rng, batch * rows, vocab).reshape(batch, rows, vocab).astype(np.float32)
    settings = {
        "temperature": np.arange(batch) % 3 * 0.5,
        "top_p": 1 - np.arange(batch) % 2 * 0.2,
    }
    settings["top_k"] = np.arange(batch) % 4 * 10
    settings["min_p"] = np.arange(batch) % 5 * 0.02
    rows_settings = choice_arrays(batch, **settings)
    uniforms = rng.random((batch, rows)).astype(np.float32)
    choice = np.zeros((batch, rows), int)
    for b, r in np.ndindex(batch, rows):
        own = {name: float(values[b]) for name, values in rows_settings.items()}
        # ONNX Runtime sums up the vocabulary in order.
        tokens = np.flatnonzero(
            admissible(logits[b, r], own, uniforms[b, r], slack=vocab * EPS)
        )
        assert len(tokens) == 1, "choose another seed"
        choice[b, r] = tokens[0]
    ids = np.concatenate([np.zeros((batch, 2)), choice], axis=1)
    ids[np.arange(batch), 2 + np.arange(batch) % rows] += 1
    arrays = accept_case(
        logits, input_ids=ids, num_known=np.full(batch, 2), uniforms=uniforms, **settings
    )
    got = run_accept(library, arrays)
    assert got["num_new"].tolist() == [1, 2, 3, 4] * 3
    _assert_same(got, accept_prefix(arrays, choice))
    _assert_same(got, run_op("DFlashAccept", arrays))


def test_rows_behind_the_table_take_its_last_number(library: Library) -> None:
    logits = np.log(np.tile([0.1, 0.2, 0.3, 0.4], (1, 4, 1)))
    arrays = accept_case(logits, input_ids=np.array([[9, 1, 3, 0]]), temperature=1.0)
    arrays["uniforms"] = np.array([[np.nan, 0.2, 0.9, 0.05]], np.float32)
    assert run_accept(library, arrays)["new_ids"].tolist() == [[1, 3, 0, 0]]


@pytest.mark.parametrize("vocab", [LISTED, LISTED + 1, 20011])
def test_cuts_of_every_size(library: Library, vocab: int) -> None:
    """From one token kept to all: where all that is kept fits into the list, and where it does
    not.
    """
    rng = np.random.default_rng(vocab)
    top_k = np.array(
        [1, 2, 3000, LISTED - 1, LISTED, LISTED + 1, vocab - 1, vocab, vocab + 1, 2**31 - 1, -1]
    )
    top_p = np.array([1e-9, 0.3, 0.9, 0.99, 0.999, 0.9999, 0.8])
    slots = len(top_k) + len(top_p)
    arrays = accept_case(
        rng.standard_normal(
            (slots, 1, vocab)
        ),  # flat: many tokens are needed for most of the mass
        uniforms=rng.random((slots, 1)),
        temperature=rng.uniform(0.5, 1, slots),
        top_k=np.concatenate([top_k, np.zeros(len(top_p))]),
        top_p=np.concatenate([np.ones(len(top_k)), top_p]),
    )
    _check_samples(
        library, arrays, unclear=slots
    )  # in a flat row every token is as small as the error of a sum


def test_number_of_tokens_kept_is_exact(library: Library) -> None:
    """At a temperature where all have nearly the same mass, u walks through exactly the k
    likeliest, in order.
    """
    vocab, top_k, slots = 6000, 37, 38
    logits = np.tile(np.random.default_rng(3).permutation(vocab), (slots, 1, 1))
    uniforms = (np.arange(slots) + 0.5)[
        :, None
    ] / top_k  # one beyond: behind the last token stands none
    below = np.minimum(uniforms, 1 - EPS)
    arrays = accept_case(logits, temperature=1e4, top_k=top_k, uniforms=below)
    kept = np.flatnonzero(logits[0, 0] >= vocab - top_k)
    assert run_accept(library, arrays)["bonus"][:, 0].tolist() == [*kept, kept[-1]]


@pytest.mark.parametrize("vocab", [40, 9001])
def test_equal_logits(library: Library, vocab: int) -> None:
    """All tie: none can be dropped, whatever the filters."""
    slots = 12
    uniforms = (np.arange(slots) + 0.5)[:, None] / slots
    filters = {"top_k": np.arange(slots) % 3 * 5, "top_p": 1 - np.arange(slots) % 2 * 0.9}
    arrays = accept_case(
        np.full((slots, 1, vocab), 3.25), temperature=0.7, uniforms=uniforms, **filters
    )
    got = run_accept(library, arrays)["bonus"][:, 0]
    np.testing.assert_array_equal(got, (uniforms[:, 0] * vocab).astype(int))


def test_more_chunks_than_lanes(library: Library) -> None:
    """The chunk that the number falls on is found beyond the 32nd; equal logits are exact."""
    vocab = 33 * CHUNK + 7
    uniforms = np.array([[0.5], [1 - 2.0**-16], [0.984375]])
    arrays = accept_case(np.full((3, 1, vocab), -2.5), temperature=1.5, uniforms=uniforms)
    got = run_accept(library, arrays)["bonus"][:, 0]
    np.testing.assert_array_equal(got, (uniforms[:, 0] * vocab).astype(int))


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - EPS])
def test_chunks_without_mass_are_passed_over(any_order: Library, uniform: float) -> None:
    """Chunks of -infinity, of logits too far below, and of one token that is just above them."""
    logits = np.full((2, 1, 6 * CHUNK), -np.inf)
    logits[:, :, 2 * CHUNK : 3 * CHUNK] = -300
    logits[:, :, [CHUNK + 9, 5 * CHUNK - 1]] = [2.0, 1.5]
    logits[1, :, 5 * CHUNK + 3] = 1.5 - 103
    arrays = accept_case(logits, temperature=1.0, uniforms=np.full((2, 1), uniform))
    got = _check_samples(any_order, arrays, unclear=2)
    assert set(got) <= {CHUNK + 9, 5 * CHUNK - 1, 5 * CHUNK + 3}
    if uniform < 0.5:
        assert got.tolist() == [CHUNK + 9] * 2


@pytest.mark.parametrize(
    "temperature", [-1.0, np.nan, 1e-45, 1e-38, 1e-6, 1e-3, 1e3, 1e30, 3e38, np.inf]
)
def test_extreme_temperatures(library: Library, temperature: float) -> None:
    """Nothing above 0 is refused. At the coldest only the likeliest token is left, at the hottest
    all are alike.
    """
    rng = np.random.default_rng(0)
    filters = {"top_k": [0, 0, 7, 0, 0, 7], "top_p": [1, 0.9, 0.9, 1, 0.9, 0.9]}
    arrays = accept_case(
        _language(rng, 6, 300), temperature=temperature, uniforms=rng.random((6, 1)), **filters
    )
    got = _check_samples(library, arrays, unclear=1)
    if not temperature > 1e-6:
        np.testing.assert_array_equal(got, arrays["logits"][:, 0].argmax(-1))


def test_logits_of_a_few_denormals(library: Library) -> None:
    """Score and logit differ by a factor of 2^149: the shortcut around the division may not lose a
    token.
    """
    rng = np.random.default_rng(4)
    slots, vocab, tiny = 6, LISTED + 400, float(np.finfo(np.float32).smallest_subnormal)
    logits = rng.integers(0, 40, (slots, 1, vocab)) * tiny
    top_k = vocab - 40 * np.arange(1, slots + 1)  # too many for the list
    uniforms = np.full((slots, 1), 1 - EPS)
    arrays = accept_case(logits, temperature=tiny, uniforms=uniforms, top_k=top_k)
    _check_samples(library, arrays, unclear=slots)


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1e-30, 1 - EPS, 1.5, np.nan])
def test_extreme_top_p(library: Library, top_p: float) -> None:
    """Up to 0 it keeps the likeliest token alone, from 1 on (and as NaN) all of them."""
    rng = np.random.default_rng(7)
    arrays = accept_case(
        _language(rng, 8, 700), temperature=1.5, top_p=top_p, uniforms=rng.random((8, 1))
    )
    got = _check_samples(library, arrays, unclear=1)
    if top_p < 0.5:
        np.testing.assert_array_equal(got, arrays["logits"][:, 0].argmax(-1))


@pytest.mark.parametrize("vocab", [300, 9001])
@pytest.mark.parametrize("min_p", [-1.0, np.nan, 1e-40, 1e-3, 0.2, 0.9, 1.0, 2.0])
def test_min_p(library: Library, min_p: float, vocab: int) -> None:
    """Up to 0 (and as NaN) it keeps all, from 1 on the likeliest token alone."""
    rng = np.random.default_rng(11)
    settings = {"temperature": 1.5, "min_p": min_p, "top_p": [1, 1, 1, 1, 0.8, 0.8, 0.8, 0.8]}
    arrays = accept_case(_language(rng, 8, vocab), uniforms=rng.random((8, 1)), **settings)
    got = _check_samples(library, arrays, unclear=1)
    if min_p >= 1:
        np.testing.assert_array_equal(got, arrays["logits"][:, 0].argmax(-1))


@pytest.mark.parametrize("uniform", [0.0, 1 - EPS])
@pytest.mark.parametrize("vocab", [997, 5003])
def test_extreme_uniforms(any_order: Library, uniform: float, vocab: int) -> None:
    """The smallest takes the first token that has mass, the largest never one behind the last."""
    rng = np.random.default_rng(1)
    logits = _language(rng, 8, vocab)
    logits[:, :, :10] = logits[:, :, -90:] = -1e30  # both ends are impossible
    filters = {"top_k": [0, 0, 0, 0, 5, 5, 5, 5], "top_p": [1, 1, 0.9, 0.9, 1, 1, 0.9, 0.9]}
    arrays = accept_case(logits, temperature=1.3, uniforms=np.full((8, 1), uniform), **filters)
    got = _check_samples(any_order, arrays, unclear=8)
    assert ((got >= 10) & (got < vocab - 90)).all()
    if uniform == 0:
        np.testing.assert_array_equal(got[:2], 10)
        np.testing.assert_array_equal(got[4], np.sort(arrays["logits"][4, 0].argsort()[-5:])[0])


def test_masked_logits(library: Library) -> None:
    """-infinity has no mass, in a greedy row and in a sampled one; one token left over is the
    token.
    """
    rng = np.random.default_rng(2)
    logits = np.where(rng.random((8, 1, 5000)) < 0.99, -np.inf, _language(rng, 8, 5000))
    logits[0] = -np.inf
    logits[0, 0, 4321] = -5
    filters = {"temperature": [1, 1, 1, 1, 1, 1, 1, 0], "top_k": [0, 0, 3, 3, 4000, 0, 60, 0]}
    arrays = accept_case(
        logits, uniforms=rng.random((8, 1)), top_p=[0.9, 0.9, 1, 0.9, 1, 1, 0.4, 1], **filters
    )
    assert _check_samples(library, arrays, unclear=1)[0] == 4321


def test_a_real_vocabulary(library: Library) -> None:
    """That of Qwen3: rows of 18.5 chunks, greedy, filtered and free."""
    rng = np.random.default_rng(8)
    filters = {
        "temperature": [0, 0.7, 0.6, 1],
        "top_k": [0, 20, 0, 0],
        "top_p": [1, 0.95, 0.95, 1],
    }
    arrays = accept_case(_language(rng, 4, 151936), uniforms=rng.random((4, 1)), **filters)
    _check_samples(library, arrays, unclear=1)
