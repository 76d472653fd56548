"""Speed of the kernels on a GPU: attention, experts and gated delta against PyTorch, and accept.

    python plugins/bench/bench.py --json plugins/bench/h200.json

Needs a GPU, torch, nvcc and CMake. Each size is checked against float64 before it is timed. Times
are those of replayed CUDA graphs, over input sets of four times the L2 cache together. In one run,
both systems write the block's keys and values and attend, on the same tensors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from kernels import Kernels, Tensors, build
from measure_experts import run_experts
from measure_gated_delta import run_gated_delta
from timing import copy_bandwidth, seconds, set_count
from workload import SHAPES, Work, check, torch_candidates, write_caches

from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

VOCAB = 151_936
MEMORY_SHARE = 0.6  # of the free memory, for the sets of one size; the rest is PyTorch's
SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "top_k 50, top_p 0.9": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def best_of_torch(work: Work, sets: list[Tensors]) -> tuple[str, float]:
    """Return the name of PyTorch's fastest way and its time in seconds.

    Every way is tried on the first set; the three fastest are then timed in full.
    """

    def step(attend: Callable[[Tensors], torch.Tensor]) -> Callable[[Tensors], None]:
        def launch(t: Tensors) -> None:
            write_caches(work, t)
            attend(t)

        return launch

    quick = {}
    for name, attend in torch_candidates(work, "cuda"):
        try:
            quick[name] = (seconds(step(attend), sets[:1], launches=1, replays=3), step(attend))
        except (RuntimeError, ValueError):  # this backend does not do it, or not in this memory
            torch.cuda.empty_cache()
    if not quick:
        raise SystemExit(f"no way of scaled_dot_product_attention works for {work}")
    fastest = sorted(quick, key=lambda name: quick[name][0])[:3]
    times = {name: seconds(quick[name][1], sets) for name in fastest}
    best = min(times, key=lambda name: times[name])
    return best, times[best]


def measure_attention(kernels: Kernels, work: Work, bandwidth: float) -> dict[str, Any] | None:
    """Return one row of the attention table, None where the size does not fit the memory."""
    free, _ = torch.cuda.mem_get_info()
    if work.set_bytes > MEMORY_SHARE * free:
        return None
    count = min(set_count(work.set_bytes), int(MEMORY_SHARE * free / work.set_bytes))
    sets = [work.tensors("cuda", seed) for seed in range(count)]
    workspace = kernels.attention_workspace(sets[0], work.shape.window)

    def ours(t: Tensors) -> None:
        kernels.verify_attention(t, workspace, scale=work.shape.scale, window=work.shape.window)

    for t in (sets[0], sets[-1]):
        ours(t)
        for slot in {0, work.batch - 1}:
            check(work, t, slot)
    time = seconds(ours, sets)
    way, torch_time = best_of_torch(work, sets)
    return {
        "shape": work.shape.name,
        "block": work.rows,
        "batch": work.batch,
        "context": work.context,
        "microseconds": time * 1e6,
        "share_of_copy_bandwidth": work.bytes / time / bandwidth,
        "torch_microseconds": torch_time * 1e6,
        "torch_way": way,
        "ratio_to_torch": torch_time / time,
    }


def accept_tensors(rows: int, sampling: Mapping[str, float], seed: int, device: str) -> Tensors:
    """Make inputs of accept at batch 1, whose drafts are the argmax: greedy accepts them all."""
    generator = torch.Generator(device=device).manual_seed(seed)
    logits = 4 * torch.randn((1, rows, VOCAB), device=device, generator=generator)
    drafts = logits.argmax(-1)[:, : rows - 1]

    def one(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((1,), value, dtype=dtype, device=device)

    rows_sampling = {
        row.name: one(sampling.get(row.name, row.default), getattr(torch, row.dtype))
        for row in SAMPLING_INPUTS
    }

    return {
        "logits": logits,
        "input_ids": torch.cat([drafts[:, :1], drafts], 1).contiguous(),
        "num_known": one(1, torch.int32),
        "past_len": one(100, torch.int32),
        **rows_sampling,
        "uniforms": torch.rand((1, 4096), device=device, generator=generator),
        "new_ids": torch.full((1, rows), -7, dtype=torch.int64, device=device),
        "num_new": one(-7, torch.int32),
        "next_len": one(-7, torch.int32),
        "bonus": torch.full((1, 1), -7, dtype=torch.int64, device=device),
    }


def check_accept(t: Tensors, *, greedy: bool) -> None:
    """Raise SystemExit unless the result of accept is plausible.

    Greedy sampling accepts every draft. A sampled token is in the vocabulary, and the counts agree.
    """
    rows = t["logits"].shape[1]
    new, count = t["new_ids"][0].tolist(), int(t["num_new"])
    holds = (
        1 <= count <= rows
        and all(0 <= token < VOCAB for token in new[:count])
        and new[count:] == [-1] * (rows - count)
    )
    holds = holds and int(t["next_len"]) == 100 + count and int(t["bonus"]) == new[count - 1]
    if greedy:
        holds = holds and new == t["logits"][0].argmax(-1).tolist()
    if not holds:
        raise SystemExit(f"WRONG RESULT: accept of {rows} rows gives {new}, {count} new")


def measure_accept(kernels: Kernels, rows: int, sampling: str) -> dict[str, Any]:
    """Return one row of the accept table, at batch 1."""
    count = set_count(4 * rows * VOCAB)
    sets = [accept_tensors(rows, SAMPLING[sampling], seed, "cuda") for seed in range(count)]
    workspace = kernels.accept_workspace(sets[0]["logits"])
    kernels.accept(sets[0], workspace)
    check_accept(sets[0], greedy=sampling == "greedy")
    time = seconds(lambda t: kernels.accept(t, workspace), sets)
    return {
        "block": rows,
        "sampling": sampling,
        "vocab": VOCAB,
        "batch": 1,
        "microseconds": time * 1e6,
    }


def provenance(bandwidth: float) -> dict[str, Any]:
    """Return where, when and with what the figures were measured."""

    def output(*command: str) -> str:
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True, encoding="utf-8"
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name(0),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "copy_bandwidth_tb_s": bandwidth / 1e12,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--library", type=Path, help="libdflash_kernels.so; without it, CMake builds one"
    )
    parser.add_argument("--json", type=Path, help="write all numbers and their provenance here")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 10, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[s.name for s in SHAPES],
        choices=[s.name for s in SHAPES],
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "bench.py needs a CUDA GPU, and torch sees none (torch.cuda.is_available() is False)"
        )
    with tempfile.TemporaryDirectory() as folder:
        kernels = Kernels(arguments.library or build(Path(folder)))
        bandwidth = copy_bandwidth()
        found = {"provenance": provenance(bandwidth), "attention": [], "accept": []}
        say(
            f"{torch.cuda.get_device_name(0)}: a copy moves {bandwidth / 1e12:.2f} TB/s (read and"
            " written)\n"
        )
        run_attention(kernels, arguments, bandwidth, found["attention"])
        run_accept(kernels, arguments, found["accept"])
        found["experts"] = run_experts(kernels, bandwidth, say)
        found["gated_delta"] = run_gated_delta(kernels, bandwidth, say)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run_attention(
    kernels: Kernels, chosen: argparse.Namespace, bandwidth: float, found: list[dict[str, Any]]
) -> None:
    """Print the table of attention line by line, and append its rows to `found`."""
    say(
        "| shape | block | batch | context | µs | % of copy bandwidth | PyTorch's best, µs | ratio"
        " | which |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for shape in (s for s in SHAPES if s.name in chosen.shapes):
        for context in chosen.contexts:
            for batch in chosen.batches:
                for block in chosen.blocks:
                    row = measure_attention(
                        kernels, Work(shape, block, batch, context), bandwidth
                    )
                    torch.cuda.empty_cache()
                    start = f"| {shape.name} | {block} | {batch} | {context} |"
                    if row is None:
                        say(f"{start} does not fit the memory | | | | |")
                        continue
                    found.append(row)
                    say(
                        f"{start} {row['microseconds']:.1f} |"
                        f" {100 * row['share_of_copy_bandwidth']:.0f} |"
                        f" {row['torch_microseconds']:.1f} | {row['ratio_to_torch']:.2f} |"
                        f" {row['torch_way']} |"
                    )


def run_accept(
    kernels: Kernels, chosen: argparse.Namespace, found: list[dict[str, Any]]
) -> None:
    """Print the table of accept line by line, and append its rows to `found`."""
    say(f"\n| accept, batch 1, vocabulary {VOCAB}: block | sampling | µs |\n|---|---|---|")
    for block in chosen.blocks:
        for sampling in SAMPLING:
            found.append(measure_accept(kernels, block, sampling))
            say(f"| {block} | {sampling} | {found[-1]['microseconds']:.1f} |")


if __name__ == "__main__":
    main()
