"""The comparison with published figures, its page, and the plot of 15x."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_dflash.estimate import docs, outliers
from trtllm_dflash.estimate.constants import EAGER
from trtllm_dflash.estimate.equal import throughput_at
from trtllm_dflash.estimate.fifteen import BAND, Comparison, comparisons
from trtllm_dflash.estimate.validate import Compared, compare, held_out, listed, median_error

README = Path(__file__).parents[2] / "docs" / "performance.md"
PAGE = Path(__file__).parents[2] / "docs" / "estimate" / docs.PAGE


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    return compare()


@pytest.fixture(scope="module")
def found() -> list[Comparison]:
    return comparisons()


def test_the_page_is_up_to_date(compared: list[Compared], found: list[Comparison]) -> None:
    """Regenerate it: python -m trtllm_dflash.estimate.docs."""
    assert PAGE.read_text() == docs.page(compared, found)
    assert "<!--" not in PAGE.read_text()
    assert (PAGE.parent / docs.PLOT).is_file()


def test_the_aim(compared: list[Compared]) -> None:
    """Half of the listed speedups within 20 %, and nothing published is left out of the median."""
    assert median_error(listed(compared)) < 0.2
    assert len(listed(compared)) + len(held_out(compared)) == len(compared)
    covered = {(row.figure.drafter, row.figure.device.name) for row in listed(compared)}
    assert {name for name, _ in covered} == {
        "Qwen3-8B-DFlash-b16", "Qwen3-4B-DFlash-b16", "Qwen3-Coder-30B-A3B-DFlash", "gpt-oss-20b-DFlash",
        "gpt-oss-120b-DFlash", "LLaMA3.1-8B-Instruct-DFlash-UltraChat",
    }  # fmt: skip
    assert {gpu for _, gpu in covered} == {"B200", "H200", "H100", "Jetson AGX Thor"}


def test_every_outlier_is_spoken_of(compared: list[Compared]) -> None:
    """Each line of the page is about some figure, and without its line an outlier is called
    unexplained.
    """
    assert outliers.unexplained(compared) == []
    for one in outliers.EXPLANATIONS:
        rows = [row for row in compared if one.covers(row.figure)]
        assert rows
        others = [other for other in outliers.EXPLANATIONS if other is not one]
        left = outliers.unexplained(compared, others)
        assert {id(row) for row in left} <= {id(row) for row in rows}
    page = PAGE.read_text()
    gpt_oss = [
        row.error
        for row in compared
        if "gpt-oss" in row.figure.drafter and row.figure.concurrency >= 16
    ]
    assert (
        f"**gpt-oss at 16 and more sequences** ({min(gpt_oss) * 100:+.0f} to"
        f" {max(gpt_oss) * 100:+.0f} %)" in page
    )
    hugging_face = [row for row in compared if row.figure.runtime is EAGER and not row.figure.eagle]
    assert all(abs(row.error) < 0.15 for row in hugging_face if row.figure.text != "MT-Bench")


def test_the_readme_says_what_is_estimated(
    compared: list[Compared], found: list[Comparison]
) -> None:
    text = README.read_text().replace("\n", " ")
    first, others = listed(compared), held_out(compared)
    counts = (
        f"Against {len(first)} published speedups its median error is {median_error(first):.0%}"
    )
    apart = f"({median_error(others):.0%} on {len(others)} held out)"
    assert f"{counts} {apart}".replace("%", " %") in text
    start = text.index("The 15× of gpt-oss-120b")
    about = text[start : text.index(" ## ", start)]
    for one in found:
        claimed = one.claimed_at()
        assert claimed is not None
        assert f"{one.plain[-1].tokens_per_second_per_user:.0f}" in about
        assert f"{claimed:.0f}" in about
        assert f"{one.at_batch_1:.1f}" in about
    assert f"{BAND[0]:.0f} to {BAND[1]:.0f}" in about
    assert "estimate" in about


def test_a_prediction_by_hand(compared: list[Compared]) -> None:
    """Qwen3-8B on a B200, one sequence, MATH-500, from rounded parts."""
    row = compared[0]
    assert (row.figure.text, row.figure.concurrency) == ("MATH-500", 1)
    weights = 15.136e9 / (7700e9 * 0.85)
    plain = weights + 365 * 4e-6 + 0.5e-3
    drafter = (2.097e9 + 1.245e9) / (7700e9 * 0.85)
    step = weights + drafter + 426 * 4e-6 + 1.5e-3
    assert row.step_seconds == pytest.approx(step, rel=0.02)
    assert row.speedup == pytest.approx(8.01 * plain / step, rel=0.03)


def test_waiting_for_prompts_lowers_a_speedup() -> None:
    """Shorter answers have more prompts among them, for which plain decoding and DFlash wait
    alike.
    """
    short, long = (compare(answers=answers)[4] for answers in (0.3, 3.0))
    assert short.figure.concurrency == 32
    assert short.speedup < long.speedup


def test_fifteen_is_a_point_of_equal_interactivity(found: list[Comparison]) -> None:
    for one in found:
        ratios = one.ratios()
        assert ratios[0][1] < 1 < one.at_batch_1 < 4
        claimed, end = one.claimed_at(), one.plain[-1].tokens_per_second_per_user
        assert claimed is not None
        assert 0.6 * end < claimed < end
        ratio = throughput_at(one.dflash, claimed) / throughput_at(one.plain, claimed)
        assert ratio == pytest.approx(15, rel=0.05)
    assert (
        found[0].plain[-1].tokens_per_second_per_user
        < BAND[0]
        < BAND[1]
        < found[1].plain[-1].tokens_per_second_per_user
    )


def test_a_frontier_is_read_between_its_points(found: list[Comparison]) -> None:
    a, b, *_ = points = found[0].plain
    middle = (a.tokens_per_second_per_user + b.tokens_per_second_per_user) / 2
    assert throughput_at(points, middle) == pytest.approx(
        (a.tokens_per_second_per_gpu + b.tokens_per_second_per_gpu) / 2
    )
    assert throughput_at(points, 0) == a.tokens_per_second_per_gpu
    assert throughput_at(points, points[-1].tokens_per_second_per_user + 1) == 0


def test_the_plot_is_drawn(found: list[Comparison], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from trtllm_dflash.errors import UsageError
    from trtllm_dflash.estimate.plot import draw_fifteen

    draw_fifteen(found, tmp_path / "a.svg")
    assert f"15x at {found[0].claimed_at():.0f}" in (tmp_path / "a.svg").read_text()
    with pytest.raises(UsageError, match="Format 'txt' is not supported"):
        draw_fifteen(found, tmp_path / "a.txt")
