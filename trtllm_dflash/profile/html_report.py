"""The HTML report of a profile: one file without other resources, for light and dark themes.

The page is the template `report.html.j2`; this module computes what it shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trtllm_dflash.profile import acceptance_plots, time_plots
from trtllm_dflash.profile.curve_plot import throughput_against_interactivity
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
from trtllm_dflash.profile.looks import looks_by_name
from trtllm_dflash.profile.result import DFLASH, Profile, StepBreakdown, SystemResult
from trtllm_dflash.profile.theme import FONTS, css_variables, inline_svg
from trtllm_dflash.runtime.text.chat_format import describe_format

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "report.html.j2"
_METHODS = {
    "kernels": (
        "The fastest of a few steps, divided in proportion to its kernels' times. These come from a"
        " second, traced step. host: time outside of ONNX Runtime."
    ),
    "differences": (
        "From differences of step times. Drafting includes acceptance; the host's time is in both."
    ),
}


@dataclass(frozen=True)
class _FigureView:
    """A plot as SVG, and the text below it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class _Row:
    """A table row; the cell in `best_column` stands out, a line separates groups of rows."""

    cells: Sequence[str]
    begins_group: bool = False
    best_column: int | None = None


@dataclass(frozen=True)
class _TableView:
    """A table with its column titles."""

    titles: Sequence[str]
    rows: Sequence[_Row]


def page(profile: Profile) -> str:
    """Return the report as HTML.

    Raises:
        UsageError: where matplotlib is not installed.
    """
    environment = Environment(
        loader=PackageLoader("trtllm_dflash.profile", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    drafting = _drafting_results(profile)
    return environment.get_template(_TEMPLATE).render(
        title=f"Profile of {PurePath(profile.engine['directory']).name}",
        subtitle=_subtitle(profile),
        css_variables=Markup(css_variables()),
        fonts=Markup(FONTS),
        headline=headline(profile),
        advice=advice_sentences(profile),
        schedule=json.dumps(profile.advice.draft_len_schedule),
        throughput=_throughput(profile),
        results=_results_table(profile),
        acceptance=_acceptance(profile, drafting) if drafting else None,
        time_figures=_time_figures(profile),
        provenance=_provenance(profile),
        clock=profile.clock,
    )


def _subtitle(profile: Profile) -> str:
    """Return the engine, the machine, the prompts and the date in one line."""
    engine = profile.engine
    machine = profile.machine
    prompts = profile.prompts
    threads = machine["threads"]
    parts = [
        f"{engine['arch']}, {engine['dtype']}",
        ", ".join(
            [
                *machine["gpus"],
                machine["processor"],
                "1 thread" if threads == 1 else f"{threads} threads",
            ]
        ),
        f"{prompts['count']} prompts of {len(prompts['categories'])} categories"
        f" ({describe_format(prompts)}), at most {profile.settings['max_tokens']} new tokens each",
        profile.created[:10],
    ]
    return " · ".join(parts)


def _drafting_results(profile: Profile) -> list[SystemResult]:
    """Return the results at the first batch size that know which drafts were accepted.

    They come with those of as many drafts as pay.
    """
    batch = profile.results[0].batch
    own = [result for result in profile.results if result.batch == batch]
    if not any(result.acceptance.by_position for result in own):
        return []
    return [result for result in own if result.acceptance.by_position or result.auto]


def _figure(figure: Figure, description: str, caption: str) -> _FigureView:
    return _FigureView(Markup(inline_svg(figure, escape(description))), caption)


def _throughput(profile: Profile) -> _FigureView:
    """Return the figure of all curves."""
    on_gpu = bool(profile.machine["gpus"]) and profile.engine["arch"] != "cpu"
    return _figure(
        throughput_against_interactivity(profile.curves, device="GPU" if on_gpu else "CPU"),
        "Throughput against interactivity by system",
        "Numbers at the points are batch sizes. Every point is the mean over the steps in which the"
        " whole batch took part. Up and to the right is better.",
    )


def _results_table(profile: Profile) -> _TableView:
    """Return the table of all figures, with the fastest of each batch size marked."""
    rows = []
    batch = 0
    for result in profile.results:
        fastest = max(
            other.tokens_per_second for other in profile.results if other.batch == result.batch
        )
        is_best = result.tokens_per_second == fastest
        best_column = COLUMNS.index(RATE) if is_best else None
        rows.append(_Row(cells(profile, result), result.batch != batch, best_column))
        batch = result.batch
    return _TableView(COLUMNS, rows)


def _acceptance(profile: Profile, drafting: Sequence[SystemResult]) -> dict[str, Any]:
    """Return the figures and tables about acceptance, by their names in the template."""
    looks = looks_by_name([result.system for result in profile.results])
    widest = max(
        (result for result in drafting if result.acceptance.by_position),
        key=lambda result: (result.draft_len, result.implementation == DFLASH),
    )
    recommended = recommended_result(profile)
    return {
        "by_category": _figure(
            acceptance_plots.acceptance_length_by_category(drafting, looks),
            "τ by category of prompt",
            f"τ by category of prompt, at batch {widest.batch}.",
        ),
        "by_position": _figure(
            acceptance_plots.acceptance_by_position(widest, looks),
            "acceptance by position in the block",
            f"{widest.system}: a draft counts as accepted when all before it are.",
        ),
        "step_yields": _figure(
            acceptance_plots.step_yields(drafting, looks),
            "histogram of tokens a step",
            "How many tokens a step yielded.",
        ),
        "categories": _TableView(
            ["category (prompts)", *(result.system for result in drafting)],
            [_Row(row) for row in category_cells(profile, drafting)],
        ),
        "categories_caption": (
            f"τ, and tokens/s per user over the plain engine's, at batch {drafting[0].batch}."
        ),
        "prompts": _TableView(
            PROMPT_COLUMNS, [_Row(row) for row in prompt_cells(profile, recommended)]
        ),
        "prompts_caption": (
            f"Every prompt with {recommended.system} at batch {recommended.batch}"
        ),
    }


def _time_figures(profile: Profile) -> list[_FigureView]:
    """Return the figures of where the time goes, [] if that is unknown."""
    breakdowns = profile.step_breakdowns
    if not breakdowns:
        return []
    caption = _METHODS[breakdowns[0].method]
    figures = [
        _figure(time_plots.where_time_goes(breakdowns), "time of a step by part", caption)
    ]
    shown = _layered_breakdown(profile)
    if shown is not None:
        caption = f"{shown.system}, batch {shown.batch}, by layer."
        figures.append(
            _figure(time_plots.time_by_layer(shown), "time of a step by layer", caption)
        )
    return figures


def _layered_breakdown(profile: Profile) -> StepBreakdown | None:
    """Return a step with drafts that is known by layer, at best with the engine's own draft_len."""
    layered = [one for one in profile.step_breakdowns if one.layers and one.draft_len]
    own = [one for one in layered if one.draft_len == profile.engine["draft_len"]]
    return next(iter(own or layered), None)


def _provenance(profile: Profile) -> Mapping[str, object]:
    """Return the facts below the report, by name."""
    machine = {
        name: ", ".join(value) if isinstance(value, list) else value
        for name, value in profile.machine.items()
    }
    return {
        "command": " ".join(profile.argv),
        "created": profile.created,
        "commit": profile.commit or "not a git checkout",
        "prompts": profile.prompts["name"],
        **machine,
        "versions": ", ".join(
            f"{name} {version}" for name, version in profile.versions.items()
        ),
        "plain engine": profile.plain["directory"] or "built beside, from the same checkpoint",
    }
