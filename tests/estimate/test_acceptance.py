"""Tokens a step: from one acceptance length, and from measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.acceptance import (
    Shares,
    acceptance_length,
    find_shares,
    shares_of_length,
)


@given(st.integers(1, 31), st.floats(0, 1))
def test_acceptance_length_gives_a_geometric_series(draft_len: int, share: float) -> None:
    tau = 1 + share * draft_len
    found = shares_of_length(tau, draft_len)
    assert acceptance_length(found, draft_len) == pytest.approx(tau)
    assert acceptance_length(found, 0) == 1
    taus = [acceptance_length(found, k) for k in range(draft_len + 1)]
    assert taus == sorted(taus)
    p = found[0]
    assert found == pytest.approx([p ** (j + 1) for j in range(draft_len)])


@pytest.mark.parametrize(
    ("tau", "at_4", "at_6"),
    [(5.3, 3.3, 4.3), (5.4, 3.3, 4.3), (4.4, 3.1, 3.8), (4.6, 3.1, 3.9), (3.7, 2.7, 3.3)],
    ids=["GSM8K", "MATH-500", "HumanEval", "MBPP", "MT-Bench"],
)
def test_published_blocks_follow_one_probability(tau: float, at_4: float, at_6: float) -> None:
    """gpt-oss-120b-DFlash's card gives τ for blocks of 10, 6 and 4: within 7 %, where each block
    drafts anew.
    """
    found = shares_of_length(tau, 9)
    assert acceptance_length(found, 3) == pytest.approx(at_4, rel=0.07)
    assert acceptance_length(found, 5) == pytest.approx(at_6, rel=0.07)


@pytest.mark.parametrize("tau", [0.9, 4.1])
def test_impossible_acceptance_length_is_refused(tau: float) -> None:
    with pytest.raises(
        UsageError,
        match=f"-length {tau} is impossible: a step that verifies 3 drafts yields 1 to 4",
    ):
        shares_of_length(tau, 3)


def read_shares(path: Path, draft_len: int) -> Shares:
    shares, _ = find_shares(str(path), Path("drafter"), draft_len)
    return shares


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
    found = read_shares(_file(tmp_path, data), 3)
    assert found == (0.75, 0.25, 0.0)
    assert acceptance_length(found, 3) == 2.0


def test_acceptance_of_other_files_is_read(tmp_path: Path) -> None:
    by_position = _file(tmp_path, {"by_position": [0.5, 0.25, 0.125]})
    assert read_shares(by_position, 2) == (0.5, 0.25)
    length = _file(tmp_path, {"tau": 2.5})
    assert acceptance_length(read_shares(length, 3), 3) == pytest.approx(2.5)
    _, source = find_shares(str(length), tmp_path, 3)
    assert source == f"as measured in {length}"


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
                    {
                        "implementation": "dflash",
                        "draft_len": 0,
                        "acceptance": {"by_position": []},
                    }
                ]
            },
            "no profile with a DFlash result that has drafts",
        ),
        (
            {
                "results": [
                    {
                        "implementation": "dflash",
                        "draft_len": 3,
                        "acceptance": {"by_position": []},
                    }
                ]
            },
            "by_position is empty",
        ),
        ([], "no profile with a DFlash result"),
        ({"tau": 9}, "impossible"),
    ],
)
def test_acceptance_file_without_sense_is_refused(
    tmp_path: Path, data: Any, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        read_shares(_file(tmp_path, data), 3)


def test_acceptance_file_may_have_any_name_and_be_a_link(tmp_path: Path) -> None:
    """Those of a checkpoint may not."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "file (1).json"
    link.symlink_to(_file(elsewhere, {"tau": 2.5}))
    assert acceptance_length(read_shares(link, 3), 3) == pytest.approx(2.5)


def test_acceptance_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(
        UsageError,
        match=r"--acceptance-length .*a.json: not JSON \(.*Give a file of profile --json, or a n",
    ):
        read_shares(tmp_path / "a.json", 3)


def test_acceptance_file_that_is_missing_is_refused() -> None:
    with pytest.raises(UsageError, match="no-such-file is neither a number nor a file"):
        read_shares(Path("no-such-file"), 3)
