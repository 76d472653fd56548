"""Sampled speculative output follows the target's own distribution, token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.test_trained_pair import DRAFTER, TARGET

PROMPT, SAMPLES, TEMPERATURE, TOP_P, TOP_K, MIN_P = [3, 5, 7, 10], 1500, 2.5, 0.95, 12, 0.0265
# 5.5 standard deviations of a chi-square statistic, by its normal approximation: a right sampler
# fails one run in 10^7.
SIGMAS = 5.5


def _distribution(logits: np.ndarray) -> np.ndarray:
    """Return what top-k, softmax at the temperature, top-p and min-p leave, renormalised."""
    order = np.argsort(-logits)[:TOP_K]
    mass = np.exp((logits[order] - logits[order[0]]) / TEMPERATURE)
    mass /= mass.sum()
    mass[np.cumsum(mass) - mass >= TOP_P] = 0
    mass[mass < MIN_P * mass[0]] = 0
    full = np.zeros_like(logits)
    full[order] = mass / mass.sum()
    return full


def _next(model: torch.nn.Module, prompts: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(prompts)).logits[:, -1].double().numpy()


def _chi_square(counts: Counter[int], expected: np.ndarray) -> tuple[float, float]:
    """Return the statistic and its limit; tokens expected fewer than 5 times count as one."""
    observed = np.array([counts[token] for token in range(expected.size)], float)
    assert observed[expected == 0].sum() == 0, (
        "a token outside of top-k, top-p or min-p was sampled"
    )
    common = expected * SAMPLES >= 5
    observed = np.append(observed[common], observed[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * SAMPLES
    keep = wanted > 0
    statistic = ((observed[keep] - wanted[keep]) ** 2 / wanted[keep]).sum()
    freedom = keep.sum() - 1
    return statistic, freedom + SIGMAS * np.sqrt(2 * freedom)


@pytest.mark.slow
def test_first_three_tokens(engine: EngineFactory) -> None:
    """The first token comes from the prompt's step, the next two from drafts or the bonus."""
    generations = engine(TARGET, DRAFTER).generate(
        [PROMPT] * SAMPLES,
        max_tokens=3,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=TOP_K,
        min_p=MIN_P,
        seed=range(SAMPLES),
    )
    model = hugging_face.load_target(TARGET)
    prefixes, mass = [PROMPT], np.ones(1)
    for place in range(3):
        rows = np.stack([_distribution(row) for row in _next(model, prefixes)])
        marginal = mass @ rows
        statistic, limit = _chi_square(
            Counter(item.token_ids[place] for item in generations), marginal
        )
        assert statistic < limit, (
            f"token {place}: chi-square {statistic:.1f}, limit {limit:.1f}"
        )
        longer, weights = [], []
        for i, prefix in enumerate(prefixes):
            for token in np.flatnonzero(rows[i]).tolist():
                longer.append([*prefix, token])
                weights.append(mass[i] * rows[i, token])
        prefixes, mass = longer, np.array(weights)
    accepted = [length for item in generations for length in item.acceptance_lengths]
    assert max(accepted) > 1, "no draft was ever accepted: this run did not test acceptance"
