"""The metrics, against their definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trtllm_dflash.evaluate.acceptance import PromptAcceptance
from trtllm_dflash.evaluate.metrics import (
    Divergence,
    NegLogLikelihood,
    OutputErrors,
    log_probabilities,
)
from trtllm_dflash.evaluate.result import EngineComparison, missed_limits
from trtllm_dflash.evaluate.text import BUILTIN_TEXT, read_text, windows
from trtllm_dflash.options.evaluate import EvaluateConfig

RANDOM = np.random.default_rng(3)
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
OTHERS = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])


def compared(**numbers: float) -> EngineComparison:
    values = {
        "positions": 10,
        "kl_mean": 0.02,
        "kl_p99": 0.3,
        "kl_max": 0.5,
        "top1": 0.9,
        "perplexity_increase": 0.05,
    }
    return EngineComparison(**(values | numbers), linear_errors={}, unmatched=())


def accepted(acceptance_length: float) -> PromptAcceptance:
    return PromptAcceptance(
        prompts=1, draft_len=3, steps=10, tokens=24, acceptance_length=acceptance_length
    )


def test_log_probabilities_of_large_logits() -> None:
    logits = (1000 + np.log(PROBABILITIES)).astype(np.float32)
    np.testing.assert_allclose(np.exp(log_probabilities(logits)), PROBABILITIES, rtol=1e-3)


def test_perplexity_is_one_over_the_geometric_mean() -> None:
    losses = NegLogLikelihood()
    losses.add(np.log(PROBABILITIES), np.array([0, 2]))
    losses.add(
        np.log(PROBABILITIES), np.array([1])
    )  # what follows the last row of a window is not known
    assert losses.count == 3
    assert losses.perplexity == pytest.approx((0.5 * 0.7 * 0.25) ** (-1 / 3))


def test_kl_is_that_of_the_reference_from_ours() -> None:
    divergence = Divergence()
    divergence.add(np.log(OTHERS), np.log(PROBABILITIES))
    pairs = zip(PROBABILITIES.tolist(), OTHERS.tolist(), strict=True)
    expected = [sum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in pairs]
    np.testing.assert_allclose(divergence.kl, expected)
    assert divergence.positions == 2
    assert divergence.top1 == 0.5


def test_relative_error_is_of_norms_over_all_steps() -> None:
    ours, reference = RANDOM.standard_normal((2, 7, 5)).astype(np.float32)
    errors = OutputErrors()
    for rows in (slice(0, 3), slice(3, 7)):
        errors.add("a", ours[rows], reference[rows])
    errors.add("same", np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    errors.add("from nothing", np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32))
    expected = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
    assert errors.relative() == pytest.approx(
        {"a": expected, "same": 0, "from nothing": math.inf}, rel=1e-6
    )


@pytest.mark.parametrize(
    ("limit", "value", "word"),
    [
        ("min_top1", 0.91, "top-1 agreement is 0.9, below --min-top1 0.91"),
        ("max_kl", 0.019, "mean KL divergence is 0.02 nats, above --max-kl 0.019"),
        (
            "max_perplexity_increase",
            0.04,
            "grew by 0.05 of its value, above --max-perplexity-increase 0.04",
        ),
    ],
)
def test_missed_limits_name_the_limit(
    limit: str, value: float, word: str, tmp_path: object
) -> None:
    (sentence,) = missed_limits(_config(**{limit: value}), compared())
    assert word in sentence


def test_missed_limits_name_the_acceptance_length() -> None:
    config = _config(min_acceptance_length=2.5)
    for comparison in (None, compared()):
        assert missed_limits(config, comparison, accepted(2.4)) == [
            "τ is 2.4, below --min-acceptance-length 2.5"
        ]
        assert missed_limits(config, comparison, accepted(2.5)) == []
        assert missed_limits(config, comparison) == [
            "τ is nan, below --min-acceptance-length 2.5"
        ]


def test_missed_limits_accept_the_limit_itself() -> None:
    assert (
        missed_limits(
            _config(min_top1=0.9, max_kl=0.02, max_perplexity_increase=0.05), compared()
        )
        == []
    )
    assert (
        missed_limits(_config(max_perplexity_increase=0), compared(perplexity_increase=-0.2))
        == []
    )


def test_missed_limits_reject_nan() -> None:
    numbers = dict.fromkeys(("top1", "kl_mean", "perplexity_increase"), math.nan)
    limits = {"min_top1": 0.0, "max_kl": 100.0, "max_perplexity_increase": 100.0}
    assert len(missed_limits(_config(**limits), compared(**numbers))) == 3


def test_windows_leave_out_only_a_lone_last_token() -> None:
    assert [piece.tolist() for piece in windows(list(range(7)), 3, name="x")] == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    assert [piece.tolist() for piece in windows(list(range(8)), 3, name="x")][-1] == [6, 7]


def test_builtin_text_is_not_in_the_calibration_set() -> None:
    from importlib import resources

    from trtllm_dflash import quantize

    own = read_text(None)
    assert own.name == BUILTIN_TEXT
    paragraphs = [part for part in own.text.split("\n\n") if part.strip()]
    assert len(paragraphs) >= 6
    calibration = (resources.files(quantize) / "calibration.jsonl").read_text(encoding="utf-8")
    sentences = [sentence for part in paragraphs for sentence in part.split(". ")]
    assert not any(sentence in calibration for sentence in sentences if len(sentence) > 9)


def _config(**limits: float) -> EvaluateConfig:
    from pathlib import Path

    return EvaluateConfig(Path("a"), against=Path("b"), **limits)
