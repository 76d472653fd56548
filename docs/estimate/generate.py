"""Writes docs/estimate/README.md and its plot: `make docs`, or `python -m docs.estimate.generate`.

`--print` prints the comparison with published figures and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from textwrap import fill

import click
from jinja2 import Environment, StrictUndefined

from docs.estimate.claim import CLAIM, HIGH, LOW, ClaimCase, claim_cases, claim_rows, draw_claim
from docs.estimate.plan import PLAN, PLAN_NAMES, PUBLISHED_NAMES, plan_rows, published_rows
from docs.estimate.prediction import (
    ASSUMPTIONS,
    FOLDER,
    SOFTWARE,
    Prediction,
    explanations,
    held_out,
    hybrids,
    listed,
    median_error,
    predict_all,
    stored_pair,
    unexplained,
)
from trtllm_dflash.estimate.roofline import CONSTANTS, DATA, Constants

PAGE, PLOT, TEMPLATE = "README.md", "gpt-oss-120b-b300.png", "page.md.j2"
_RIGHT_ALIGNED = ("sequences", "τ", "predicted", "published", "error")


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with a row of names."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(predictions: Sequence[Prediction], cases: Sequence[ClaimCase]) -> str:
    """Return the page: the template with its tables."""
    software = [(each.name, each.meaning, each.reason) for each in SOFTWARE.values()]
    texts = [
        (name, str(text["prompt"]), str(text["answer"]))
        for name, text in ASSUMPTIONS["texts"].items()
    ]
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    template = environment.from_string((FOLDER / TEMPLATE).read_text("utf-8"))
    return template.render(
        constants=table(("value", "of what", "why"), _constants()),
        software=table(("name", "what", "why"), software),
        texts=table(("text", "prompt tokens", "answer tokens"), texts),
        reasoning=ASSUMPTIONS["reasoning"]["tokens"],
        validation=validation(predictions),
        explanations=_explanations(predictions),
        plain=_plain(predictions),
        without_copies=_without_copies(predictions),
        sensitivity=_sensitivity(),
        eagle=_against_eagle3(predictions),
        claim=claim_table(cases),
        plot=PLOT,
        plan=PLAN,
        plan_rows=table(PLAN_NAMES, plan_rows()),
        plan_published=table(PUBLISHED_NAMES, published_rows()),
    )


def _constants() -> list[tuple[str, str, str]]:
    """Return value, meaning and reason of each constant."""
    rows = []
    for each in DATA["constants"].values():
        value = f"{each['value'] * 1e6:g} µs" if "unit" in each else f"{each['value']:g}"
        rows.append((value, each["meaning"], each["reason"]))
    return rows


def validation(predictions: Sequence[Prediction]) -> str:
    """Return the table of all figures, and its median errors."""
    names = (
        *("source", "target", "drafter", "GPU", "text", "sequences", "τ"),
        *("predicted", "published", "error", "waits for", "note"),
    )
    alignment = ["--:" if name in _RIGHT_ALIGNED else "---" for name in names]
    first = listed(predictions)
    dflash = [each for each in first if each.figure.method == "DFlash"]
    eagle = [each for each in first if each.figure.method == "EAGLE-3"]
    later = [each for each in first if each.figure.status == "added later"]
    lines = [
        f"| {' | '.join(names)} |",
        f"|{'|'.join(alignment)}|",
        *(f"| {' | '.join(_cells(each))} |" for each in predictions),
        "",
        _summary("DFlash and EAGLE-3, the listed figures", first),
        _summary("of these, DFlash", dflash),
        _summary("of these, EAGLE-3", eagle),
        _summary("of these, compared only after all choices (table 1 at T=1)", later),
        _summary("held out (model cards; no choice rests on them)", held_out(predictions)),
        _summary(
            "hybrid targets (states were decided with these in view)", hybrids(predictions)
        ),
        _rule_of_thumb(first),
    ]
    return "\n".join(lines)


def _cells(prediction: Prediction) -> list[str]:
    figure = prediction.figure
    if figure.tree is None:
        block_size = figure.block_size or stored_pair(figure.drafter).drafter.config.block_size
        drafter = f"DFlash, block {block_size}"
    else:
        drafter = f"EAGLE-3, {figure.tree.tokens} tokens"
    return [
        f"{figure.source} (held out)" if figure.status == "held out" else figure.source,
        figure.target,
        drafter,
        figure.gpu,
        figure.text,
        f"{figure.sequences}",
        f"{figure.acceptance_length:g}",
        f"{prediction.speedup:.2f}",
        f"{figure.speedup:.2f}",
        f"{prediction.error:+.0%}",
        prediction.limited_by,
        figure.note,
    ]


def _summary(name: str, rows: Sequence[Prediction]) -> str:
    within = sum(not row.misses for row in rows)
    bias = median(row.error for row in rows)
    middle = f"median error {median_error(rows):.1%} ({bias:+.1%} with its sign)"
    return f"- {name}: {middle}, {within} of {len(rows)} within 20 %"


def _rule_of_thumb(rows: Sequence[Prediction]) -> str:
    """Return the error of the best rule "τ over a number", fitted to these very speedups."""

    def error(divisor: float) -> float:
        figures = [row.figure for row in rows]
        return median(abs(f.acceptance_length / divisor / f.speedup - 1) for f in figures)

    best = min((1 + step / 100 for step in range(300)), key=error)
    return (
        f"- for comparison, τ / {best:.2f}, fitted to the listed figures: median error"
        f" {error(best):.1%}"
    )


def _explanations(predictions: Sequence[Prediction]) -> str:
    """Return a line for each explanation, and one for each missed figure that has none."""
    lines = []
    for one in explanations():
        rows = [each for each in predictions if each.figure.is_covered(one["covers"])]
        lines.append(f"- **{one['name']}** ({error_range(rows)}). {one['text']}")
    for each in unexplained(predictions, explanations()):
        figure = each.figure
        name = f"{figure.source}, {figure.drafter}, {figure.text}, {figure.sequences}"
        lines.append(f"- **{name}** ({error_range([each])}). Unexplained.")
    return "\n".join(
        fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in lines
    )


def error_range(rows: Sequence[Prediction]) -> str:
    """Return the smallest and the largest error, signs included."""
    errors = [row.error for row in rows]
    low, high = f"{min(errors) * 100:+.0f}", f"{max(errors) * 100:+.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _without_copies(predictions: Sequence[Prediction]) -> str:
    """Return the median error of hybrid targets if no server copied states."""
    figures = [row.figure for row in hybrids(predictions)]
    return f"{median_error(predict_all(figures, copies_states=False)):.0%}"


def _plain(predictions: Sequence[Prediction]) -> str:
    """Return plain decoding where figures give tokens a second, each measurement once."""
    rows = {}
    for each in predictions:
        figure = each.figure
        if figure.plain is None:
            continue
        rows[figure.source, figure.target, figure.sequences] = (
            figure.source,
            figure.target,
            figure.gpu,
            f"{figure.sequences}",
            f"{each.plain:.0f}",
            f"{figure.plain:g}",
            f"{each.plain / figure.plain - 1:+.0%}",
        )
    names = ("source", "target", "GPU", "sequences", "predicted tokens/s", "published", "error")
    return table(names, list(rows.values()))


def _sensitivity() -> str:
    """Return the median errors when one assumption changes."""
    cases: list[tuple[str, Constants, float]] = [("as above", CONSTANTS, 1.0)]
    for name in ("bandwidth_fraction", "compute_fraction", "kernel"):
        for factor in (0.75, 1.25):
            value = getattr(CONSTANTS, name) * factor
            if value <= 1:
                changed = replace(CONSTANTS, **{name: value})
                cases.append((f"{name} x {factor}", changed, 1.0))
    cases += [
        ("answers half as long", CONSTANTS, 0.5),
        ("answers twice as long", CONSTANTS, 2.0),
    ]
    rows = []
    for name, constants, answers in cases:
        found = predict_all(constants=constants, answers=answers)
        errors = [median_error(part(found)) for part in (listed, held_out)]
        rows.append((name, *(f"{error:.1%}" for error in errors)))
    return table(("assumption", "median error", "held out"), rows)


def _against_eagle3(predictions: Sequence[Prediction]) -> str:
    """Return DFlash over EAGLE-3 where one source has both, on one text at one batch size."""
    rows = []
    dflash = {_condition(each): each for each in reversed(predictions) if not each.figure.tree}
    for eagle in predictions:
        figure, tree = eagle.figure, eagle.figure.tree
        if tree is None:
            continue
        ours = dflash[_condition(eagle)]
        rows.append(
            (
                figure.source,
                figure.target,
                figure.gpu,
                f"{figure.sequences}",
                f"{ours.figure.acceptance_length:g}",
                f"{figure.acceptance_length:g} ({tree.tokens} tokens)",
                f"{ours.speedup / eagle.speedup:.2f}",
                f"{ours.figure.speedup / figure.speedup:.2f}",
                f"{ours.step_seconds / eagle.step_seconds:.2f}",
            )
        )
    names = (
        *("source", "target", "GPU", "sequences", "τ DFlash", "τ EAGLE-3"),
        *("DFlash over EAGLE-3, predicted", "published", "step over step"),
    )
    return table(names, rows)


def _condition(prediction: Prediction) -> tuple[str, str, str, int]:
    figure = prediction.figure
    return figure.source, figure.drafter, figure.text, figure.sequences


def claim_table(cases: Sequence[ClaimCase]) -> str:
    """Return the table of the claim's cases and what holds for all of them."""
    names = (
        "assumptions",
        "plain decoding ends at, tokens/s a user",
        f"{CLAIM['ratio']}x at",
        f"ratio at {(LOW + HIGH) / 2:.0f}",
        "one sequence alone",
    )
    conditions = f"{CLAIM['gpus']} x {CLAIM['gpu']}, τ {CLAIM['acceptance_length']}."
    return f"{table(names, claim_rows(cases))}\n\n{conditions}"


def print_validation(echo: Callable[[str], None] = click.echo) -> None:
    """Print the comparison with all figures, and below it NVIDIA's 15x."""
    echo(validation(predict_all()))
    title = "gpt-oss-120b, throughput at equal interactivity, DFlash over plain decoding"
    echo(f"\n{title} (NVIDIA: {CLAIM['ratio']}x at {LOW} to {HIGH} tokens/s a user)\n")
    echo(claim_table(claim_cases()))


@click.command
@click.option("--print", "is_printed", is_flag=True, help="print the comparison, write nothing")
def main(is_printed: bool) -> None:
    """Write the page and its plot."""
    if is_printed:
        print_validation()
        return
    cases = claim_cases()
    (FOLDER / PAGE).write_text(page(predict_all(), cases), encoding="utf-8")
    draw_claim(cases, FOLDER / PLOT)
    click.echo(f"{FOLDER / PAGE}, {FOLDER / PLOT}")


if __name__ == "__main__":
    main()
