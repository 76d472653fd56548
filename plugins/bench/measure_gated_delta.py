"""The benchmark's table of linear attention: ours, and PyTorch row after row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gated_delta import DELTA_HEADS, DeltaWork, check_delta, delta_by_rows
from kernels import Kernels, Tensors
from timing import seconds, set_count

HEAD = (
    "| linear attention | rows | open rows | batch | MB moved | µs | % of copy bandwidth | PyTorch"
    " row by row, µs | ratio |"
)
_MOST_TORCH_ROWS = 64  # PyTorch takes a dozen launches a row


def works() -> Iterator[DeltaWork]:
    """Yield blocks of 16 whose drafts were all accepted, or none, and a piece of a prompt."""
    for heads in DELTA_HEADS:
        for batch in (1, 8, 32):
            for open_rows in (0, 15):
                yield DeltaWork(heads, rows=16, known=1, open_rows=open_rows, batch=batch)
        yield DeltaWork(heads, rows=512, known=512, open_rows=0, batch=1)


def delta_launcher(kernels: Kernels, work: DeltaWork, t: Tensors) -> Callable[[Tensors], None]:
    """Return a launcher of our kernels for tensors such as `t`."""
    workspace = kernels.gated_delta_workspace(t, work.heads.key_heads)
    return lambda given: kernels.gated_delta(given, workspace, key_heads=work.heads.key_heads)


def measure_delta(kernels: Kernels, work: DeltaWork, bandwidth: float) -> dict[str, Any]:
    """Return one row of the table."""
    sets = [work.tensors("cuda", seed) for seed in range(set_count(work.bytes))]
    ours = delta_launcher(kernels, work, sets[0])
    wanted = delta_by_rows(work, sets[0], torch.float64)
    ours(sets[0])
    check_delta(work, wanted, sets[0])
    time, torch_time = seconds(ours, sets), None
    if work.rows <= _MOST_TORCH_ROWS:
        torch_time = seconds(lambda t: delta_by_rows(work, t, torch.float32), sets)
    return {
        "heads": work.heads.name,
        "rows": work.rows,
        "open_rows": work.open_rows,
        "batch": work.batch,
        "megabytes": work.bytes / 1e6,
        "microseconds": time * 1e6,
        "share_of_copy_bandwidth": work.bytes / time / bandwidth,
        "torch_microseconds": torch_time and torch_time * 1e6,
        "ratio_to_torch": torch_time and torch_time / time,
    }


def delta_line(row: dict[str, Any]) -> str:
    """Return a row of the table as text."""
    torch_time, ratio = row["torch_microseconds"], row["ratio_to_torch"]
    compared = f"{torch_time:.1f} | {ratio:.2f}" if torch_time else "- | -"
    return (
        f"| {row['heads']} | {row['rows']} | {row['open_rows']} | {row['batch']} |"
        f" {row['megabytes']:.1f} | {row['microseconds']:.1f} |"
        f" {100 * row['share_of_copy_bandwidth']:.0f} | {compared} |"
    )


def run_gated_delta(
    kernels: Kernels, bandwidth: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Print the table of linear attention line by line; return its rows."""
    found = []
    say(f"\n{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}")
    for work in works():
        found.append(measure_delta(kernels, work, bandwidth))
        say(delta_line(found[-1]))
        torch.cuda.empty_cache()
    return found
