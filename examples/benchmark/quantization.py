"""What each quantization of the demo pair costs: bytes, memory, perplexity, agreement and
acceptance length.

Every figure comes from a `dflash-trt` command, which is kept beside it; this file only calls them
and reads what they wrote. Accuracy is that of CPU engines, which compute with the quantized
numbers; bytes are those of a GPU's engine. Checkpoints of other makers are from their packages, by
published_formats.py.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import click
from published_formats import LAYOUTS
from rich.console import Console
from rich.table import Table

from trtllm_dflash import __version__
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.options.quantize import KEEP_WEIGHTS

_SAMPLE_SECONDS = 0.02
PAIR = Path(__file__).parent.parent / "demo_pair"
MAKERS = Path(__file__).with_name("published_formats.py")
FORMATS = {
    KEEP_WEIGHTS: "BF16",
    "fp8": "FP8",
    "w4a16_nvfp4": "NVFP4, weights only",
    "nvfp4": "NVFP4 (W4A4)",
}
WEIGHT_ONLY = ("int8", "int4")
BASE = "bf16"  # what the others are compared with
COLUMNS = {
    "name": "weights",
    "kv_cache": "KV caches",
    "linears": "linears, of BF16",
    "sm120": "sm120 engine, MB",
    "sm89": "sm89 engine, MB",
    "perplexity": "perplexity",
    "top1": "same top-1",
    "acceptance_length": "τ",
    "quantize_memory": "quantizing: memory",
    "cpu_build_memory": "CPU build",
    "gpu_build_memory": "GPU build",
}
ARCHS = tuple(name for name in COLUMNS if name.startswith("sm"))


@dataclass(frozen=True)
class Case:
    """A row of the table: its label, what it is called, and how its checkpoint comes to be.

    `quant`: a format of `quantize`. `layout`: one of published_formats.py. Neither: as it is.
    `weight_only`: a precision of integers, which `build` makes for a CPU engine.
    """

    label: str
    name: str
    kv_cache: str = "BF16"
    quant: str | None = None
    layout: str | None = None
    weight_only: str | None = None


def all_cases() -> list[Case]:
    """Return the rows: our formats with caches of both types, integers, those of other makers."""
    cases = []
    for quant, name in FORMATS.items():
        label, is_base = (BASE, True) if quant == KEEP_WEIGHTS else (quant, False)
        cases.append(Case(label, name, quant=None if is_base else quant))
        cases.append(Case(f"{label}_fp8kv", name, "FP8", quant=quant))
    integers = [
        Case(name, f"{name.upper()} in blocks, CPU", "FP32", weight_only=name)
        for name in WEIGHT_ONLY
    ]
    makers = [Case(key, each.title, layout=key) for key, each in LAYOUTS.items()]
    return cases + integers + makers


class Commands:
    """Runs `dflash-trt` commands, and keeps them with what they took."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log: list[str] = []

    def __call__(self, *arguments: object) -> int:
        """Run one; returns the most bytes of its own that it and its processes had at once.

        "Of its own" are pages that must be in memory: not those of mapped files, which weights and
        libraries are.
        """
        return self._run("dflash-trt", ["-m", "trtllm_dflash"], arguments)

    def script(self, path: Path, *arguments: object) -> int:
        """Run a Python script likewise."""
        return self._run(f"python {self._shortened(str(path))}", [str(path)], arguments)

    def _run(self, name: str, program: Sequence[str], arguments: Sequence[object]) -> int:
        words = [str(word) for word in arguments]
        self.log.append(f"{name} " + shlex.join(self._shortened(word) for word in words))
        click.echo(self.log[-1], err=True)
        peak = 0
        with (self.directory / "commands.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, *program, *words], stdout=log, stderr=log
            )
            while process.poll() is None:
                peak = max(peak, sum(map(anonymous_bytes, family(process.pid))))
                time.sleep(_SAMPLE_SECONDS)
        if process.returncode:
            raise click.ClickException(
                f"{self.log[-1]} failed, see {self.directory / 'commands.log'}"
            )
        return peak

    def _shortened(self, word: str) -> str:
        return word.removeprefix(f"{self.directory}/").removeprefix(f"{Path.cwd()}/")


def family(pid: int) -> list[int]:
    """Return a process and everything that it has started."""
    members = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text(encoding="utf-8").split():
                members += family(int(child))
    return members


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process; 0 once it is gone.

    Pages that processes share, as after a fork, count once in all of them together.
    """
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        for line in rollup.splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    return 0


def measure(directory: Path, target: Path, case: Case, prompts: Path) -> dict[str, Any]:
    """Return one row: make the checkpoint, build for the CPU and GPUs, evaluate against BASE."""
    run = Commands(directory)
    row: dict[str, Any] = {"label": case.label, "name": case.name, "kv_cache": case.kv_cache}
    source, row["quantize_memory"] = _checkpoint(run, directory, target, case)
    row["linears"] = share_of_linears(source)
    row |= _weighed(run, directory, source, case)
    result = directory / f"{case.label}.json"
    against = [] if case.label == BASE else ["--against", directory / BASE]
    asked = ["--prompts", prompts, "--max-tokens", 64, "--json", result]
    run("eval", directory / case.label, *against, *asked)
    row |= _evaluated(json.loads(result.read_text(encoding="utf-8")))
    return row | {"commands": run.log, "date": time.strftime("%Y-%m-%d")}


def weigh_again(directory: Path, target: Path, case: Case) -> dict[str, Any]:
    """Return what of a row is of engines, measured again."""
    run = Commands(directory)
    source, _ = _checkpoint(run, directory, target, case)
    return _weighed(run, directory, source, case)


def _checkpoint(
    run: Commands, directory: Path, target: Path, case: Case
) -> tuple[Path, int | None]:
    """Make a row's checkpoint; returns it, and the memory of `quantize` where that made it."""
    if case.layout is not None:
        source = directory / "published" / case.layout
        run.script(MAKERS, target, source.parent, case.layout)
        return source, None
    if case.quant is None:
        return target, None
    source = directory / f"{case.label}_checkpoint"
    options = ["--quant", case.quant, "--output-dir", source, "--overwrite"]
    options += ["--kv-cache-dtype", "fp8"] if case.kv_cache == "FP8" else []
    return source, run("quantize", "--target", target, *options)


