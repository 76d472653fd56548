"""The JSON: it is as declared, the README describes it, and a check finds differences."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.profile.schema_table import PAGE, rendered
from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.load import from_json, load
from trtllm_dflash.profile.result import SCHEMA, Profile
from trtllm_dflash.profile.schema import check, describe


@pytest.fixture(scope="module")
def data(found: Profile) -> dict[str, Any]:
    """Return a profile's JSON, parsed."""
    parsed: dict[str, Any] = json.loads(json.dumps(found.to_json()), parse_constant=pytest.fail)
    return parsed


def test_check_accepts_what_is_written(data: dict[str, Any]) -> None:
    assert check(data) == []
    assert data["schema"] == SCHEMA


def test_describe_gives_every_key_a_meaning() -> None:
    assert [path for path, _, meaning in describe() if not meaning] == []
    paths = [path for path, _, _ in describe()]
    assert len(set(paths)) == len(paths)
    assert {
        "results[].acceptance.by_position",
        "step_breakdowns[].layers[].seconds",
        "curves[].points[].acceptance_length",
    } <= set(paths)


def test_schema_table_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert rendered(text) == text, "run `python -m tests.profile.schema_table`"
    assert rendered(text.replace("TTFT, time to first token", "something else")) == text


def test_load_reads_a_profile_back(
    found: Profile, data: dict[str, Any], tmp_path: Path
) -> None:
    assert from_json(data) == found
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    assert load(path) == found


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            data = data[int(step) if step.isdecimal() else step]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("schema", "1"), "profile.schema is '1', expected integer"),
        (_set("extra", 1), "profile.extra is not declared"),
        (lambda data: data.pop("commit"), "profile.commit is missing"),
        (_set("commit", 3), "profile.commit is 3, expected string"),
        (_set("results", {}), "profile.results is dict, expected a list"),
        (
            _set("results.1.batch", True),
            r"profile.results\[1\].batch is True, expected integer",
        ),
        (_set("results.1.batch", 1.5), r"profile.results\[1\].batch is 1.5, expected integer"),
        (
            _set("results.0.by_category.1.acceptance.acceptance_length", None),
            r"by_category\[1\].acceptance.acceptance_length is None, expected number",
        ),
        (
            _set("results.0.acceptance", []),
            r"profile.results\[0\].acceptance is list, expected an object",
        ),
        (_set("versions.numpy", 2), "profile.versions.numpy is 2, expected string"),
        (_set("machine", "big"), "profile.machine is str, expected an object"),
        (
            _set("curves.0.points.0.acceptance_length", "x"),
            r"profile.curves\[0\].points\[0\].acceptance_length is 'x', expected number",
        ),
        (
            _set("schema", 1),
            "profile.schema is 1, expected 4. Give a file as profile --json wrote it, or measure",
        ),
        (
            lambda data: (data.pop("results"), data.update(schema=1)),
            "profile.schema is 1, expected 4",
        ),
        (_set("machine", {}), "profile.machine.processor is missing"),
        (_set("machine.gpus", [1]), r"profile.machine.gpus\[0\] is 1, expected string"),
        (_set("engine", {}), "profile.engine.directory is missing"),
        (_set("plain", {}), "profile.plain.directory is missing"),
        (_set("settings", {}), "profile.settings.max_tokens is missing"),
        (_set("prompts", {}), "profile.prompts.name is missing"),
        (
            _set("prompts.categories", 3),
            "profile.prompts.categories is int, expected an object",
        ),
        (_set("results", []), "profile.results is empty"),
        (_set("advice.batches", []), "profile.advice.batches is empty"),
        (lambda data: data["results"].pop(0), "profile.results has no system plain at batch 1"),
        (
            _set("advice.batches.0.draft_len", 4),
            "profile.results has no DFlash system with 4 drafts at batch 1",
        ),
        (
            lambda data: data["results"][2]["by_category"].pop(),
            r"profile.results\[2\].by_category has other categories than that of",
        ),
        (
            lambda data: data["results"][1]["by_prompt"].pop(),
            r"profile.results\[1\].by_prompt has other categories than",
        ),
        (
            _set("step_breakdowns.0.method", "guesses"),
            "profile.step_breakdowns has the method 'guesses', expected kernels or differences",
        ),
    ],
)
def test_from_json_refuses_what_is_not_declared(
    change: Callable[[Any], None], words: str, data: dict[str, Any]
) -> None:
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(
        UsageError, match=f"not a profile of this version of dflash-trt: .*{words}"
    ):
        from_json(changed)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "not a profile")],
)
def test_load_refuses_other_files(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        load(path)
