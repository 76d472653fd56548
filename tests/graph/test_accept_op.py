"""DFlashAccept against a NumPy twin that sorts; and its sampling by distribution."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fixtures.noise import NOISE_ERROR, accept_noise, noise_keys
from tests.fixtures.sampling import choice_arrays, unadjusted
from tests.graph.run_op import run_op


def _reference_probabilities(
    logits: np.ndarray, temperature: float, top_p: float, top_k: int, min_p: float = 0.0
) -> np.ndarray:
    """Return what top-k, softmax at the temperature, top-p and min-p leave, with a sort.

    No ties are expected.
    """
    scores = logits.astype(np.float64) / temperature
    order = np.argsort(-scores)
    if 0 < top_k < scores.size:
        scores[order[top_k:]] = -np.inf
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    if top_p < 1:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= top_p]] = 0
        probabilities /= probabilities.sum()
    probabilities[probabilities < min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def _accept(
    logits: np.ndarray, ids: np.ndarray, known: np.ndarray, **settings: np.ndarray
) -> dict[str, np.ndarray]:
    """Run the operator behind 0, 10, 20 … positions, with other noise in each slot."""
    return run_op("DFlashAccept", _arrays(logits, ids, known, **settings))


def _arrays(
    logits: np.ndarray, ids: np.ndarray, known: np.ndarray, **settings: np.ndarray
) -> dict[str, np.ndarray]:
    batch = len(logits)
    return {
        "logits": logits.astype(np.float32),
        "input_ids": ids.astype(np.int64),
        "num_known": known.astype(np.int32),
        "past_len": np.arange(batch, dtype=np.int32) * 10,
        **choice_arrays(batch, **settings),
        "noise_key": noise_keys(batch),
        **unadjusted(logits),
    }


@pytest.mark.parametrize("wrong_at", [0, 1, 2, 3, None])
def test_greedy_prefix(wrong_at: int | None) -> None:
    """Drafts right up to `wrong_at` are accepted; a right one behind a wrong one is not."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, 13))
    choices = logits.argmax(-1)
    ids = np.concatenate([[[3], [4]], choices[:, :4]], axis=1)
    if wrong_at is not None:
        ids[:, 1 + wrong_at] = (ids[:, 1 + wrong_at] + 1) % 13
    accepted = 4 if wrong_at is None else wrong_at
    got = _accept(logits, ids, np.array([1, 1]))
    assert got["num_new"].tolist() == [accepted + 1] * 2
    assert got["next_len"].tolist() == [0 + 1 + accepted, 10 + 1 + accepted]
    np.testing.assert_array_equal(got["new_ids"][:, : accepted + 1], choices[:, : accepted + 1])
    assert (got["new_ids"][:, accepted + 1 :] == -1).all()
    np.testing.assert_array_equal(got["bonus"][:, 0], choices[:, accepted])


def test_all_known_accepts_nothing() -> None:
    """A prompt row decides one token, even when a later (clamped) row would match by chance."""
    logits = np.zeros((1, 3, 7))
    logits[:, :, 5] = 1
    got = _accept(logits, np.array([[5, 5, 5]]), np.array([3]))
    assert got["num_new"].tolist() == [1]
    assert got["new_ids"].tolist() == [[5, -1, -1]]
    assert got["next_len"].tolist() == [3]


def test_fewer_rows_than_drafts() -> None:
    """With one row, drafts are not looked at: plain decoding."""
    logits = np.zeros((1, 1, 7))
    logits[:, :, 5] = 1
    got = _accept(logits, np.array([[2, 5, 5]]), np.array([1]))
    assert (got["num_new"].tolist(), got["bonus"].tolist()) == ([1], [[5]])


def _sampled(logits: np.ndarray, grid: int, **settings: float) -> dict[str, np.ndarray]:
    """Return inputs of `grid` slots of one row of the same logits [V]."""
    rows = np.tile(logits, (grid, 1, 1))
    per_slot = {name: np.full(grid, value) for name, value in settings.items()}
    return _arrays(rows, np.zeros((grid, 1)), np.ones(grid), **per_slot)


