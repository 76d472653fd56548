"""DFlashAccept against a NumPy twin that sorts; and its sampling by distribution."""

from __future__ import annotations

import numpy as np
import pytest

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
    """`uniforms` [B, R] by row; they go where the step looks for them in a table by position, NaN
    everywhere else.
    """
    batch, rows = logits.shape[:2]
    past = np.arange(batch) * 10
    table = np.full((batch, int((past + known).max()) + rows), np.nan)
    by_row = settings.get("uniforms", np.zeros((batch, rows)))
    for b in range(batch):
        first = past[b] + int(known[b])
        table[b, first : first + rows] = by_row[b]
    arrays = {
        "logits": logits.astype(np.float32),
        "input_ids": ids.astype(np.int64),
        "num_known": known.astype(np.int32),
        "past_len": past.astype(np.int32),
        **choice_arrays(batch, **settings),
        "uniforms": table.astype(np.float32),
        **unadjusted(logits),
    }
    return run_op("DFlashAccept", arrays)


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


def test_rows_behind_the_table_take_its_last_number() -> None:
    """A step may decide rows behind the end of a sequence, which nobody keeps: the table need not
    reach there.
    """
    logits = np.log(np.tile([0.1, 0.2, 0.3, 0.4], (1, 4, 1)))
    arrays = {
        "logits": logits.astype(np.float32),
        "input_ids": np.array([[9, 0, 1, 3]]),
        "num_known": np.array([1], np.int32),
        "past_len": np.array([2], np.int32),
        **choice_arrays(1, temperature=1.0),
        "uniforms": np.array([[np.nan, np.nan, np.nan, 0.05, 0.2, 0.9]], np.float32),
        **unadjusted(logits),
    }
    got = run_op("DFlashAccept", arrays)
    assert got["new_ids"].tolist() == [[0, 1, 3, 3]]  # 0.05, 0.2, 0.9, then 0.9 again


@pytest.mark.slow
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 12, 13, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.05])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_sampled_choice_inverts_the_reference_distribution(
    temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    """Over a grid of uniforms, each token comes out exactly where the reference's distribution puts
    it.
    """
    vocab, grid = 13, 500
    logits = np.random.default_rng(top_k).standard_normal(vocab) * 2
    uniforms = (np.arange(grid) + 0.5) / grid
    got = _accept(
        np.tile(logits, (grid, 1, 1)),
        np.zeros((grid, 1)),
        np.ones(grid),
        temperature=np.full(grid, temperature),
        top_p=np.full(grid, top_p),
        top_k=np.full(grid, top_k),
        min_p=np.full(grid, min_p),
        uniforms=uniforms[:, None],
    )
    cdf = np.cumsum(_reference_probabilities(logits, temperature, top_p, top_k, min_p))
    # A uniform within rounding of a step of the distribution may fall to either side.
    clear = np.abs(uniforms[:, None] - cdf).min(axis=1) > 1e-6
    np.testing.assert_array_equal(
        got["bonus"][clear, 0], np.searchsorted(cdf, uniforms, side="right")[clear]
    )


def test_rows_have_their_own_settings() -> None:
    """A greedy row beside sampled ones stays greedy, and top_k = 1 is greedy at any temperature."""
    logits = np.random.default_rng(5).standard_normal((3, 1, 50))
    best = logits[:, 0].argmax(-1)
    uniforms = np.full((3, 1), 0.999)
    temperature, top_k = np.array([0, 1.0, 1.0]), np.array([0, 1, 0])
    got = _accept(
        logits,
        np.zeros((3, 1)),
        np.ones(3),
        temperature=temperature,
        top_k=top_k,
        uniforms=uniforms,
    )
    assert got["bonus"][:2, 0].tolist() == best[:2].tolist()
    assert got["bonus"][2, 0] == np.searchsorted(
        np.cumsum(_reference_probabilities(logits[2, 0], 1, 1, 0)), 0.999
    )


def test_the_largest_uniform_never_leaves_the_vocabulary() -> None:
    """The largest float32 below 1 times a rounded total must still find a token that has mass."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((64, 1, 997)) * 3
    logits[:, :, 900:] = -1e30  # the tail is impossible
    uniforms = np.full((64, 1), np.nextafter(np.float32(1), np.float32(0)))
    got = _accept(
        logits, np.zeros((64, 1)), np.ones(64), temperature=np.ones(64), uniforms=uniforms
    )
    assert (got["bonus"] < 900).all()


def test_top_p_one_keeps_everything_and_ties_are_kept() -> None:
    """Four equal tokens with top_k = 2: the cut-off ties, so all four stay."""
    logits = np.tile(np.array([1.0, 1.0, 1.0, 1.0, -9.0]), (4, 1, 1))
    uniforms = np.array([[0.1], [0.3], [0.6], [0.9]])
    got = _accept(
        logits,
        np.zeros((4, 1)),
        np.ones(4),
        temperature=np.ones(4),
        top_k=np.full(4, 2),
        uniforms=uniforms,
    )
    assert got["bonus"][:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("min_p", "kept"), [(-1.0, 4), (np.nan, 4), (0.3, 2), (1.0, 1), (7.0, 1)]
)
def test_min_p_out_of_range_is_off_or_one(min_p: float, kept: int) -> None:
    """The kernel takes them likewise; SamplingParams refuses them."""
    logits = np.tile(np.log([0.5, 0.25, 0.125, 0.125]), (8, 1, 1))
    uniforms = np.arange(8)[:, None] / 8
    settings = {"temperature": np.ones(8), "min_p": np.full(8, min_p)}
    got = _accept(logits, np.zeros((8, 1)), np.ones(8), uniforms=uniforms, **settings)
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
        uniforms=np.full((2, 4), 0.5),
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
