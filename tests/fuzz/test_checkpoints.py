"""Mutated checkpoints end in our words or load; none of them raises, aborts or hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.fuzz.checkpoints import load_mutant
from tests.fuzz.outcomes import FAULTS, counts_without_faults, outcome_of
from tests.patience import PATIENCE

MUTANTS = 4000
FEW = 100


def test_some_mutants_end_in_our_words() -> None:
    outcomes = [outcome_of(load_mutant, number) for number in range(FEW)]
    assert [outcome for outcome in outcomes if outcome.kind in FAULTS] == []
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert kinds["refused"] > FEW / 2
    assert kinds["accepted"] > 5


@pytest.mark.slow
def test_many_mutants_end_in_our_words(random_cases: Callable[[int], int]) -> None:
    count = random_cases(MUTANTS)
    kinds = counts_without_faults(load_mutant, count, seconds=PATIENCE)
    assert kinds["accepted"] > count / 20
