"""The mutations themselves: the same number gives the same mutant, and nearly all differ."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz.mutate import damage_file, mutate_bytes, mutate_json, mutate_json_text
from tests.fuzz.outcomes import FuzzWorker, Outcome, outcome_of
from tests.patience import PATIENCE
from trtllm_dflash.errors import EngineError

VALUE: dict[str, Any] = {"sizes": [1, 2.5, {"deep": "text"}], "flag": True, "none": None}
SEEDS = range(200)


def test_a_seed_names_a_mutant() -> None:
    before = json.dumps(VALUE)
    text = json.dumps(VALUE)
    first = [mutate_json_text(text, Random(seed), times=2) for seed in SEEDS]
    again = [mutate_json_text(text, Random(seed), times=2) for seed in SEEDS]
    assert first == again
    assert len(set(first)) > len(SEEDS) / 2
    assert json.dumps(VALUE) == before


def test_every_change_of_json_occurs() -> None:
    made = [mutate_json(VALUE, Random(seed)) for seed in SEEDS]
    assert any(value.get("flag") is False for value in made)
    assert any("none" not in value for value in made)
    assert any(isinstance(value.get("flag"), list) for value in made)
    assert any(len(value) == len(VALUE) + 1 for value in made)
    assert any(str(10**30) in json.dumps(value) for value in made)


def test_bytes_are_changed() -> None:
    data = bytes(range(200))
    made = [mutate_bytes(data, Random(seed)) for seed in SEEDS]
    assert b"" in made
    assert bytes(len(data)) in made
    assert any(len(mutant) > len(data) for mutant in made)
    assert sum(mutant != data for mutant in made) > 0.9 * len(SEEDS)


def test_files_are_damaged(tmp_path: Path) -> None:
    kinds = set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = folder / "file"
        path.write_bytes(b"content")
        (folder / "other").write_bytes(b"of another file")
        damage_file(path, Random(seed))
        if path.is_symlink():
            kinds.add(f"link to {path.readlink()}")
        elif path.is_dir():
            kinds.add("folder")
        elif not path.exists():
            kinds.add("gone")
        else:
            kinds.add("neighbour" if path.read_bytes() == b"of another file" else "bytes")
    assert kinds >= {"bytes", "gone", "folder", "neighbour", "link to file"}


def act(what: str) -> str:
    """Do what a foreign library may do; the worker's process calls it."""
    if what == "refuse":
        raise EngineError("no")
    if what == "raise":
        raise ValueError("what is this")
    if what == "leave":
        raise SystemExit
    if what == "abort":
        os.abort()
    while what == "hang":
        time.sleep(1)
    return what


@pytest.mark.slow
def test_outcomes_in_a_process_of_their_own() -> None:
    with FuzzWorker(act, seconds=PATIENCE) as worker:
        kinds = [worker.outcome(what).kind for what in ("fine", "refuse", "raise", "abort")]
    assert kinds == ["accepted", "refused", "raw exception", "abort"]
    assert outcome_of(act, "leave").kind == "raw exception"
    with FuzzWorker(act, seconds=5) as worker:
        assert worker.outcome("hang") == Outcome("hang", "no end after 5 s")
        assert worker.outcome("fine").kind == "accepted"
