"""What each quantization of the demo pair costs: bytes, memory, perplexity, agreement and acceptance length.

Every figure comes from a `dflash-trt` command, which is kept beside it; this file only calls them and reads what they
wrote. Accuracy is that of CPU engines, which compute with the quantized numbers; bytes are those of a GPU's engine.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trtllm_dflash import __version__
from trtllm_dflash.config.quantize import KEEP_WEIGHTS

PAIR = Path(__file__).parent.parent / "demo_pair"
FORMATS = {KEEP_WEIGHTS: "BF16", "fp8": "FP8", "w4a16_nvfp4": "NVFP4, weights only", "nvfp4": "NVFP4 (W4A4)"}
COLUMNS = {
    "name": "weights",
    "kv_cache": "KV caches",
    "linears": "linears, of BF16",
    "engine_bytes": "engine, MB",
    "perplexity": "perplexity",
    "top1": "same top-1",
    "tau": "τ",
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
        """Run one; returns the most memory in bytes that it or a process of it had."""
        words = [str(word) for word in arguments]
        self.log.append("dflash-trt " + shlex.join(word.replace(f"{self.directory}/", "") for word in words))
        click.echo(self.log[-1], err=True)
        with (self.directory / "commands.log").open("a") as log:
            process = subprocess.Popen([sys.executable, "-m", "trtllm_dflash", *words], stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise click.ClickException(f"{self.log[-1]} failed, see {self.directory / 'commands.log'}")
        return usage.ru_maxrss * 1024


def measure(directory: Path, target: Path, form: str, kv_cache: bool, prompts: Path, arch: str) -> dict[str, Any]:
    """One row: quantize, build for the CPU and `arch`, evaluate against `directory`/bf16."""
    run, label = Commands(directory), "bf16" if form == KEEP_WEIGHTS else form
    label += "_fp8kv" if kv_cache else ""
    source, row = target, {"name": FORMATS[form], "kv_cache": "FP8" if kv_cache else "BF16"}
    if form != KEEP_WEIGHTS or kv_cache:
        source = directory / f"{label}_checkpoint"
        scales = ["--kv-cache-dtype", "fp8"] if kv_cache else []
        memory = run("quantize", "--target", target, "--format", form, *scales, "--output-dir", source, "--overwrite")
        row |= {"quantize_memory": memory, "linears": _share(source)}
    drafting = ["--drafter", PAIR / "drafter", "--draft-vocab", PAIR / "drafter" / "draft_vocab.json"]
    engine, gpu_engine = directory / label, directory / f"{label}_{arch}"
    common = ["build", "--target", source, *drafting, "--overwrite"]
    row["cpu_build_memory"] = run(*common, "--arch", "cpu", "--output-dir", engine)
    row["gpu_build_memory"] = run(*common, "--arch", arch, "--output-dir", gpu_engine)
    row["engine_bytes"] = (gpu_engine / "rank0.engine").stat().st_size
    result = directory / f"{label}.json"
    against = [] if label == "bf16" else ["--against", directory / "bf16"]
    run("eval", engine, *against, "--prompts", prompts, "--max-tokens", 64, "--json", result)
    return row | _evaluated(json.loads(result.read_text())) | {"commands": run.log}


def _share(checkpoint: Path) -> float | None:
    """Bytes of the quantized linears over what they took before."""
    record = json.loads((checkpoint / "dflash_quantize.json").read_text())
    before = record["original_bytes"]
    return record["linear_bytes"] / before if before else None


def _evaluated(found: dict[str, Any]) -> dict[str, Any]:
    engine, comparison = found["engine"], found.get("comparison") or {}
    return {
        "perplexity": engine["perplexity"],
        "tau": engine["acceptance"]["tau"],
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
    formats = {"engine_bytes": lambda v: f"{v / 1e6:.0f}", "top1": "{:.1%}".format, "linears": "{:.3f}".format}
    return formats.get(key, lambda v: v if isinstance(v, str) else f"{v:.2f}")(value)


@click.command()
@click.option("--target", default="demo/target", show_default=True, type=Path)
@click.option("--prompts", default=PAIR / "prompts" / "unseen.jsonl", show_default=True, type=Path)
@click.option("--arch", default="sm120", show_default=True, help="the GPU whose engines are weighed")
@click.option("--work-dir", required=True, type=Path, help="checkpoints and engines go there")
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(target: Path, prompts: Path, arch: str, work_dir: Path, json_file: Path | None) -> None:
    """Measure every format, with FP8 caches and without, print a table, and write the figures."""
    work_dir.mkdir(parents=True, exist_ok=True)
    size = (target / "model.safetensors").stat().st_size
    rows = [
        measure(work_dir, target, form, kv_cache, prompts, arch) for form, kv_cache in product(FORMATS, (False, True))
    ]
    table = Table(*COLUMNS.values(), title=f"{target}, {size / 1e6:.0f} MB in BF16; engines for {arch}")
    for row in rows:
        table.add_row(*(_cell(key, row, size) for key in COLUMNS))
    Console(width=160).print(table)
    if json_file:
        provenance = {"version": __version__, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
        facts = {"provenance": provenance, "argv": sys.argv[1:], "checkpoint_bytes": size, "rows": rows}
        json_file.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