def _build(source: Path) -> list[object]:
    """Return the command that builds an engine of a target, but for arch and output."""
    drafter = PAIR / "drafter"
    pair = ["--target", source, "--drafter", drafter]
    return ["build", *pair, "--draft-vocab", drafter / "draft_vocab.json", "--overwrite"]


def _weighed(run: Commands, directory: Path, source: Path, case: Case) -> dict[str, Any]:
    """Build for the CPU, and for each GPU that has the arithmetic: bytes, and the most memory."""
    row: dict[str, Any] = {"engines_date": time.strftime("%Y-%m-%d")}
    cpu = ["--arch", "cpu", "--output-dir", directory / case.label]
    if case.weight_only is not None:
        cpu += ["--weight-only-precision", case.weight_only]
    row["cpu_build_memory"] = run(*_build(source), *cpu)
    if case.weight_only is not None:
        return row
    formats = load_target(source).formats.values()
    for arch in ARCHS:
        if all(arch in fmt.archs for fmt in formats):
            engine = directory / f"{case.label}_{arch}"
            memory = run(*_build(source), "--arch", arch, "--output-dir", engine)
            row["gpu_build_memory"] = max(memory, row.get("gpu_build_memory", 0))
            row[arch] = (engine / ENGINE_FILE).stat().st_size
    return row


def share_of_linears(checkpoint: Path) -> float | None:
    """Return the bytes of the quantized linears over what they take in BF16; None without any."""
    model = load_target(checkpoint)
    stored = plain = 0
    for module, fmt in model.formats.items():
        parts = [info for name, info in model.tensors.items() if name.startswith(f"{module}.")]
        stored += sum(info.nbytes for info in parts)
        weight = model.tensors[f"{module}.weight"]
        plain += 2 * prod(weight.shape) * (2 if fmt.group_size else 1)  # two codes a byte
    return stored / plain if plain else None


def _evaluated(found: dict[str, Any]) -> dict[str, Any]:
    engine, comparison = found["engine"], found.get("comparison") or {}
    return {
        "perplexity": engine["perplexity"],
        "acceptance_length": engine["acceptance"]["acceptance_length"],
        "top1": comparison.get("top1"),
        "kl": comparison.get("kl_mean"),
        "text": found["text"],
    }


def _cell(key: str, row: dict[str, Any], checkpoint_bytes: int) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if key.endswith("_memory"):
        return f"{value / 1e6:.0f} MB ({value / checkpoint_bytes:.1f}x)"
    if key in ARCHS:
        return f"{value / 1e6:.0f}"
    formats = {
        "top1": "{:.1%}".format,
        "linears": "{:.3f}".format,
    }
    return formats.get(key, lambda v: v if isinstance(v, str) else f"{v:.2f}")(value)


def markdown(facts: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [
        [_cell(key, row, facts["checkpoint_bytes"]) for key in COLUMNS] for row in facts["rows"]
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@click.command()
@click.option("--target", default="demo/target", show_default=True, type=Path)
@click.option(
    "--prompts", default=PAIR / "prompts" / "unseen.jsonl", show_default=True, type=Path
)
@click.option("--only", help="measure these labels again, and leave other figures as they are")
@click.option("--engines-only", is_flag=True, help="build only, and keep the accuracy")
@click.option("--work-dir", required=True, type=Path, help="checkpoints and engines go there")
@click.option("--json", "json_file", type=Path, help="write the figures here, with those there")
def main(
    target: Path,
    prompts: Path,
    only: str | None,
    engines_only: bool,
    work_dir: Path,
    json_file: Path | None,
) -> None:
    """Measure every format, with FP8 caches and without, print a table, and write the figures."""
    work_dir.mkdir(parents=True, exist_ok=True)
    cases = {case.label: case for case in all_cases()}
    facts: dict[str, Any] = {
        "provenance": {"version": __version__, "python": platform.python_version()},
        "checkpoint_bytes": (target / "model.safetensors").stat().st_size,
        "rows": [],
    }
    wanted = only.split(",") if only else list(cases)
    if unknown := [label for label in wanted if label not in cases]:
        raise click.BadParameter(f"--only {unknown[0]}: expected some of {', '.join(cases)}")
    rows = _earlier(json_file) if only or engines_only else {}
    for label in wanted:
        if engines_only:
            rows[label] |= weigh_again(work_dir, target, cases[label])
        else:
            rows[label] = measure(work_dir, target, cases[label], prompts)
        facts["rows"] = [rows[name] for name in cases if name in rows]
        if json_file:
            written = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
            json_file.write_text(written, encoding="utf-8")
    _print(facts)


def _earlier(json_file: Path | None) -> dict[str, dict[str, Any]]:
    """Return the rows that a file has, by label."""
    if json_file is None or not json_file.exists():
        return {}
    rows = json.loads(json_file.read_text(encoding="utf-8"))["rows"]
    return {row["label"]: row for row in rows}


def _print(facts: dict[str, Any]) -> None:
    size = facts["checkpoint_bytes"]
    table = Table(*COLUMNS.values(), title=f"the demo pair, {size / 1e6:.0f} MB in BF16")
    for row in facts["rows"]:
        table.add_row(*(_cell(key, row, size) for key in COLUMNS))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
