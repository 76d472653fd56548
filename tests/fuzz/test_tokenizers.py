"""Mutated tokenizers answer as transformers does, or are refused in our words."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.tokenizer_answers import Reference, our_answers
from tests.fuzz.tokenizer_mutants import make_mutant
from tests.patience import PATIENCE

MUTANTS = 1600
FEW = 12


def test_some_mutants_end_in_our_words(tmp_path: Path) -> None:
    answered = 0
    for number in range(FEW):
        answers = our_answers(make_mutant(tmp_path / str(number), number))
        answered += sum(not isinstance(answer, dict) for answer in answers.values())
    assert answered > FEW


@pytest.mark.slow
def test_many_mutants_answer_as_transformers_does(
    tmp_path: Path, random_cases: Callable[[int], int]
) -> None:
    count, faults = random_cases(MUTANTS), []
    counts = Counter[str]()
    with Reference() as reference:
        for number in range(count):
            directory = make_mutant(tmp_path / "mutant", number)
            begun = time.monotonic()
            ours = our_answers(directory)
            if time.monotonic() - begun > PATIENCE:
                faults.append((number, "hang"))
            theirs = reference.answers(directory)
            for name, answer in ours.items():
                outcome = _outcome(answer, theirs[name])
                counts[outcome] += 1
                if outcome == "different":
                    faults.append((number, name, answer, theirs[name]))
            shutil.rmtree(directory)
    assert faults == []
    assert counts["same"] > 4 * count
    # An empty template is none to us, and transformers renders nothing with it.
    assert counts["refused by us alone"] < count / 50


def _outcome(ours: object, theirs: object) -> str:
    if isinstance(ours, dict):
        return "refused" if isinstance(theirs, dict) else "refused by us alone"
    return "same" if ours == theirs else "different"
