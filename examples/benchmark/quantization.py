"""What each quantization of the demo pair costs: bytes, memory, perplexity, agreement and
acceptance length.

Every figure comes from a `dflash-trt` command, which is kept beside it; this file only calls them
and reads what they wrote. Accuracy is that of CPU engines, which compute with the quantized
numbers; bytes are those of a GPU's engine.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trtllm_dflash import __version__
from trtllm_dflash.options.quantize import KEEP_WEIGHTS

_SAMPLE_SECONDS = 0.02
PAIR = Path(__file__).parent.parent / "demo_pair"
FORMATS = {
    KEEP_WEIGHTS: "BF16",
    "fp8": "FP8",
    "w4a16_nvfp4": "NVFP4, weights only",
    "nvfp4": "NVFP4 (W4A4)",
}
COLUMNS = {
    "name": "weights",
    "kv_cache": "KV caches",
    "linears": "linears, of BF16",
    "engine_bytes": "engine, MB",
    "perplexity": "perplexity",
    "top1": "same top-1",
    "acceptance_length": "τ",
    "quantize_memory": "quantizing: memory",
    "cpu_build_memory": "CPU build",
    "gpu_build_memory": "GPU build",
}


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
        words = [str(word) for word in arguments]
        self.log.append("dflash-trt " + shlex.join(self._shortened(word) for word in words))
        click.echo(self.log[-1], err=True)
        peak = 0
        with (self.directory / "commands.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "trtllm_dflash", *words], stdout=log, stderr=log
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
    """Return the anonymous memory of a process; 0 once it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def measure(
    directory: Path, target: Path, form: str, kv_cache: bool, prompts: Path, arch: str
) -> dict[str, Any]:
    """Return one row: quantize, build for the CPU and `arch`, evaluate against `directory`/bf16."""
    run, label = Commands(directory), "bf16" if form == KEEP_WEIGHTS else form
    label += "_fp8kv" if kv_cache else ""
    source, row = target, {"name": FORMATS[form], "kv_cache": "FP8" if kv_cache else "BF16"}
    if form != KEEP_WEIGHTS or kv_cache:
        source = directory / f"{label}_checkpoint"
        scales = ["--kv-cache-dtype", "fp8"] if kv_cache else []
        memory = run(
            "quantize",
            "--target",
            target,
            "--quant",
            form,
            *scales,
            "--output-dir",
            source,
            "--overwrite",
        )
        row |= {"quantize_memory": memory, "linears": _share(source)}
    drafting = [
        "--drafter",
        PAIR / "drafter",
        "--draft-vocab",
        PAIR / "drafter" / "draft_vocab.json",
    ]
    engine, gpu_engine = directory / label, directory / f"{label}_{arch}"
    common = ["build", "--target", source, *drafting, "--overwrite"]
    row["cpu_build_memory"] = run(*common, "--arch", "cpu", "--output-dir", engine)
    row["gpu_build_memory"] = run(*common, "--arch", arch, "--output-dir", gpu_engine)
    row["engine_bytes"] = (gpu_engine / "rank0.engine").stat().st_size
    result = directory / f"{label}.json"
    against = [] if label == "bf16" else ["--against", directory / "bf16"]
    run("eval", engine, *against, "--prompts", prompts, "--max-tokens", 64, "--json", result)
    return (
        row | _evaluated(json.loads(result.read_text(encoding="utf-8"))) | {"commands": run.log}
    )


def _share(checkpoint: Path) -> float | None:
    """Bytes of the quantized linears over what they took before."""
    record = json.loads((checkpoint / "dflash_quantize.json").read_text(encoding="utf-8"))
    before = record["original_bytes"]
    return record["linear_bytes"] / before if before else None


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
    formats = {
        "engine_bytes": lambda v: f"{v / 1e6:.0f}",
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
@click.option(
    "--arch", default="sm120", show_default=True, help="the GPU whose engines are weighed"
)
@click.option("--work-dir", required=True, type=Path, help="checkpoints and engines go there")
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(
    target: Path, prompts: Path, arch: str, work_dir: Path, json_file: Path | None
) -> None:
    """Measure every format, with FP8 caches and without, print a table, and write the figures."""
    work_dir.mkdir(parents=True, exist_ok=True)
    size = (target / "model.safetensors").stat().st_size
    rows = [
        measure(work_dir, target, form, kv_cache, prompts, arch)
        for form, kv_cache in product(FORMATS, (False, True))
    ]
    table = Table(
        *COLUMNS.values(), title=f"{target}, {size / 1e6:.0f} MB in BF16; engines for {arch}"
    )
    for row in rows:
        table.add_row(*(_cell(key, row, size) for key in COLUMNS))
    Console(width=160).print(table)
    if json_file:
        provenance = {
            "version": __version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        }
        facts = {"provenance": provenance, "arch": arch, "checkpoint_bytes": size, "rows": rows}
        json_file.write_text(
            json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
