"""The comparison with published figures, its page, and the plot of the 15x."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs.estimate import generate
from docs.estimate.claim import CLAIM, HIGH, LOW, ClaimCase, claim_cases, draw_claim
from docs.estimate.plan import published_rows
from docs.estimate.prediction import (
    Prediction,
    explanations,
    held_out,
    hybrids,
    listed,
    median_error,
    predict_all,
    read_figures,
    unexplained,
)
from trtllm_dflash.cli import estimate as estimate_command
from trtllm_dflash.cli import main
from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.curve import throughput_at

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "estimate" / generate.PAGE


@pytest.fixture(scope="module")
def compared() -> list[Prediction]:
    return predict_all()


@pytest.fixture(scope="module")
def found() -> list[ClaimCase]:
    return claim_cases()


@pytest.mark.slow
def test_page_is_up_to_date(compared: list[Prediction], found: list[ClaimCase]) -> None:
    """Write it again with `make docs`."""
    assert PAGE.read_text() == generate.page(compared, found)
    assert "{{" not in PAGE.read_text()
    assert (PAGE.parent / generate.PLOT).is_file()


def test_aim_is_reached(compared: list[Prediction]) -> None:
    """Half of the listed speedups within 20 %, and nothing published is left out of the median."""
    assert median_error(listed(compared)) < 0.2
    parts = [len(part(compared)) for part in (listed, held_out, hybrids)]
    assert (parts, len(compared)) == ([57, 14, 11], 82)
    covered = {(each.figure.drafter, each.figure.gpu) for each in listed(compared)}
    assert {name for name, _ in covered} == {
        "Qwen3-8B-DFlash-b16",
        "Qwen3-4B-DFlash-b16",
        "Qwen3-Coder-30B-A3B-DFlash",
        "gpt-oss-20b-DFlash",
        "gpt-oss-120b-DFlash",
        "LLaMA3.1-8B-Instruct-DFlash-UltraChat",
    }
    assert {gpu for _, gpu in covered} == {"B200", "H200", "H100", "Jetson AGX Thor"}


def test_every_missed_figure_is_explained(compared: list[Prediction]) -> None:
    """Each explanation is about some figure; without it, a missed one is called unexplained."""
    assert unexplained(compared, explanations()) == []
    for one in explanations():
        rows = [each for each in compared if each.figure.is_covered(one["covers"])]
        assert rows
        others = [other for other in explanations() if other is not one]
        left = unexplained(compared, others)
        assert {id(row) for row in left} <= {id(row) for row in rows}
    gpt_oss = [
        each
        for each in compared
        if each.figure.drafter.startswith("gpt-oss") and each.figure.sequences >= 16
    ]
    line = f"**gpt-oss at 16 and more sequences** ({generate.error_range(gpt_oss)})"
    assert line in PAGE.read_text()
    for each in compared:
        is_mt_bench = each.figure.text == "MT-Bench"
        if each.figure.software == "eager" and not each.figure.tree and not is_mt_bench:
            assert abs(each.error) < 0.15


def test_docs_state_what_is_estimated(
    compared: list[Prediction], found: list[ClaimCase]
) -> None:
    text = (ROOT / "docs" / "performance.md").read_text().replace("\n", " ")
    first, others = listed(compared), held_out(compared)
    counts = (
        f"Against {len(first)} published speedups its median error is {median_error(first):.0%}"
    )
    third = hybrids(compared)
    apart = (
        f"({median_error(others):.0%} on {len(others)} held out, {median_error(third):.0%} on"
        f" {len(third)} of hybrid targets)"
    )
    assert f"{counts} {apart}".replace("%", " %") in text
    start = text.index("The 15× of gpt-oss-120b")
    about = text[start:].partition(" ## ")[0]
    for case in found:
        claimed = case.claimed_at()
        assert claimed is not None
        assert f"{case.plain_end:.0f}" in about
        assert f"{claimed:.0f}" in about
        assert f"{case.at_batch_1:.1f}" in about
    assert f"{LOW} to {HIGH}" in about
    assert "estimate" in about


def test_prediction_by_hand(compared: list[Prediction]) -> None:
    """Qwen3-8B on a B200, one sequence, MATH-500, from rounded parts."""
    row = compared[0]
    assert (row.figure.text, row.figure.sequences) == ("MATH-500", 1)
    weights = 15.136e9 / (7700e9 * 0.85)
    plain = weights + 365 * 4e-6 + 0.5e-3
    drafter = (2.097e9 + 1.245e9) / (7700e9 * 0.85)
    step = weights + drafter + 426 * 4e-6 + 1.5e-3
    assert row.step_seconds == pytest.approx(step, rel=0.02)
    assert row.speedup == pytest.approx(8.01 * plain / step, rel=0.03)


def test_waiting_for_prompts_lowers_a_speedup() -> None:
    """Shorter answers have more prompts among them, for which both ways of decoding wait."""
    figures = read_figures()[4:5]
    (short,), (long,) = (predict_all(figures, answers=answers) for answers in (0.3, 3.0))
    assert short.figure.sequences == 32
    assert short.speedup < long.speedup


def test_claim_is_a_point_of_equal_interactivity(found: list[ClaimCase]) -> None:
    for case in found:
        assert case.ratios()[0][1] < 1 < case.at_batch_1 < 4
        claimed = case.claimed_at()
        assert claimed is not None
        assert 0.6 * case.plain_end < claimed < case.plain_end
        assert case.ratio_at(claimed) == pytest.approx(CLAIM["ratio"], rel=0.05)
    assert found[0].plain_end < LOW < HIGH < found[1].plain_end


def test_frontier_is_read_between_its_points(found: list[ClaimCase]) -> None:
    a, b, *_ = points = found[0].plain
    middle = (a.tokens_per_second_per_user + b.tokens_per_second_per_user) / 2
    assert throughput_at(points, middle) == pytest.approx(
        (a.tokens_per_second_per_gpu + b.tokens_per_second_per_gpu) / 2
    )
    assert throughput_at(points, 0) == a.tokens_per_second_per_gpu
    assert throughput_at(points, points[-1].tokens_per_second_per_user + 1) == 0


def test_claim_is_drawn(found: list[ClaimCase], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_claim(found, tmp_path / "a.svg")
    assert f"15x at {found[0].claimed_at():.0f}" in (tmp_path / "a.svg").read_text()
    with pytest.raises(UsageError, match="Format 'txt' is not supported"):
        draw_claim(found, tmp_path / "a.txt")


@pytest.mark.slow
def test_validation_is_printed_in_the_repository() -> None:
    command = [sys.executable, "-m", "trtllm_dflash", "profile", "--validate-estimate"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    table, _, rest = out.strip().partition(
        "\n\ngpt-oss-120b, throughput at equal interactivity, "
    )
    title, _, claim = rest.partition("\n\n")
    page = PAGE.read_text()
    assert "15x at 500 to 600 tokens/s a user" in title
    assert len(table) > 1000
    assert table in page
    assert "15x at" in claim
    assert claim in page


def test_validation_outside_the_repository_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_command, "_REPOSITORY", tmp_path)
    done = CliRunner().invoke(main, ["profile", "--validate-estimate"])
    assert done.exit_code != 0
    assert "not part of the installed package" in str(done.output) + str(done.exception)


def test_copies_of_states_bring_hybrids_near(compared: list[Prediction]) -> None:
    """Each dense one is nearer with them, and the median error halves."""
    rows = hybrids(compared)
    assert {row.figure.drafter for row in rows} == {
        "Qwen3.5-9B-DFlash",
        "Qwen3.5-27B-DFlash",
        "Qwen3-Coder-Next-DFlash",
    }
    without = predict_all([row.figure for row in rows], copies_states=False)
    for row, other in zip(rows, without, strict=True):
        assert row.speedup < other.speedup
        assert -0.25 < row.error < 0.4
        if row.figure.target != "Qwen3-Coder-Next":
            assert row.error < other.error
    assert median_error(rows) < 0.55 * median_error(without)


def test_plain_decoding_of_the_planned_pair_is_near() -> None:
    """Within 15 % of what others measured, on both GPUs."""
    found = {}
    for gpu, _, _, published, _, estimated, *_ in published_rows():
        if published:
            found[gpu] = float(estimated) / float(published) - 1
    assert found.keys() == {"GB10 (DGX Spark)", "RTX 5090"}
    assert max(map(abs, found.values())) < 0.15
