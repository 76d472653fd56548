"""What building a published pair of its real layer sizes costs a layer, and the line to all layers.

The weights are random. The vocabulary is cut, since embedding and head are the same for any number
of layers. The drafter is cut to one layer and one tap, or whole. Builds of two sizes give the cost
of a layer, and a line to the whole target.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from quantization import anonymous_bytes, family
from synthetic import write

from trtllm_dflash import __version__
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.catalog.published import drafter_json
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.options.build import BuildConfig

_SAMPLE_SECONDS = 0.05
# What published NVFP4 and FP8 checkpoints of hybrid targets leave as it is.
_EXCLUDED = ["lm_head", "*.in_proj_a", "*.in_proj_b", "*.mlp.gate", "*.shared_expert_gate"]
_ALGOS = {"fp8": "FP8", "nvfp4": "NVFP4"}
COSTS = {
    "checkpoint_bytes": "checkpoint",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "own_memory": "peak: own memory",
    "memory": "with mapped files",
    "plan_bytes": "engine",
}


def target_config(pair: str, layers: int, vocab_size: int, form: str) -> dict[str, Any]:
    """Return the config.json of a pair's target, of the text part alone, with fewer layers."""
    published = _published(pair).target.config
    text = {**published, **published.get("text_config", {})}
    for key in ("text_config", "vision_config", "eos_token_id", "layer_types"):
        text.pop(key, None)
    text["architectures"] = [
        name.replace("ForConditionalGeneration", "ForCausalLM")
        for name in published["architectures"]
    ]
    text |= {"num_hidden_layers": layers, "vocab_size": vocab_size}
    if form in _ALGOS:
        text["quantization_config"] = {
            "quant_method": "modelopt",
            "quant_algo": _ALGOS[form],
            "ignore": _EXCLUDED,
        }
    return text


def drafter_config(pair: str, layers: int, vocab_size: int, whole: bool) -> dict[str, Any]:
    """Return the config.json of its drafter, for a target of so many layers.

    It has one layer and one tap, or, as a whole, all of them, with taps spread over the target.
    """
    config = drafter_json(_published(pair).drafter)
    taps = [layers - 2]
    if whole:
        count = len(config["target_layer_ids"])
        taps = [round(index * (layers - 2) / (count - 1)) for index in range(count)]
    else:
        config |= {
            "num_hidden_layers": 1,
            "layer_types": config.get("layer_types", ["full_attention"])[-1:],
        }
    return config | {
        "num_target_layers": layers,
        "target_layer_ids": taps,
        "vocab_size": vocab_size,
        "mask_token_id": vocab_size - 1,
    }


def all_layers(pair: str) -> int:
    """Return the number of layers of a pair's target."""
    published = _published(pair).target.config
    count: int = published.get("text_config", published)["num_hidden_layers"]
    return count


def _published(name: str) -> Any:
    pair = pair_of(name)
    if pair is None:
        raise click.BadParameter(
            f"{name} is not in the catalogue; dflash-trt list shows what is"
        )
    return pair