@pytest.mark.slow
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 12, 13, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.05])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_choice_is_the_largest_of_score_and_noise(
    temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    """Of the tokens that the reference's filters keep, at every key."""
    vocab, grid = 13, 500
    logits = np.random.default_rng(top_k).standard_normal(vocab) * 2
    arrays = _sampled(
        logits, grid, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p
    )
    probabilities = _reference_probabilities(logits, temperature, top_p, top_k, min_p)
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities) + accept_noise(arrays)[:, 0]
    best = np.sort(scores, axis=1)
    clear = best[:, -1] - best[:, -2] > NOISE_ERROR
    assert clear.mean() > 0.99
    got = run_op("DFlashAccept", arrays)["bonus"][:, 0]
    np.testing.assert_array_equal(got[clear], scores.argmax(1)[clear])


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p"),
    [(0.6, 1, 0, 0), (1.0, 0.9, 0, 0), (1.0, 1, 0, 0), (1.7, 0.95, 9, 0), (1.7, 1, 0, 0.03)],
)
def test_samples_have_the_distribution(
    temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    """Chi-square over 20,000 keys; 5 deviations above its mean would come by chance never."""
    logits = np.random.default_rng(3).standard_normal(29) * 2
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    arrays = _sampled(logits, 20_000, **settings)
    expected = 20_000 * _reference_probabilities(logits, temperature, top_p, top_k, min_p)
    counts = np.bincount(run_op("DFlashAccept", arrays)["bonus"][:, 0], minlength=29)
    assert not counts[expected == 0].any()
    likely = expected > 5
    found = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], max(1e-9, expected[~likely].sum()))
    statistic = ((found - wanted) ** 2 / wanted)[wanted > 1].sum()
    freedom = likely.sum()
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_rows_have_their_own_settings() -> None:
    """A greedy row beside sampled ones stays greedy, and top_k = 1 is greedy at any temperature."""
    logits = np.random.default_rng(5).standard_normal((3, 1, 50))
    best = logits[:, 0].argmax(-1)
    arrays = _arrays(
        logits,
        np.zeros((3, 1)),
        np.ones(3),
        temperature=np.array([0, 1.0, 1.0]),
        top_k=np.array([0, 1, 0]),
    )
    got = run_op("DFlashAccept", arrays)["bonus"][:, 0]
    assert got[:2].tolist() == best[:2].tolist()
    assert got[2] == (logits[2, 0] + accept_noise(arrays)[2, 0]).argmax() != best[2]


def test_ties_with_the_cut_off_are_kept() -> None:
    """Four equal tokens with top_k = 2: the cut-off ties, so all four stay."""
    arrays = _sampled(np.array([1.0, 1.0, 1.0, 1.0, -9.0]), 64, temperature=1.0, top_k=2)
    assert set(run_op("DFlashAccept", arrays)["bonus"][:, 0]) == {0, 1, 2, 3}


def test_noise_belongs_to_slot_and_position() -> None:
    """A row decides the same behind other known tokens, as another row, and beside other slots."""
    logits = np.zeros((2, 3, 997))
    arrays = _arrays(logits, np.zeros((2, 3)), np.array([1, 1]), temperature=np.ones(2))
    arrays["past_len"][:] = 20
    choices = accept_noise(arrays).argmax(-1)
    arrays["input_ids"][:, 1:] = choices[:, :2]
    got = run_op("DFlashAccept", arrays)
    np.testing.assert_array_equal(got["new_ids"], choices)
    assert len(set(choices.ravel())) == 6
    for row in range(3):
        alone = {name: array[1:] for name, array in arrays.items()}
        alone["logits"] = alone["logits"][:, :1]
        alone["past_len"] = alone["past_len"] - 1
        alone["num_known"] = alone["num_known"] + 1 + row
        assert run_op("DFlashAccept", alone)["bonus"] == choices[1, row]


@pytest.mark.parametrize(
    ("min_p", "kept"), [(-1.0, 4), (np.nan, 4), (0.3, 2), (1.0, 1), (7.0, 1)]
)
def test_min_p_out_of_range_is_off_or_one(min_p: float, kept: int) -> None:
    """The kernel takes them likewise; SamplingParams refuses them."""
    arrays = _sampled(np.log([0.5, 0.25, 0.125, 0.125]), 64, temperature=1.0, min_p=min_p)
    got = run_op("DFlashAccept", arrays)
    assert len(set(got["bonus"][:, 0].tolist())) == kept


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", ["nan", "all nan", "inf", "all -inf"])
def test_row_that_is_not_finite_decides_no_token(bad: str, temperature: float) -> None:
    """Rows before it are committed, and drafts behind it are not; the bonus is still a token."""
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((2, 4, 13)) - 50 * (np.arange(13) != 5)  # sampled as greedy: 5
    if bad.startswith("all"):
        logits[0, 1] = float(bad.split()[1])
    else:
        logits[0, 1, 9] = float(bad)
    ids = np.array([[3, 5, 5, 5], [3, 5, 5, 7]])
    got = _accept(
        logits,
        ids,
        np.array([1, 1]),
        temperature=np.full(2, temperature),
    )
    assert got["new_ids"].tolist() == [[5, -1, -1, -1], [5, 5, 5, -1]]
    assert got["num_new"].tolist() == [2, 3]
    assert got["next_len"].tolist() == [2, 13]
    assert ((got["bonus"] >= 0) & (got["bonus"] < 13)).all()


def test_masked_tokens_are_no_fault() -> None:
    """-infinity beside finite logits is a token that is never chosen; so are huge ones."""
    logits = np.full((1, 2, 7), -np.inf)
    logits[0, 0, 3] = -5
    logits[0, 1, 2:] = 1e37
    got = _accept(logits, np.array([[1, 3]]), np.array([1]))
    assert got["new_ids"].tolist() == [[3, 2]]
