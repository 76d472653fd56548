"""Tokens a step: from one acceptance length, and from measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.acceptance import AcceptanceByPosition, read_acceptance


@given(st.integers(1, 31), st.floats(0, 1))
def test_acceptance_length_gives_a_geometric_series(draft_len: int, share: float) -> None:
    tau = 1 + share * draft_len
    found = AcceptanceByPosition.from_acceptance_length(tau, draft_len)
    assert found.acceptance_length(draft_len) == pytest.approx(tau)
    assert found.acceptance_length(0) == 1
    taus = [found.acceptance_length(k) for k in range(draft_len + 1)]
    assert taus == sorted(taus)
    p = found.shares[0]
    assert found.shares == pytest.approx([p ** (j + 1) for j in range(draft_len)])


@pytest.mark.parametrize(
    ("tau", "at_4", "at_6"),
    [(5.3, 3.3, 4.3), (5.4, 3.3, 4.3), (4.4, 3.1, 3.8), (4.6, 3.1, 3.9), (3.7, 2.7, 3.3)],
    ids=["GSM8K", "MATH-500", "HumanEval", "MBPP", "MT-Bench"],
)
def test_published_blocks_follow_one_probability(tau: float, at_4: float, at_6: float) -> None:
    """gpt-oss-120b-DFlash's card gives τ for blocks of 10, 6 and 4: within 7 %, where each block
    drafts anew.
    """
    found = AcceptanceByPosition.from_acceptance_length(tau, 9)
    assert found.acceptance_length(3) == pytest.approx(at_4, rel=0.07)
    assert found.acceptance_length(5) == pytest.approx(at_6, rel=0.07)


@pytest.mark.parametrize("tau", [0.9, 4.1])
def test_impossible_acceptance_length_is_refused(tau: float) -> None:
    with pytest.raises(
        UsageError,
        match=f"-length {tau} is impossible: a step that verifies 3 drafts yields 1 to 4",
    ):
        AcceptanceByPosition.from_acceptance_length(tau, 3)


def _file(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(data))
    return path


def test_acceptance_of_a_profile_is_read(tmp_path: Path) -> None:
    """The DFlash result with most drafts counts; later positions were never tried."""

    def result(implementation: str, draft_len: int, shares: list[float]) -> dict[str, Any]:
        return {
            "implementation": implementation,
            "draft_len": draft_len,
            "acceptance": {"by_position": shares},
        }

    data = {
        "results": [
            result("plain", 0, []),
            result("dflash", 1, [0.5]),
            result("dflash", 2, [0.75, 0.25]),
        ]
    }
    found = read_acceptance(_file(tmp_path, data), 3)
    assert found.shares == (0.75, 0.25, 0.0)
    assert found.acceptance_length(3) == 2.0


def test_acceptance_of_other_files_is_read(tmp_path: Path) -> None:
    assert read_acceptance(_file(tmp_path, {"by_position": [0.5, 0.25, 0.125]}), 2).shares == (
        0.5,
        0.25,
    )
    assert read_acceptance(_file(tmp_path, {"tau": 2.5}), 3).acceptance_length(3) == pytest.approx(
        2.5
    )


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"by_position": [0.5, 0.75]}, "shares from 1 to 0 that never grow"),
        ({"by_position": [1.5]}, "shares from 1 to 0 that never grow"),
        ({"by_position": ["much"]}, "a list of numbers"),
        ({"results": []}, "no profile with a DFlash result"),
        ({"by_position": []}, "by_position is empty: nothing was drafted"),
        (
            {
                "results": [
                    {"implementation": "dflash", "draft_len": 0, "acceptance": {"by_position": []}}
                ]
            },
            "no profile with a DFlash result that has drafts",
        ),
        (
            {
                "results": [
                    {"implementation": "dflash", "draft_len": 3, "acceptance": {"by_position": []}}
                ]
            },
            "by_position is empty",
        ),
        ([], "no profile with a DFlash result"),
        ({"tau": 9}, "impossible"),
    ],
)
def test_acceptance_file_without_sense_is_refused(tmp_path: Path, data: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_acceptance(_file(tmp_path, data), 3)


def test_acceptance_file_may_have_any_name_and_be_a_link(tmp_path: Path) -> None:
    """Those of a checkpoint may not."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "file (1).json"
    link.symlink_to(_file(elsewhere, {"tau": 2.5}))
    assert read_acceptance(link, 3).acceptance_length(3) == pytest.approx(2.5)


def test_acceptance_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(
        UsageError,
        match=r"--acceptance-length .*a.json: not JSON \(.*Give a file of profile --json, or a n",
    ):
        read_acceptance(tmp_path / "a.json", 3)


def test_acceptance_file_that_is_missing_is_refused() -> None:
    with pytest.raises(UsageError, match="no-such-file is neither a number nor a file"):
        read_acceptance(Path("no-such-file"), 3)