@contextmanager
def own_memory(peak: list[int]) -> Iterator[None]:
    """Append the most anonymous bytes that this process and its children have meanwhile."""
    done = threading.Event()
    found = [0]

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            found[0] = max(found[0], sum(map(anonymous_bytes, family(os.getpid()))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peak.append(found[0])


@dataclass(frozen=True)
class Cut:
    """What of a published pair is built."""

    pair: str
    vocab_size: int
    whole_drafter: bool


def measure(
    cut: Cut, work_dir: Path, arch: str, form: str, layers: int, plugins: bool
) -> dict[str, Any]:
    """Return what one build cost; its files are removed."""
    with tempfile.TemporaryDirectory(dir=work_dir) as place:
        root, peak = Path(place), list[int]()
        target = target_config(cut.pair, layers, cut.vocab_size, form)
        drafter = drafter_config(cut.pair, layers, cut.vocab_size, cut.whole_drafter)
        size = write(root / "target", target, read_target_config(target, None, "target"))
        size += write(root / "drafter", drafter, DrafterConfig.from_hf(drafter, "drafter"))
        config = BuildConfig(
            target=str(root / "target"),
            drafter=str(root / "drafter"),
            arch=arch,
            output_dir=root / "engine",
            plugins=plugins,
            max_batch_size=4,
            max_seq_len=4096,
        )
        begun = _children_seconds()
        with own_memory(peak):
            report = build_engine(config)
        return {
            "arch": arch,
            "format": form,
            "kernels": plugins,
            "layers": layers,
            "checkpoint_bytes": size,
            "seconds": round(report.seconds, 1),
            "cpu_seconds": round(_children_seconds() - begun, 1),
            "own_memory": peak[0],
            "memory": report.peak_memory,
            "plan_bytes": (report.directory / ENGINE_FILE).stat().st_size,
        }


def _children_seconds() -> float:
    """Return the processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def with_lines(rows: Sequence[dict[str, Any]], whole: int) -> list[dict[str, Any]]:
    """Return the rows, and behind those of one arch and format a layer's cost and the whole target.

    These two follow from the line through builds of different sizes, where there are such.
    """
    result: list[dict[str, Any]] = []
    for key in dict.fromkeys(_key(row)[:-1] for row in rows):
        group = sorted(
            (row for row in rows if _key(row)[:-1] == key), key=lambda row: int(row["layers"])
        )
        result += group
        if len(group) < 2:
            continue
        line = {name: np.polynomial.Polynomial.fit(*_points(group, name), 1) for name in COSTS}
        slopes = {name: float(line[name].deriv()(0)) for name in COSTS}
        total = {name: float(line[name](whole)) for name in COSTS}
        result.append(group[0] | slopes | {"layers": "a layer"})
        result.append(group[0] | total | {"layers": f"{whole}, by the line"})
    return result


def _points(group: Sequence[dict[str, Any]], cost: str) -> tuple[list[int], list[float]]:
    return [row["layers"] for row in group], [row[cost] for row in group]


def markdown(rows: Sequence[dict[str, Any]], whole: int) -> str:
    """Return the figures and their lines as a Markdown table."""
    lines = [["arch", "weights", "kernels", "target layers", *COSTS.values()]]
    lines += [["---"] * len(lines[0]), *map(cells, with_lines(rows, whole))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    costs = [
        f"{row[cost]:.1f}" if cost.endswith("seconds") else f"{row[cost] / 1e9:.2f} GB"
        for cost in COSTS
    ]
    kernels = "ours" if row["kernels"] else "the compiler's"
    return [row["arch"], row["format"], kernels, str(row["layers"]), *costs]


@click.command()
@click.option("--pair", default="Qwen3.5-27B", show_default=True, help="as `list` names it")
@click.option("--archs", default="sm121,sm120", show_default=True)
@click.option("--formats", default="nvfp4,bf16", show_default=True, help="bf16, fp8, nvfp4")
@click.option("--layers", default="4,8", show_default=True, help="of the target")
@click.option("--vocab-size", default=16384, show_default=True)
@click.option("--whole-drafter", is_flag=True, help="all layers and taps of it")
@click.option("--plugins/--no-plugins", default=True, show_default=True)
@click.option("--work-dir", type=Path, help="for checkpoints and engines, removed afterwards")
@click.option("--json", "json_file", type=Path, help="write the figures here, with those there")
def main(
    pair: str,
    archs: str,
    formats: str,
    layers: str,
    vocab_size: int,
    whole_drafter: bool,
    plugins: bool,
    work_dir: Path | None,
    json_file: Path | None,
) -> None:
    """Build each size once, one after the other, print a table, and write the figures."""
    place = work_dir or Path(tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    cut, rows = Cut(pair, vocab_size, whole_drafter), _earlier(json_file)
    for arch, form, count in product(archs.split(","), formats.split(","), layers.split(",")):
        row = measure(cut, place, arch, form, int(count), plugins)
        rows = [other for other in rows if _key(other) != _key(row)] + [row]
        click.echo(" | ".join(cells(row)), err=True)
        if json_file:
            facts = {"provenance": _provenance(cut), "builds": rows}
            json_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    click.echo(markdown(rows, all_layers(pair)))


def _earlier(json_file: Path | None) -> list[dict[str, Any]]:
    if json_file is None or not json_file.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(json_file.read_text(encoding="utf-8"))["builds"]
    return rows


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("arch", "format", "kernels", "layers"))


def _provenance(cut: Cut) -> dict[str, Any]:
    return {
        **vars(cut),
        "version": __version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
