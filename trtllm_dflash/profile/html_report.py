"""The report: one page that needs nothing else, for light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import TYPE_CHECKING

from trtllm_dflash.profile import plots
from trtllm_dflash.profile.formatting import (
    COLUMNS,
    PROMPT_COLUMNS,
    RATE,
    advice_sentences,
    category_cells,
    cells,
    headline,
    prompt_cells,
    recommended_result,
)
from trtllm_dflash.profile.result import Profile, SystemResult
from trtllm_dflash.profile.theme import FONTS, inline_svg, variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = "page.html"
_BEST, _LINE = " class='best'", " class='first'"


def page(profile: Profile) -> str:
    """The HTML text.

    Raises:
        UsageError: where matplotlib is not installed.
    """
    template = Template(resources.files(__package__).joinpath(_PAGE).read_text(encoding="utf-8"))
    name = PurePath(profile.engine["directory"]).name
    machine = profile.machine
    where = ", ".join([*machine["gpus"], machine["processor"]])
    asked = profile.prompts
    return template.substitute(
        title=escape(f"Profile of {name}"),
        subtitle=escape(
            f"{profile.engine['arch']}, {profile.engine['dtype']} · {where},"
            f" {_threads(machine['threads'])} · {asked['count']} prompts of {len(asked['categories'])}"
            f" kinds, at most {profile.settings['max_tokens']} new tokens each ·"
            f" {profile.created[:10]}"
        ),
        variables=variables(),
        fonts=FONTS,
        cards="".join(_cards(profile)),
        sections="\n".join(_sections(profile)),
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _cards(profile: Profile) -> Iterator[str]:
    for value, meaning in headline(profile):
        yield f"<div class='card'><b>{escape(value)}</b><span>{escape(meaning)}</span></div>"


def _sections(profile: Profile) -> Iterator[str]:
    gpu = bool(profile.machine["gpus"]) and profile.engine["arch"] != "cpu"
    pareto = plots.throughput_against_interactivity(profile.curves, device="GPU" if gpu else "CPU")
    first = [result for result in profile.results if result.batch == profile.results[0].batch]
    drafting = [result for result in first if result.acceptance.by_position]
    yield "<h2>Advice</h2>" + _list(advice_sentences(profile))
    yield _schedule(profile)
    yield "<h2>Throughput against interactivity</h2>" + _figure(
        pareto,
        "Throughput against interactivity by side",
        "Numbers at the points are batch sizes. Every point is the mean over the steps in which the"
        " whole batch took part. Up and to the right is better.",
    )
    yield "<h2>All figures</h2>" + _results_table(profile)
    if drafting:
        yield from _acceptance(
            drafting, plots.colours_by_name([result.system for result in profile.results])
        )
        yield (
            "<h2>By kind and by prompt</h2>"
            + _by_category(profile, drafting)
            + _prompts_table(profile)
        )
    yield from _time(profile)
    yield "<h2>How it was measured</h2>" + _provenance(profile)


def _acceptance(drafting: Sequence[SystemResult], colours: Mapping[str, str]) -> Iterator[str]:
    widest = max(drafting, key=lambda result: (result.draft_len, result.implementation == "dflash"))
    kinds = _figure(
        plots.acceptance_length_by_category(drafting, colours),
        "τ by kind of prompt",
        f"τ by kind of prompt, at batch {widest.batch}.",
    )
    places = _figure(
        plots.acceptance_by_position(widest, colours),
        "acceptance by position in the block",
        f"{widest.system}: a draft counts as accepted when all before it are.",
    )
    yields = _figure(
        plots.step_yields(drafting, colours),
        "histogram of tokens a step",
        "How many tokens a step yielded.",
    )
    yield f"<h2>Acceptance</h2><div class='pair'>{kinds}<div>{places}{yields}</div></div>"


def _by_category(profile: Profile, drafting: Sequence[SystemResult]) -> str:
    titles = ["kind (prompts)", *(result.system for result in drafting)]
    caption = f"τ, and tokens/s per user over the plain engine's, at batch {drafting[0].batch}."
    return f"{_table(titles, category_cells(profile, drafting))}<figcaption>{escape(caption)}</figcaption>"


def _time(profile: Profile) -> Iterator[str]:
    if not profile.step_breakdowns:
        return
    method = profile.step_breakdowns[0].method
    how = {
        "kernels": (
            "The fastest of a few steps, divided as the times of its kernels are (timed in a twin"
            " of it); host: outside of ONNX Runtime."
        ),
        "differences": (
            "From differences of step times; drafting holds acceptance, and the host is spread over"
            " both."
        ),
    }[method]
    parts = _figure(plots.where_time_goes(profile.step_breakdowns), "time of a step by part", how)
    layered = [
        breakdown
        for breakdown in profile.step_breakdowns
        if breakdown.layers and breakdown.draft_len
    ]
    if layered:
        own = [
            breakdown for breakdown in layered if breakdown.draft_len == profile.engine["draft_len"]
        ]
        shown = (own or layered)[0]
        parts += _figure(
            plots.time_by_layer(shown),
            "time of a step by layer",
            f"{shown.system}, batch {shown.batch}, by layer.",
        )
    yield f"<h2>Where the time goes</h2><div class='pair'>{parts}</div>"


def _figure(figure: Figure, description: str, caption: str) -> str:
    svg = inline_svg(figure, escape(description, quote=True))
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _schedule(profile: Profile) -> str:
    schedule = json.dumps(profile.advice.draft_len_schedule)
    return (
        "<p class='muted'>As a file for <code>dflash-trt run --draft-len-schedule</code> (batch"
        f" size to drafts):</p><pre>{escape(schedule)}</pre>"
    )


def _results_table(profile: Profile) -> str:
    rows, marks, batch = [], [], 0
    for result in profile.results:
        fastest = max(
            other.tokens_per_second for other in profile.results if other.batch == result.batch
        )
        rows.append(cells(profile, result))
        marks.append((result.batch != batch, RATE if result.tokens_per_second == fastest else ""))
        batch = result.batch
    return _table(COLUMNS, rows, marks)


def _prompts_table(profile: Profile) -> str:
    result = recommended_result(profile)
    table = _table(PROMPT_COLUMNS, prompt_cells(profile, result))
    summary = f"Every prompt with {result.system} at batch {result.batch}"
    return f"<details><summary>{escape(summary)}</summary>{table}</details>"


def _table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Sequence[tuple[bool, str]] | None = None,
) -> str:
    """`marks`: for each row, whether a line goes above it, and the title of a cell that stands
    out.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in titles)
    body = []
    for row, (line, best) in zip(rows, marks or [(False, "")] * len(rows), strict=True):
        tds = "".join(
            f"<td{_BEST if name == best else ''}>{escape(cell)}</td>"
            for name, cell in zip(titles, row, strict=True)
        )
        body.append(f"<tr{_LINE if line else ''}>{tds}</tr>")
    return (
        "<div"
        f" class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _provenance(profile: Profile) -> str:
    machine = {
        name: ", ".join(value) if isinstance(value, list) else value
        for name, value in profile.machine.items()
    }
    facts: dict[str, object] = {
        "command": " ".join(profile.argv),
        "created": profile.created,
        "commit": profile.commit or "not a git checkout",
        "prompts": profile.prompts["name"],
        **machine,
        "versions": ", ".join(f"{name} {version}" for name, version in profile.versions.items()),
        "plain engine": profile.plain["directory"] or "built beside, from the same checkpoint",
    }
    return (
        _definitions(facts)
        + "<p class='muted'>What each clock covers:</p>"
        + _definitions(profile.clock)
    )


def _definitions(facts: Mapping[str, object]) -> str:
    rows = (
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"
