"""The report of a check as JSON and as one Markdown table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1  # of the JSON
_HEAD = (
    *("part", "case", "result", "µs", "% of copy bandwidth", "TFLOP/s"),
    *("best other", "its µs", "ratio", "more"),
)
# Figures that have a column of their own, in its order.
_COLUMNS = ("microseconds", "bandwidth_percent", "teraflops", "other", "other_microseconds")
_OWN = ("case", "result", "reason", *_COLUMNS)


def file_stem(gpu: str) -> str:
    """Return the name of a GPU as that of its files."""
    return re.sub(r"\W+", "_", gpu).strip("_").lower()


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write <gpu>.json and <gpu>.md into `folder`, and return their paths."""
    stem = file_stem(report["gpu"])
    texts = {
        ".json": json.dumps({"format": FORMAT, **report}, indent=1, ensure_ascii=False) + "\n",
        ".md": markdown(report),
    }
    paths = []
    for suffix, text in texts.items():
        path = folder / f"{stem}{suffix}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as a page with one table: a row for each part, and for each of its
    cases.
    """
    changed = " with changes" * bool(report["is_changed"])
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"# {report['gpu']}",
        "",
        f"`{report['command']}` on {report['date']}, commit {report['commit'][:12]}{changed}. "
        f"{report['arch']}, driver {report['driver']} ({report['driver_cuda']}). {versions}.",
        f"It took {report['seconds']:.0f} s. What columns mean: [bench](../README.md).",
        "",
        _line(_HEAD),
        _line(["---"] * len(_HEAD)),
    ]
    for part in report["parts"]:
        took = f"{part['seconds']:.0f} s"
        lines.append(_line([f"**{part['name']}**", "", part["result"], *[""] * 6, took]))
        if part["reason"]:
            lines[-1] = _line(
                [f"**{part['name']}**", part["reason"], part["result"], *[""] * 6, took]
            )
        lines += [_line(_cells(row)) for row in part["rows"]]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    own, other = row.get("microseconds"), row.get("other_microseconds")
    ratio = f"{other / own:.2f}" if own and other else ""
    more = [f"{name} {_text(value)}" for name, value in row.items() if name not in _OWN]
    more += [row["reason"]] if row["reason"] else []
    return [
        "",
        row["case"],
        row["result"],
        *(_text(row.get(name)) for name in _COLUMNS),
        ratio,
        "; ".join(more),
    ]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    safe = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(safe)} |"
