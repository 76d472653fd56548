"""What a gated delta net costs on the CPU beside its linears, at the sizes of a published target.

Weights are random. A layer is measured in two parts: its linears, and the rest (DFlashGatedDelta,
norm and gate). Both run in one process, in turns, so that only their ratio is a claim.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime
from rich.console import Console
from rich.table import Table

from trtllm_dflash import __version__
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.catalog.published import target_json
from trtllm_dflash.graph.builder import OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.ops import GATED_DELTA
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.registry import read_target_config

PAST = 400  # positions before the step
_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Part:
    """A part of the layer as a graph: its session's run for a width."""

    session: onnxruntime.InferenceSession
    inputs: dict[str, np.ndarray]
    in_place: tuple[str, ...] = ()

    def runner(self) -> Callable[[], object]:
        """Return a function that runs it once, with caches in place as in an engine."""
        binding = self.session.io_binding()
        held = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in self.inputs.items()
        }
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for output in self.session.get_outputs():
            name = output.name.removesuffix("_out")
            if name in self.in_place:
                binding.bind_ortvalue_output(output.name, held[name])
            else:
                binding.bind_output(output.name)
        return lambda: self.session.run_with_iobinding(binding)


def session_of(
    g: GraphBuilder, inputs: list[ir.Value], outputs: dict[str, ir.Value], threads: int
) -> onnxruntime.InferenceSession:
    """Return a session of a graph; weights are its initializers."""
    for name, value in outputs.items():
        value.name, value.type = name, ir.TensorType(_FLOAT)
    graph = ir.Graph(
        inputs,
        list(outputs.values()),
        nodes=g.nodes,
        initializers=list(g.initializers.values()),
        opset_imports={"": OPSET, OPS_DOMAIN: 1},
        name="part",
    )
    model = ir.Model(graph, ir_version=11, functions=GATED_DELTA.functions(g.nodes))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def linears(config: TargetConfig, random: np.random.Generator, threads: int) -> Any:
    """Return the layer's linears as a function of the width."""
    sizes = config.linear_attention
    assert sizes is not None
    hidden = config.hidden_size
    shapes = {
        "qkv": (sizes.conv_size, hidden),
        "z": (sizes.value_size, hidden),
        "gates": (2 * sizes.num_value_heads, hidden),
        "result": (hidden, sizes.value_size),
    }
    g, outputs = GraphBuilder(), {}
    x, inner = (
        ir.Value(name=name, shape=ir.Shape(["rows", columns]), type=ir.TensorType(_FLOAT))
        for name, columns in (("x", hidden), ("inner", sizes.value_size))
    )
    for name, shape in shapes.items():
        tensor = ir.Tensor(random.standard_normal(shape, np.float32))
        weight = g.initializer(f"{name}.weight", partial(ir.tensor, tensor))
        outputs[name] = g.Gemm(inner if name == "result" else x, weight, transB=1)
    session = session_of(g, [x, inner], outputs, threads)

    def part(width: int) -> Part:
        rows = {"x": hidden, "inner": sizes.value_size}
        return Part(
            session,
            {name: random.standard_normal((width, n), np.float32) for name, n in rows.items()},
        )

    return part


def rest(
    config: TargetConfig, block_size: int, random: np.random.Generator, threads: int
) -> Any:
    """Return all of the layer but its linears, as a function of the width."""
    sizes = config.linear_attention
    assert sizes is not None
    heads, pending = sizes.num_value_heads, block_size - 1
    window = (1, 1, sizes.conv_kernel - 1 + pending, sizes.window_columns)
    state = (1, heads, sizes.key_dim, sizes.value_dim)

    def arrays(width: int) -> dict[str, np.ndarray]:
        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32)

        known = 1 if width <= block_size else width
        lengths = {"past_len": PAST, "state_len": PAST - pending // 2, "num_known": known}
        return {
            "qkv": normal(1, width, sizes.conv_size),
            "gates": normal(1, width, 2 * heads),
            "conv_weight": normal(sizes.conv_size, 1, sizes.conv_kernel),
            "a_log": normal(heads),
            "dt_bias": normal(heads),
            "window": normal(*window),
            "state": normal(*state),
            **{name: np.array([length], np.int32) for name, length in lengths.items()},
            "z": normal(width * heads, sizes.value_dim),
        }

    g, inputs = GraphBuilder(), []
    varying = {"qkv": (1, "width"), "gates": (1, "width"), "z": (0, "rows")}
    for name, array in arrays(1).items():
        shape: list[int | str] = list(array.shape)
        if name in varying:
            axis, symbol = varying[name]
            shape[axis] = symbol
        dtype = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        inputs.append(ir.Value(name=name, shape=ir.Shape(shape), type=dtype))
    *given, z = inputs
    out, *memory = GATED_DELTA(g, *given, num_key_heads=sizes.num_key_heads, for_cpu=1)
    scale = g.initializer("norm", lambda: ir.Tensor(np.ones(sizes.value_dim, np.float32)))
    normed = g.RMSNormalization(g.Reshape(out, [-1, sizes.value_dim]), scale, axis=-1)
    gated = g.Mul(normed, g.Mul(z, g.Sigmoid(z)))
    outputs = {"out": gated, "window_out": memory[0], "state_out": memory[1]}
    session = session_of(g, inputs, outputs, threads)
    return lambda width: Part(session, arrays(width), ("window", "state"))


def compare(parts: list[Part], repeats: int) -> list[float]:
    """Return the median seconds of each part, run in turns."""
    runs = [part.runner() for part in parts]
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if turn:  # the first warms up
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


@click.command()
@click.option("--target", default="Qwen3.6-27B", show_default=True, help="a pair of `list`")
@click.option("--block-sizes", default="1,16", show_default=True, help="1: a plain engine")
@click.option("--widths", default="1,16,256", show_default=True, help="rows of a step")
@click.option("--repeats", default=15, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(
    target: str,
    block_sizes: str,
    widths: str,
    repeats: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Measure each width, print a table, and write the figures with what they were measured on."""
    pair = pair_of(target)
    if pair is None:
        raise click.UsageError(f"{target} is no target of `dflash-trt list`")
    config = read_target_config(target_json(pair.target), None, target)
    if config.linear_attention is None:
        raise click.UsageError(f"{target} has no gated delta nets")
    random = np.random.default_rng(0)
    of_linears = linears(config, random, threads)
    table = Table(
        "block size", "rows", "linears", "the rest", "ratio", title=f"a layer of {target}"
    )
    rows = []
    for block_size in map(int, block_sizes.split(",")):
        of_rest = rest(config, block_size, random, threads)
        for width in map(int, widths.split(",")):
            first, second = compare([of_linears(width), of_rest(width)], repeats)
            row = {
                "block_size": block_size,
                "rows": width,
                "linears_ms": round(first * 1e3, 2),
                "rest_ms": round(second * 1e3, 2),
                "ratio": round(second / first, 2),
            }
            rows.append(row)
            table.add_row(*map(str, row.values()))
    Console().print(table)
    if json_file:
        provenance = {
            "version": __version__,
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "argv": sys.argv[1:],
            "date": time.strftime("%Y-%m-%d"),
        }
        text = json.dumps({"provenance": provenance, "layers": rows}, indent=1) + "\n"
        json_file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
