"""The accept kernels against the operator's ONNX body, and against a NumPy twin that knows where
rounding decides.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.fixtures.noise import noise_bits
from tests.graph.run_op import run_op
from tests.plugins.accept_reference import (
    EPS,
    accept_case,
    accept_prefix,
    admissible,
    assert_admissible,
    row_noise,
)
from tests.plugins.library import PLUGINS, Library, poisoned
from trtllm_dflash.graph.ops import OPS

pytestmark = pytest.mark.slow

INPUTS = tuple(t.name for t in OPS["DFlashAccept"].inputs)
OUTPUTS = tuple(t.name for t in OPS["DFlashAccept"].outputs)
CHUNK = 8188  # kScanElements: logits that one CTA of the first pass reads
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
    arrays = accept_case(_language(rng, slots, vocab), **settings)
    _check_samples(any_order, arrays, unclear=1)


@pytest.mark.parametrize("vocab", [97, 300])
def test_sampled_is_the_body(library: Library, vocab: int) -> None:
    """Greedy and sampled slots of several rows, whose drafts are right up to some row; rounding has
    no say in them.
    """
    rng = np.random.default_rng(vocab)
    batch, rows = 12, 4
    settings = {
        "temperature": np.arange(batch) % 3 * 0.5,
        "top_p": 1 - np.arange(batch) % 2 * 0.2,
        "top_k": np.arange(batch) % 4 * 10,
        "min_p": np.arange(batch) % 5 * 0.02,
    }
    arrays = accept_case(
        _language(rng, batch * rows, vocab).reshape(batch, rows, vocab),
        width=2 + rows,
        num_known=np.full(batch, 2),
        **settings,
    )
    choice = np.zeros((batch, rows), int)
    for b, r in np.ndindex(batch, rows):
        own = {name: float(arrays[name][b]) for name in settings}
        noises = row_noise(arrays, b, r)
        # ONNX Runtime sums up the vocabulary in order.
        tokens = np.flatnonzero(
            admissible(arrays["logits"][b, r], own, noises, slack=vocab * EPS)
        )
        assert len(tokens) == 1, "choose another seed"
        choice[b, r] = tokens[0]
    arrays["input_ids"][:, 2:] = choice
    arrays["input_ids"][np.arange(batch), 2 + np.arange(batch) % rows] += 1
    got = run_accept(library, arrays)
    assert got["num_new"].tolist() == [1, 2, 3, 4] * 3
    _assert_same(got, accept_prefix(arrays, choice))
    _assert_same(got, run_op("DFlashAccept", arrays))


@pytest.mark.parametrize("top_k", [0, 5003])
def test_noise_has_the_bits_of_the_body(any_order: Library, top_k: int) -> None:
    """Of equal logits the one with the smallest bits is chosen: one wrong bit would show."""
    batch, rows, vocab = 3, 9, 5003
    for seed in range(3):
        logits = np.full((batch, rows, vocab), 2.5)
        arrays = accept_case(logits, temperature=[0.1, 1, 9], top_k=top_k, seed=seed)
        arrays["past_len"][:] = [0, 2**31 - 20, 70_000]
        positions = arrays["past_len"][:, None].astype(np.int64) + 1 + np.arange(rows)
        choices = np.stack(
            [
                noise_bits(key, own, np.arange(vocab)).argmin(-1)
                for key, own in zip(arrays["noise_key"], positions, strict=True)
            ]
        )
        arrays["input_ids"][:, 1:] = choices[:, :-1]
        np.testing.assert_array_equal(run_accept(any_order, arrays)["new_ids"], choices)
        np.testing.assert_array_equal(run_op("DFlashAccept", arrays)["new_ids"], choices)


def test_choice_does_not_depend_on_the_address(library: Library) -> None:
    """The same row in every slot, at each residue of a 16-byte address, of an odd vocabulary."""
    vocab = 2 * CHUNK + 4093
    logits = np.tile(np.random.default_rng(3).standard_normal(vocab), (4, 5, 1))
    arrays = accept_case(logits, temperature=1.0)
    for name in ("past_len", "noise_key"):
        arrays[name][:] = arrays[name][:1]
    arrays["num_known"] = np.array([1, 2, 3, 4], np.int32)
    arrays["past_len"] = arrays["past_len"] + 10 - arrays["num_known"]
    assert len(set(run_accept(library, arrays)["new_ids"][:, 0])) == 1


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
        temperature=rng.uniform(0.5, 1, slots),
        top_k=np.concatenate([top_k, np.zeros(len(top_p))]),
        top_p=np.concatenate([np.ones(len(top_k)), top_p]),
    )
    _check_samples(
        library, arrays, unclear=slots
    )  # in a flat row every token is as small as the error of a sum


def test_number_of_tokens_kept_is_exact(library: Library) -> None:
    """At a temperature where all have nearly the same mass, each of the k likeliest comes, and no
    other.
    """
    vocab, top_k, slots = 6000, 7, 200
    logits = np.tile(np.random.default_rng(3).permutation(vocab), (slots, 1, 1))
    arrays = accept_case(logits, temperature=1e5, top_k=top_k)
    kept = np.flatnonzero(logits[0, 0] >= vocab - top_k)
    assert set(run_accept(library, arrays)["bonus"][:, 0]) == set(kept)


@pytest.mark.parametrize("vocab", [40, 9001])
def test_equal_logits(library: Library, vocab: int) -> None:
    """All tie: none can be dropped, whatever the filters."""
    slots = 12
    filters = {"top_k": np.arange(slots) % 3 * 5, "top_p": 1 - np.arange(slots) % 2 * 0.9}
    arrays = accept_case(np.full((slots, 1, vocab), 3.25), temperature=0.7, **filters)
    got = run_accept(library, arrays)["bonus"][:, 0]
    assert got.tolist() == [row_noise(arrays, slot).argmax() for slot in range(slots)]


def test_more_chunks_than_lanes(library: Library) -> None:
    """The best is found beyond the 32nd chunk as well."""
    vocab = 33 * CHUNK + 7
    logits = np.full((3, 1, vocab), -2.5)
    logits[:, :, : 32 * CHUNK] -= 30
    arrays = accept_case(logits, temperature=1.5)
    assert (_check_samples(library, arrays, unclear=0) >= 32 * CHUNK).all()


@pytest.mark.parametrize("seed", range(4))
def test_chunks_without_mass_are_passed_over(any_order: Library, seed: int) -> None:
    """Chunks of -infinity, of logits too far below, and of one token that is just above them."""
    logits = np.full((2, 1, 6 * CHUNK), -np.inf)
    logits[:, :, 2 * CHUNK : 3 * CHUNK] = -300
    logits[:, :, [CHUNK + 9, 5 * CHUNK - 1]] = [2.0, 1.5]
    logits[1, :, 5 * CHUNK + 3] = 1.5 - 103
    arrays = accept_case(logits, temperature=1.0, seed=seed)
    got = _check_samples(any_order, arrays, unclear=0)
    assert set(got) <= {CHUNK + 9, 5 * CHUNK - 1}


@pytest.mark.parametrize(
    "temperature", [-1.0, np.nan, 1e-45, 1e-38, 1e-6, 1e-3, 1e3, 1e30, 3e38, np.inf]
)
def test_extreme_temperatures(library: Library, temperature: float) -> None:
    """Nothing above 0 is refused. At the coldest only the likeliest token is left, at the hottest
    all are alike.
    """
    rng = np.random.default_rng(0)
    filters = {"top_k": [0, 0, 7, 0, 0, 7], "top_p": [1, 0.9, 0.9, 1, 0.9, 0.9]}
    arrays = accept_case(_language(rng, 6, 300), temperature=temperature, **filters)
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
    arrays = accept_case(logits, temperature=tiny, top_k=top_k)
    _check_samples(library, arrays, unclear=slots)


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1e-30, 1 - EPS, 1.5, np.nan])
def test_extreme_top_p(library: Library, top_p: float) -> None:
    """Up to 0 it keeps the likeliest token alone, from 1 on (and as NaN) all of them."""
    rng = np.random.default_rng(7)
    arrays = accept_case(_language(rng, 8, 700), temperature=1.5, top_p=top_p)
    got = _check_samples(library, arrays, unclear=1)
    if top_p < 0.5:
        np.testing.assert_array_equal(got, arrays["logits"][:, 0].argmax(-1))


@pytest.mark.parametrize("vocab", [300, 9001])
@pytest.mark.parametrize("min_p", [-1.0, np.nan, 1e-40, 1e-3, 0.2, 0.9, 1.0, 2.0])
def test_min_p(library: Library, min_p: float, vocab: int) -> None:
    """Up to 0 (and as NaN) it keeps all, from 1 on the likeliest token alone."""
    rng = np.random.default_rng(11)
    settings = {"temperature": 1.5, "min_p": min_p, "top_p": [1, 1, 1, 1, 0.8, 0.8, 0.8, 0.8]}
    arrays = accept_case(_language(rng, 8, vocab), **settings)
    got = _check_samples(library, arrays, unclear=1)
    if min_p >= 1:
        np.testing.assert_array_equal(got, arrays["logits"][:, 0].argmax(-1))


def test_masked_logits(library: Library) -> None:
    """-infinity has no mass, in a greedy row and in a sampled one; one token left over is the
    token.
    """
    rng = np.random.default_rng(2)
    logits = np.where(rng.random((8, 1, 5000)) < 0.99, -np.inf, _language(rng, 8, 5000))
    logits[0] = -np.inf
    logits[0, 0, 4321] = -5
    filters = {"temperature": [1, 1, 1, 1, 1, 1, 1, 0], "top_k": [0, 0, 3, 3, 4000, 0, 60, 0]}
    arrays = accept_case(logits, top_p=[0.9, 0.9, 1, 0.9, 1, 1, 0.4, 1], **filters)
    assert _check_samples(library, arrays, unclear=1)[0] == 4321


def test_a_real_vocabulary(library: Library) -> None:
    """That of Qwen3: rows of 18.5 chunks, greedy, filtered and free."""
    rng = np.random.default_rng(8)
    filters = {
        "temperature": [0, 0.7, 0.6, 1],
        "top_k": [0, 20, 0, 0],
        "top_p": [1, 0.95, 0.95, 1],
    }
    arrays = accept_case(_language(rng, 4, 151936), **filters)
    _check_samples(library, arrays, unclear=1)
