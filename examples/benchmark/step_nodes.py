"""What the nodes of a CPU engine's step cost: products, attention, and all else.

    python examples/benchmark/step_nodes.py demo/plain-int8 demo/int8 --json step_nodes.json

ONNX Runtime traces the nodes of equal steps. Of each node the shortest time counts, since
disturbances only add to it. Tracing itself costs time for each node, so the share of small nodes
is overstated. Only shares of one run are claims.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from trtllm_dflash import __version__
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.profile.ort_trace import TracedRun, traced_runs
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.runtime.sessions.ort import OrtSession
from trtllm_dflash.runtime.threads import resolve_num_threads

ROWS = (1, 4, 8)  # of a step: slots of a plain engine, tokens of one slot of a DFlash engine
KINDS = ("products", "attention", "other")
GOAL = 0.2  # the most that other nodes of a plain step in int8 may take
_PRODUCTS = frozenset({"MatMulNBits", "MatMul", "Gemm", "FusedMatMul"})
# Its arithmetic alone: what turns, cuts and copies rows around it is "other".
_OF_ATTENTION = frozenset({"MatMul", "FusedMatMul", "Softmax", "Add"})
_ATTENTION = re.compile(r"DFlash\w*Attention")


def kind_of(event: Mapping[str, Any]) -> str:
    """Return the kind of a traced node."""
    operator = event["args"]["op_name"]
    if _ATTENTION.search(event["name"]):
        return "attention" if operator in _OF_ATTENTION else "other"
    return "products" if operator in _PRODUCTS else "other"


def seconds_by_kind(runs: Sequence[TracedRun]) -> dict[str, float]:
    """Return the seconds of each kind of nodes, from equal steps: of each node the shortest."""
    shortest: dict[int, float] = {}
    for run in runs:
        for index, event in enumerate(run.kernels):
            shortest[index] = min(event["dur"] * 1e-6, shortest.get(index, float("inf")))
    seconds = dict.fromkeys(KINDS, 0.0)
    for index, event in enumerate(runs[0].kernels):
        seconds[kind_of(event)] += shortest[index]
    return seconds


def measure(directory: Path, context: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """Return a row for each number of rows that the engine's step may have."""
    config = EngineConfig.load(directory)
    drafting = config.block_size > 1
    most = config.block_size if drafting else config.max_batch_size
    rows = []
    for count in (count for count in ROWS if count <= most):
        slots, width = (1, count) if drafting else (count, 1)
        runs = _run(directory, config, (slots, width), (context, steps, threads))
        seconds = seconds_by_kind(runs)
        rows.append(
            {
                "engine": directory.name,
                "rows": count,
                "nodes": len(runs[0].kernels),
                **{f"{kind}_ms": 1e3 * spent for kind, spent in seconds.items()},
                "other_share": seconds["other"] / sum(seconds.values()),
            }
        )
    return rows


def _run(
    directory: Path, config: EngineConfig, shape: tuple[int, int], how: tuple[int, int, int]
) -> list[TracedRun]:
    """Decode steps of (slots, width) behind a context; returns all but the first, as traced."""
    (slots, width), (context, steps, threads) = shape, how
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        session = OrtSession(directory, config, num_threads=threads, trace=trace)
        tokens = np.random.default_rng(slots).integers(10, 1000, (slots, context))
        for slot, prompt in enumerate(tokens):
            session.open_slot(slot, SlotSampling())
            for start in range(0, context, session.max_num_tokens):
                session.prefill(slot, prompt[start : start + session.max_num_tokens])
                session.collect()
        for _ in range(1 + steps):
            session.decode(slots, width)
            session.collect()
        events = json.loads(session.end_trace().read_bytes())
    return traced_runs(events)[-steps:]


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the table, and whether the goal is reached."""
    lines = [
        "| engine | rows | nodes | products | attention | other | other, of all |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["steps"]:
        times = " | ".join(f"{row[f'{kind}_ms']:.2f} ms" for kind in KINDS)
        cells = f"{row['engine']} | {row['rows']} | {row['nodes']} | {times}"
        lines.append(f"| {cells} | {row['other_share']:.1%} |")
    plain = [row for row in facts["steps"] if (row["engine"], row["rows"]) == ("plain-int8", 1)]
    for row in plain:
        verdict = "reached" if row["other_share"] <= GOAL else "missed"
        share = f"{row['other_share']:.1%}"
        lines += [
            "",
            f"Goal, one row of plain-int8: at most {GOAL:.0%} other. {share}: {verdict}.",
        ]
    told = f"{facts['num_threads']} threads, {facts['context']} tokens before the step"
    return "\n".join([*lines, "", f"{told}, {facts['date']}."])


@click.command()
@click.argument(
    "engines", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option("--context", default=128, show_default=True, help="tokens before the step")
@click.option("--steps", default=40, show_default=True, help="of each shape")
@click.option("--num-threads", type=int, help="of ONNX Runtime; as many as an engine takes")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    engines: Sequence[Path],
    context: int,
    steps: int,
    num_threads: int | None,
    json_file: Path | None,
) -> None:
    """Trace steps of 1, 4 and 8 rows of CPU engines, and add their nodes up by kind."""
    threads = resolve_num_threads(num_threads)
    rows: list[dict[str, Any]] = []
    for engine in engines:
        rows += measure(engine, context, steps, threads)
    facts = {
        "version": __version__,
        "onnxruntime": onnxruntime.__version__,
        "processor": platform.processor(),
        "num_threads": threads,
        "context": context,
        "date": time.strftime("%Y-%m-%d"),
        "steps": rows,
    }
    click.echo(markdown(facts))
    if json_file:
        json_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
