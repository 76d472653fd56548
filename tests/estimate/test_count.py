"""What is counted, against ONNX Runtime's sizes, numbers made by hand, and parameters that the
models' makers state.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.errors import GraphError
from trtllm_dflash.estimate.count import Work, count
from trtllm_dflash.estimate.eagle import Eagle
from trtllm_dflash.estimate.experts import Experts
from trtllm_dflash.estimate.known import DRAFTERS, TARGETS, find_drafter, find_target
from trtllm_dflash.estimate.pair import Pair
from trtllm_dflash.estimate.precision import NUMBERS, Precision
from trtllm_dflash.estimate.sizes import Sizes
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops.moe import MOE
from trtllm_dflash.graph.step import build_step

BATCH, WIDTH, ROWS, CONTEXT, BLOCK = 2, 5, 3, 7, 4


def pair_of(drafter: str, precision: Precision | None = None) -> Pair:
    found = find_drafter(drafter)
    target = find_target(found.target)
    return Pair(target, found, precision or Precision(experts=target.expert_number))


def parameters(works: tuple[Work, ...], part: str, kinds: tuple[str, ...]) -> float:
    """Weights, of all experts."""
    rows = [work for work in works if work.part == part and work.kind in kinds]
    return sum(
        w.weight_bytes * 8 / w.number.bits * (w.experts.count if w.experts else 1) for w in rows
    )


def test_sizes_are_those_of_a_run(tmp_path: Path) -> None:
    """Every Gemm and norm in ONNX Runtime gives the size that is computed without a run."""
    onnxruntime = pytest.importorskip("onnxruntime")
    target = load_target(tiny_target(tmp_path / "target", "qwen3"))
    drafter = load_drafter(tiny_drafter(tmp_path / "drafter", tmp_path / "target"))
    model = build_step(target, drafter, dtype="float32", cache_len=16, block_size=BLOCK)
    sizes = Sizes(model, {"batch": BATCH, "width": WIDTH, "rows": ROWS, "context": CONTEXT})
    watched = [
        n.outputs[0]
        for n in model.graph
        if n.op_type in ("Gemm", "RMSNormalization", "GatherND", "ArgMax")
    ]
    for value in watched:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    argmax = next(value for value in watched if value.producer().op_type == "ArgMax")
    argmax.type = ir.TensorType(ir.DataType.INT64)
    known = {value.name: tuple(sizes[value]) for value in watched}
    model.graph.outputs.extend(value for value in watched if value not in model.graph.outputs)
    feeds = {
        value.name: np.zeros(sizes[value], value.dtype.numpy()) for value in model.graph.inputs
    }
    feeds |= {"num_known": np.ones(BATCH, np.int32), "top_p": np.ones(BATCH, np.float32)}
    feeds["kv_positions"], feeds["decided"] = np.arange(CONTEXT), np.arange(ROWS)
    for value in model.graph.initializers.values():  # their bytes, not their place on disk
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = dict(zip(known, session.run(list(known), feeds), strict=True))
    assert {name: array.shape for name, array in found.items()} == known
    assert len(set(known.values())) > 8


def test_an_operator_without_a_rule_is_named() -> None:
    g = GraphBuilder()
    x = ir.Value(name="x", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    y = g.Erf(x)
    model = ir.Model(ir.Graph([x], [y], nodes=g.nodes), ir_version=11)
    with pytest.raises(
        GraphError, match="/Erf: the estimate cannot tell what sizes the operator Erf gives"
    ):
        Sizes(model, {})


def test_qwen3_8b_by_hand() -> None:
    """36 layers of 4096, 32 and 8 heads of 128, an MLP of 12288; BF16."""
    pair = pair_of("Qwen3-8B-DFlash-b16")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288
    head = 151936 * 4096
    plain = pair.plain()
    assert sum(work.weight_bytes for work in plain) == 2 * (36 * layer + head) == 15_136_194_560
    moved = [
        4096 + 4096 + 2 * 1024,
        4096 + 4096,
        4096 + 2 * 12288,
        12288 + 4096,
    ]  # q, k and v read one input
    assert sum(work.row_bytes for work in plain if work.kind == "linear") == 36 * 2 * sum(moved)
    assert sum(work.position_bytes for work in plain) == 36 * 2 * 8 * 128 * 2 == 144 * 1024
    assert sum(work.rows * work.row_flops for work in plain) == 2 * (36 * layer + head)
    assert sum(work.position_flops for work in plain) == 36 * 4 * 32 * 128

    step = pair.dflash(16, 15)
    drafter = [work for work in step if work.part == "drafter" and work.kind == "linear"]
    fc = 5 * 4096 * 4096
    assert sum(work.weight_bytes for work in drafter) == 2 * (5 * layer + fc) == 2_097_152_000
    assert sum(w.position_bytes for w in step if w.part == "drafter") == 20 * 1024
    # Keys and values of 16 context rows and 16 of the block, the rest of a layer of the block only.
    wide = 2 * 4096 * 1024
    assert sum(w.rows * w.row_flops for w in drafter) == 2 * 16 * (
        fc + 5 * (layer - wide) + 2 * 5 * wide
    )
    heads = [(work.part, work.rows, work.weight_bytes) for work in step if work.kind == "head"]
    assert heads == [("target", 16, 2 * head), ("drafter", 15, 2 * head)]
    assert sum(w.rows * w.row_flops for w in step if w.part == "target") == 16 * 2 * (
        36 * layer + head
    )


def test_kernels_are_fused_ones() -> None:
    """Of a layer: norm, q k v, rotate, attend, add up, o, norm, gate and up, product, down."""
    plain = pair_of("Qwen3-8B-DFlash-b16").plain()
    assert sum(work.kernels for work in plain) == 36 * 10 + len(
        ["embed", "rows", "norm", "head", "accept"]
    )


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        # As the makers state them, in 10^9; biases and norms, which are not counted, are below the
        # tolerance.
        ("Qwen/Qwen3-8B", 8.19),
        ("Qwen/Qwen3-4B", 4.02),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 30.5),
        ("openai/gpt-oss-20b", 20.9),
        ("openai/gpt-oss-120b", 116.8),
    ],
)
def test_parameters_are_those_of_the_model(name: str, stated: float) -> None:
    target = TARGETS[name]
    drafter = next(row for row in DRAFTERS.values() if row.target == name)
    works = Pair(target, drafter, Precision(experts=target.expert_number)).plain()
    total = parameters(works, "target", ("linear", "experts", "head"))
    config = target.config
    total += 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert total / 1e9 == pytest.approx(stated, rel=0.004)


def test_active_parameters_of_gpt_oss() -> None:
    """5.1 · 10^9 for a token, as OpenAI states: its 4 experts, all else, and no embedding."""
    works = pair_of("gpt-oss-120b-DFlash").plain()
    active = sum(w.rows * w.row_flops * (w.experts.top_k if w.experts else 1) for w in works) / 2
    assert active / 1e9 == pytest.approx(5.1, rel=0.01)


def test_windows_of_gpt_oss() -> None:
    windows = [
        w.window for w in pair_of("gpt-oss-120b-DFlash").dflash(10, 9) if w.kind == "attention"
    ]
    assert windows == [128, 0] * 18 + [0] * 8


def test_quantized_linears_and_the_rest() -> None:
    """NVFP4 takes 4.5 bits; heads stay BF16, and so does fc."""
    exact = pair_of("Qwen3-8B-DFlash-b16").dflash(16, 15)
    small = pair_of("Qwen3-8B-DFlash-b16", Precision(linears="nvfp4", drafter="nvfp4")).dflash(
        16, 15
    )
    ratios = {
        (b.kind, b.rows == 16 and b.weight_bytes == a.weight_bytes): b.weight_bytes / a.weight_bytes
        for a, b in zip(exact, small, strict=True)
        if a.weight_bytes
    }
    assert ratios == {
        ("linear", False): 4.5 / 16,
        ("linear", True): 1.0,
        ("head", True): 1.0,
        ("head", False): 1.0,
    }


def test_a_node_of_experts() -> None:
    """The operator itself counts as the expert that stands in for it in a graph that does not have
    it.
    """
    g = GraphBuilder()

    def value(name: str, *shape: int) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.BFLOAT16))

    x, logits = value("x", 5, 12), value("logits", 5, 7)
    weights = [
        value("gate_up", 7, 18, 12),
        value("gate_up_bias", 7, 18),
        value("down", 7, 12, 9),
        value("b", 7, 12),
    ]
    with g.scope("target"):
        out = MOE(g, x, logits, *weights, top_k=3)
    model = ir.Model(ir.Graph([x, logits, *weights], out, nodes=g.nodes), ir_version=11)
    (work,) = count(model, width=5, rows=5, precision=Precision(experts="mxfp4"))
    assert (work.part, work.kind, work.rows, work.experts) == (
        "target",
        "experts",
        5,
        Experts(7, 3),
    )
    assert work.weight_bytes == 3 * 12 * 9 * 4.25 / 8
    assert work.row_flops == 2 * 3 * 12 * 9


def test_eagle_by_hand() -> None:
    """One layer on Qwen3-8B: 3 · 4096 to 4096, a layer with inputs of 8192, a head over 32000; run
    7 times.
    """
    works = Eagle(60, 7, 10).works(find_target("Qwen3-8B"), NUMBERS["bf16"])
    layer = 8192 * (4096 + 2048) + 4096 * 4096 + 3 * 4096 * 12288
    expected = 3 * 4096 * 4096 + 7 * (layer + 4096 * 32000)
    assert sum(work.weight_bytes for work in works) == 2 * expected
    assert {work.rows for work in works if work.kind == "head"} == {1, 10}


def test_counting_a_large_model_needs_little_memory() -> None:
    pair = pair_of("gpt-oss-120b-DFlash", Precision(experts="mxfp4", cache="fp8"))
    tracemalloc.start()
    pair.dflash(9, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
