"""Mutated engine directories are refused in our words, or answer as the engine does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.fuzz.engines import try_mutant
from tests.fuzz.outcomes import FAULTS, counts_without_faults, outcome_of
from tests.patience import PATIENCE

MUTANTS = 700
FEW = 8


def test_some_mutants_end_in_our_words_or_right() -> None:
    pytest.importorskip("onnxruntime")
    outcomes = [outcome_of(try_mutant, number) for number in range(FEW)]
    assert [outcome for outcome in outcomes if outcome.kind in FAULTS] == []
    assert Counter(outcome.kind for outcome in outcomes)["refused"] > FEW / 4


@pytest.mark.slow
def test_many_mutants_end_in_our_words_or_right(random_cases: Callable[[int], int]) -> None:
    pytest.importorskip("onnxruntime")
    count = random_cases(MUTANTS)
    kinds = counts_without_faults(try_mutant, count, seconds=PATIENCE)
    assert kinds["refused"] > count / 2
    assert kinds["accepted"] > count / 70
