"""What a step of a CPU engine with experts costs, in float32 and with integer weights.

    python examples/benchmark/experts.py --json experts.json

The target is a random checkpoint with layers of a published width, all experts, and few layers. Its
engines are loaded in one process and take turns, so that only their ratios are claims. In float32
the operator's body computes all experts for every token. Integers compute the chosen ones alone.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from synthetic import target_config, write

from trtllm_dflash import __version__
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import WEIGHTS_FILE
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.options.build import WEIGHT_ONLY, BuildConfig
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.runtime.sessions.ort import OrtSession
from trtllm_dflash.runtime.threads import resolve_num_threads

FLOAT = "float32"
ROWS = (1, 4, 8)  # of a step: slots, one token each
PROMPT = 64  # tokens of the prompt that is timed


def build(target: Path, output: Path, precision: str) -> Path:
    """Build a plain engine of eight slots."""
    config = BuildConfig(
        str(target),
        output,
        arch="cpu",
        max_batch_size=max(ROWS),
        max_seq_len=512,
        weight_only_precision=None if precision == FLOAT else precision,
    )
    return build_engine(config).directory


def opened(directory: Path, threads: int) -> OrtSession:
    """Load an engine, and give each slot a short prompt."""
    session = OrtSession(directory, EngineConfig.load(directory), num_threads=threads)
    for slot in range(max(ROWS)):
        prefill(session, 16, slot)
    return session


def decode(session: OrtSession, rows: int) -> None:
    """Take a step of so many slots."""
    session.decode(rows, 1)
    session.collect()


def prefill(session: OrtSession, tokens: int, slot: int = 0) -> None:
    """Read a prompt of so many tokens into a slot."""
    session.open_slot(slot, SlotSampling())
    session.prefill(slot, np.random.default_rng(slot).integers(0, 500, tokens))
    session.collect()


def measure(sessions: Mapping[str, OrtSession], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of step: milliseconds by precision, the median of all rounds."""
    calls = [("step", rows, decode) for rows in ROWS] + [("prompt", PROMPT, prefill)]
    return [
        {"kind": name, "tokens": count, "ms": _medians(sessions, rounds, call, count)}
        for name, count, call in calls
    ]


def _medians(
    sessions: Mapping[str, OrtSession],
    rounds: int,
    call: Callable[[OrtSession, int], None],
    count: int,
) -> dict[str, float]:
    milliseconds: dict[str, list[float]] = {precision: [] for precision in sessions}
    for _ in range(rounds):
        for precision, session in sessions.items():
            start = time.perf_counter()
            call(session, count)
            milliseconds[precision].append(1e3 * (time.perf_counter() - start))
    return {precision: statistics.median(each) for precision, each in milliseconds.items()}


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the table; ratios are float32's time over that of integers."""
    precisions = list(facts["engine_gb"])
    lines = [
        "| | " + " | ".join(precisions) + " |",
        "|---" * (1 + len(precisions)) + "|",
        "| engine | "
        + " | ".join(f"{facts['engine_gb'][p]:.1f} GB" for p in precisions)
        + " |",
    ]
    for row in facts["rows"]:
        what = "a prompt" if row["kind"] == "prompt" else "a step"
        cells = [f"{what}, {row['tokens']} token{'s' * (row['tokens'] > 1)}"]
        for precision in precisions:
            ms = row["ms"][precision]
            ratio = "" if precision == FLOAT else f" ({row['ms'][FLOAT] / ms:.1f}× as fast)"
            cells.append(f"{ms:.1f} ms{ratio}")
        lines.append("| " + " | ".join(cells) + " |")
    told = f"{facts['model']}'s width, {facts['layers']} layers, {facts['experts']} experts"
    return "\n".join([*lines, "", f"{told}, {facts['num_threads']} threads, {facts['date']}."])


@click.command()
@click.option("--model", default="qwen3-coder-30b", show_default=True)
@click.option("--layers", default=2, show_default=True)
@click.option("--experts", default=128, show_default=True)
@click.option("--vocab-size", type=int, help="[default: the model's own]")
@click.option("--rounds", default=15, show_default=True)
@click.option("--num-threads", type=int, help="of ONNX Runtime; as many as an engine takes")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    model: str,
    layers: int,
    experts: int,
    vocab_size: int | None,
    rounds: int,
    num_threads: int | None,
    json_file: Path | None,
) -> None:
    """Time steps and prompts of one target in float32, int8 and int4, in turns."""
    threads = resolve_num_threads(num_threads)
    config = target_config(model, layers, experts)
    config["vocab_size"] = vocab_size or config["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target"
        write(target, config, read_target_config(config, None, "target"))
        engines = {
            precision: build(target, Path(folder) / precision, precision)
            for precision in (FLOAT, *WEIGHT_ONLY)
        }
        sizes = {
            precision: (engine / WEIGHTS_FILE).stat().st_size / 1e9
            for precision, engine in engines.items()
        }
        sessions = {precision: opened(engine, threads) for precision, engine in engines.items()}
        rows = measure(sessions, rounds)
    facts = {
        "version": __version__,
        "onnxruntime": onnxruntime.__version__,
        "processor": platform.processor(),
        "model": model,
        "layers": layers,
        "experts": experts,
        "vocab_size": config["vocab_size"],
        "num_threads": threads,
        "date": time.strftime("%Y-%m-%d"),
        "engine_gb": sizes,
        "rows": rows,
    }
    click.echo(markdown(facts))
    if json_file:
        json_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
