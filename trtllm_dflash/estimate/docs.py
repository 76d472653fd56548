"""Writes docs/estimate: `python -m trtllm_dflash.estimate.docs [--output-dir docs/estimate]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import click

from trtllm_dflash.estimate import fifteen, outliers
from trtllm_dflash.estimate.constants import CONSTANTS, RUNTIMES, Constants
from trtllm_dflash.estimate.eagle import Eagle
from trtllm_dflash.estimate.fifteen import Comparison, comparisons
from trtllm_dflash.estimate.known import find_drafter
from trtllm_dflash.estimate.published import REASONING, TEXTS
from trtllm_dflash.estimate.tables import table
from trtllm_dflash.estimate.validate import (
    Compared,
    compare,
    held_out,
    listed,
    markdown,
    median_error,
)

PLOT, PAGE = "gpt-oss-120b-b300.png", "README.md"
TEXT = Path(__file__).with_name("docs.txt")


def page(compared: Sequence[Compared], found: Sequence[Comparison]) -> str:
    """The page: docs.txt with its tables."""
    tables = {
        "constants": table(("value", "of what", "why"), CONSTANTS.rows()),
        "software": table(
            ("name", "what", "why"), [(r.name, r.meaning, r.reason) for r in RUNTIMES.values()]
        ),
        "texts": _texts(),
        "validation": markdown(compared),
        "plain": _plain(compared),
        "sensitivity": _sensitivity(),
        "eagle": _eagle(compared),
        "fifteen": fifteen.markdown(found),
        "outliers": outliers.markdown(compared),
        "plot": PLOT,
    }
    text = TEXT.read_text()
    for name, content in tables.items():
        text = text.replace(f"<!-- {name} -->", content)
    return text


def _texts() -> str:
    rows = [(name, str(text.prompt), str(text.answer)) for name, text in TEXTS.items()]
    return (
        f"{table(('text', 'prompt tokens', 'answer tokens'), rows)}\n\ngpt-oss reasons first:"
        f" {REASONING} tokens more."
    )


def _plain(compared: Sequence[Compared]) -> str:
    """Plain decoding, where figures give tokens a second; each measurement once."""
    rows = {}
    for row in compared:
        f = row.figure
        if f.plain is not None:
            name = find_drafter(f.drafter).target.split("/")[-1]
            error = f"{row.plain / f.plain - 1:+.0%}"
            rows[f.where, name, f.concurrency] = (
                f.where,
                name,
                f.gpu,
                f"{f.concurrency}",
                f"{row.plain:.0f}",
                f"{f.plain:g}",
                error,
            )
    return table(
        ("source", "target", "GPU", "sequences", "predicted tokens/s", "published", "error"),
        list(rows.values()),
    )


def _sensitivity() -> str:
    """What becomes of the median errors when one assumption changes."""
    cases: list[tuple[str, Constants, float]] = [("as above", CONSTANTS, 1.0)]
    for f in fields(CONSTANTS):
        for factor in (0.75, 1.25):
            value = getattr(CONSTANTS, f.name) * factor
            if not f.metadata["unit"] and value > 1:
                continue
            cases.append((f"{f.name} x {factor}", replace(CONSTANTS, **{f.name: value}), 1.0))
    cases += [("answers half as long", CONSTANTS, 0.5), ("answers twice as long", CONSTANTS, 2.0)]
    rows = []
    for name, constants, answers in cases:
        compared = compare(constants=constants, answers=answers)
        rows.append(
            (
                name,
                f"{median_error(listed(compared)):.1%}",
                f"{median_error(held_out(compared)):.1%}",
            )
        )
    unused = ("sum_latency", "link_fraction")  # no figure has several GPUs
    return table(
        ("assumption", "median error", "held out"),
        [row for row in rows if not row[0].startswith(unused)],
    )


def _eagle(compared: Sequence[Compared]) -> str:
    """DFlash over EAGLE-3 where one source has both, on one text at one batch size."""
    rows = []
    for theirs in (row for row in compared if row.figure.eagle is not None):
        f = theirs.figure
        ours = next(
            row
            for row in compared
            if row.figure.eagle is None
            and (row.figure.where, row.figure.drafter, row.figure.text, row.figure.concurrency)
            == (f.where, f.drafter, f.text, f.concurrency)
        )
        tree = f.eagle or Eagle(0, 0, 0)
        rows.append(
            (
                f.where,
                find_drafter(f.drafter).target.split("/")[-1],
                f.gpu,
                f"{f.concurrency}",
                f"{ours.figure.tau:g}",
                f"{f.tau:g} ({tree.tokens} tokens)",
                f"{ours.speedup / theirs.speedup:.2f}",
                f"{ours.figure.speedup / f.speedup:.2f}",
                f"{ours.step_seconds / theirs.step_seconds:.2f}",
            )
        )
    names = (
        "source",
        "target",
        "GPU",
        "sequences",
        "τ DFlash",
        "τ EAGLE-3",
        "DFlash over EAGLE-3, predicted",
        "published",
        "step over step",
    )
    return table(names, rows)


@click.command
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("docs/estimate"),
    show_default=True,
)
def main(output_dir: Path) -> None:
    """Write the page and its plot."""
    from trtllm_dflash.estimate.plot import draw_fifteen

    found = comparisons()
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / PAGE).write_text(page(compare(), found))
    draw_fifteen(found, output_dir / PLOT)
    click.echo(f"{output_dir / PAGE}, {output_dir / PLOT}")


if __name__ == "__main__":
    main()
