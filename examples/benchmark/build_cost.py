"""What building the demo pair for a GPU costs, and how it grows with the target's layers.

Shorter targets are the demo target cut after its first layers. The drafter's taps, and with them
the columns of fc, are cut to fit. Such a pair generates nothing useful, but building it costs the
same.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.numpy import save_file

from trtllm_dflash import __version__
from trtllm_dflash.builder.build_engine import BuildReport, build_engine
from trtllm_dflash.options.build import BuildConfig

PAIR = Path(__file__).parent.parent / "demo_pair"
MIB = 2**20


def read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a checkpoint's config and tensors."""
    with safe_open(directory / "model.safetensors", "numpy") as file:
        names = list(file.keys())
        return json.loads((directory / "config.json").read_text(encoding="utf-8")), {
            name: file.get_tensor(name) for name in names
        }


def write(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write a checkpoint: the inverse of `read`."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors")
    return directory


def cut_target(source: Path, directory: Path, layers: int) -> Path:
    """Write the first `layers` layers of a target."""
    config, tensors = read(source)
    beyond = tuple(
        f"model.layers.{index}." for index in range(layers, config["num_hidden_layers"])
    )
    kept = (
        {name: tensor for name, tensor in tensors.items() if not name.startswith(beyond)}
        if beyond
        else tensors
    )
    return write(directory, config | {"num_hidden_layers": layers}, kept)


def cut_drafter(source: Path, directory: Path, layers: int) -> Path:
    """Write the drafter with as many taps as fit a target of `layers` layers."""
    config, tensors = read(source)
    hidden, taps = config["hidden_size"], config["dflash_config"]["target_layer_ids"]
    fitting = [tap for tap in taps if tap < layers - 1] or [0]
    tensors["fc.weight"] = np.ascontiguousarray(
        tensors["fc.weight"][:, : hidden * len(fitting)]
    )
    config["dflash_config"] |= {"target_layer_ids": fitting}
    return write(directory, config | {"num_target_layers": layers}, tensors)


def build(target: Path, arch: str, layers: int) -> BuildReport:
    """Build the cut pair, in a place that is then removed."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        return build_engine(
            BuildConfig(
                target=str(cut_target(target, root / "target", layers)),
                drafter=str(cut_drafter(PAIR / "drafter", root / "drafter", layers)),
                arch=arch,
                output_dir=root / "engine",
                max_batch_size=4,
            )
        )


@click.command()
@click.option("--target", default="demo/target", show_default=True, type=Path)
@click.option("--arch", default="sm120", show_default=True)
@click.option("--layers", default="2,8,16,30", show_default=True, help="layers of the target")
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(target: Path, arch: str, layers: str, json_file: Path | None) -> None:
    """Build each size once, print a table, and write the figures with what they were measured
    on.
    """
    reports = {int(count): build(target, arch, int(count)) for count in layers.split(",")}
    table = Table(
        "target layers",
        "seconds",
        "peak memory",
        "engine directory",
        title=f"building for {arch}",
    )
    rows = []
    for count, report in reports.items():
        rows.append(
            {
                "layers": count,
                "seconds": round(report.seconds, 2),
                "peak_mib": round(report.peak_memory / MIB),
                "directory_mib": round(report.bytes / MIB),
            }
        )
        table.add_row(*(f"{value}" for value in rows[-1].values()))
    Console().print(table)
    if json_file:
        provenance = {
            "version": __version__,
            "python": platform.python_version(),
            "argv": sys.argv[1:],
            "date": time.strftime("%Y-%m-%d"),
        }
        json_file.write_text(
            json.dumps({"provenance": provenance, "builds": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
