"""What is computed from configurations: against graphs, by hand, and against stated parameters."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from docs.estimate.prediction import stored_pair
from tests.estimate.graph_costs import GraphCounter, counted_nodes
from tests.fixtures.tiny_hybrid import HYBRIDS, tiny_hybrid
from tests.fixtures.tiny_models import DENSE_FAMILIES, tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from trtllm_dflash.builder.config_models import find_drafter, find_target
from trtllm_dflash.checkpoint.formats import FORMATS, MXFP4
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.engine_dir.io_tensors import step_io
from trtllm_dflash.estimate.eagle3 import Eagle3Tree
from trtllm_dflash.estimate.pair import ModelPair
from trtllm_dflash.estimate.workload import (
    STATE_BYTES,
    KernelCost,
    ModelCosts,
)
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.models.dflash2 import DraftConvConfig, SelectorConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.models.moe import MoEConfig

CONTEXT, BLOCK = 7, 4
READ_INPUTS = {  # by operator: how many leading inputs have shapes that are counted
    "Gemm": 1,
    "DFlashArgmax": 1,
    "DFlashAccept": 1,
    "DFlashVerifyAttention": 2,
    "DFlashDraftAttention": 2,
    "DFlashMoE": 2,
    "DFlashGatedDelta": 2,
}
TINY: dict[str, Callable[[Path], Path]] = {
    **{name: partial(tiny_target, model_type=name) for name in DENSE_FAMILIES},
    "qwen3_tied": partial(tiny_target, model_type="qwen3", tied=True),
    "gpt_oss": partial(tiny_gpt_oss, mxfp4=False),
    "qwen3_moe": tiny_qwen3_moe,
    **{name: partial(tiny_hybrid, name=name) for name in HYBRIDS if "vl" not in name},
}


def quantized_pair(drafter: str, name: str) -> ModelPair:
    """Return a published pair with every linear of target and drafter in one format."""
    pair = stored_pair(drafter)
    models = []
    for part, model in (("target", pair.target), ("drafter", pair.drafter)):
        linears = [
            cost.module
            for cost in pair.whole_step()
            if cost.part == part and cost.operation == "linear" and cost.module != "fc"
        ]
        models.append(replace(model, formats=dict.fromkeys(linears, FORMATS[name])))
    return ModelPair(*models)


def parameters(costs: tuple[KernelCost, ...], operations: tuple[str, ...]) -> float:
    """Return the number of the target's weights, of all experts."""
    total = 0.0
    for cost in costs:
        if cost.part == "target" and cost.operation in operations:
            bits = 16 if cost.format is None else cost.format.weight_bits()
            total += cost.weight_bytes * 8 / bits * cost.num_experts
    return total


def run_shapes(
    model: ir.Model, *, width: int, rows: int, block: int = 0
) -> dict[str, tuple[int, ...]]:
    """Run a graph in ONNX Runtime with one sequence; return the shapes around its kernels."""
    onnxruntime = pytest.importorskip("onnxruntime")
    sizes = {"batch": 1, "width": width, "rows": rows, "context": CONTEXT, "block": block}
    watched = {}
    for node in counted_nodes(model):
        for value in (*node.inputs[: READ_INPUTS.get(node.op_type, 0)], node.outputs[0]):
            if value is not None and value.producer() is not None:
                watched[value.name] = value
    for value in watched.values():
        gives_tokens = value.producer().op_type in ("DFlashArgmax", "DFlashLookup")
        dtype = ir.DataType.INT64 if gives_tokens else ir.DataType.FLOAT
        value.type = value.type or ir.TensorType(dtype)
    shapes, feeds = {}, {}
    for value in model.graph.inputs:
        axes = [
            axis if isinstance(axis, int) else sizes[str(axis.value)] for axis in value.shape
        ]
        feeds[value.name] = np.zeros(axes, value.dtype.numpy())
    feeds |= {"num_known": np.ones(1, np.int32), "top_p": np.ones(1, np.float32)}
    counting = {"kv_positions": CONTEXT, "decided": rows, "block_rows": block}
    feeds |= {name: np.arange(size) for name, size in counting.items()}
    for value in model.graph.initializers.values():  # their bytes, not their place on disk
        shapes[value.name] = tuple(value.shape)
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    outputs = model.graph.outputs
    outputs.extend(value for value in watched.values() if value not in outputs)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {each.name: feeds[each.name] for each in session.get_inputs()}
    for name, array in zip(watched, session.run(list(watched), feeds), strict=True):
        shapes[name] = array.shape
    return shapes | {name: array.shape for name, array in feeds.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_costs_equal_the_graphs(family: str, tmp_path: Path) -> None:
    """The kernels of plain steps, prompts and DFlash steps, node by node."""
    target = load_target(TINY[family](tmp_path / "target"))
    directory = tiny_drafter(tmp_path / "drafter", tmp_path / "target", num_taps=2)
    pair = ModelPair(target, load_drafter(directory))
    for width, rows, costs in ((1, 1, pair.plain_step()), (5, 1, pair.target_pass(5, 1))):
        model = build_step(target, None, dtype="float32", cache_len=16, block_size=1)
        counter = GraphCounter(run_shapes(model, width=width, rows=rows))
        assert [replace(cost, module="") for cost in costs] == list(counter.costs(model))
    for block_size, draft_len in ((BLOCK, BLOCK - 1), (3, 1)):
        model = build_step(
            target, pair.drafter, dtype="float32", cache_len=16, block_size=block_size
        )
        width = draft_len + 1
        counter = GraphCounter(run_shapes(model, width=width, rows=width, block=block_size))
        costs = pair.dflash_step(block_size, draft_len)
        assert [replace(cost, module="") for cost in costs] == list(counter.costs(model))


def test_workload_of_qwen3_8b_by_hand() -> None:
    """36 layers of 4096, 32 and 8 heads of 128, an MLP of 12288; BF16."""
    pair = stored_pair("Qwen3-8B-DFlash-b16")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288
    head = 151936 * 4096
    plain = pair.plain_step()
    assert sum(cost.weight_bytes for cost in plain) == 2 * (36 * layer + head) == 15_136_194_560
    moved = [
        4096 + 4096 + 2 * 1024,
        4096 + 4096,
        4096 + 2 * 12288,
        12288 + 4096,
    ]  # q, k and v read one input
    assert sum(cost.row_bytes for cost in plain if cost.operation == "linear") == 36 * 2 * sum(
        moved
    )
    assert sum(cost.position_bytes for cost in plain) == 36 * 2 * 8 * 128 * 2 == 144 * 1024
    assert sum(cost.rows * cost.row_flops for cost in plain) == 2 * (36 * layer + head)
    assert sum(cost.position_flops for cost in plain) == 36 * 4 * 32 * 128

    step = pair.dflash_step(16, 15)
    drafter = [cost for cost in step if cost.part == "drafter" and cost.operation == "linear"]
    fc = 5 * 4096 * 4096
    assert sum(cost.weight_bytes for cost in drafter) == 2 * (5 * layer + fc) == 2_097_152_000
    assert sum(w.position_bytes for w in step if w.part == "drafter") == 20 * 1024
    # Keys and values of 16 context rows and 16 of the block, the rest of a layer of the block only.
    wide = 2 * 4096 * 1024
    assert sum(w.rows * w.row_flops for w in drafter) == 2 * 16 * (
        fc + 5 * (layer - wide) + 2 * 5 * wide
    )
    heads = [
        (cost.part, cost.rows, cost.weight_bytes) for cost in step if cost.operation == "head"
    ]
    assert heads == [("target", 16, 2 * head), ("drafter", 15, 2 * head)]
    assert sum(w.rows * w.row_flops for w in step if w.part == "target") == 16 * 2 * (
        36 * layer + head
    )


def test_workload_counts_fused_kernels() -> None:
    """Of a layer: norm, q k v, rotate, attend, add up, o, norm, gate and up, product, down."""
    plain = stored_pair("Qwen3-8B-DFlash-b16").plain_step()
    others = ("embed", "rows", "norm", "head", "accept")
    assert sum(cost.kernels for cost in plain) == 36 * 10 + len(others)


@pytest.mark.parametrize(
    ("drafter", "stated"),
    [
        # As the makers state them, in 10^9; biases and norms, which are not counted, are below the
        # tolerance.
        ("Qwen3-8B-DFlash-b16", 8.19),
        ("Qwen3-4B-DFlash-b16", 4.02),
        ("LLaMA3.1-8B-Instruct-DFlash-UltraChat", 8.03),
        ("Qwen3-Coder-30B-A3B-DFlash", 30.5),
        ("gpt-oss-20b-DFlash", 20.9),
        ("gpt-oss-120b-DFlash", 116.8),
    ],
)
def test_workload_has_the_stated_parameters(drafter: str, stated: float) -> None:
    pair = stored_pair(drafter)
    total = parameters(pair.plain_step(), ("linear", "experts", "head"))
    config = pair.target.config
    total += 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert total / 1e9 == pytest.approx(stated, rel=0.004)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafter", "stated"),
    [
        # Hybrid targets, without images and multi-token prediction: by the names and shapes of
        # their tensors, computed apart from this project's tables.
        ("Qwen3-Coder-Next-DFlash", 79.674391296),
        ("Qwen3.5-4B-DFlash", 4.21),
        ("Qwen3.5-9B-DFlash", 8.95),
        ("Qwen3.5-27B-DFlash", 26.90),
        ("Qwen3.5-35B-A3B-DFlash", 34.66),
        ("Qwen3.5-122B-A10B-DFlash", 122.1),
        ("Qwen3.5-397B-A17B-DFlash", 396.4),
        ("Qwen3.6-27B-DFlash", 26.90),
        ("Qwen3.6-35B-A3B-DFlash", 34.66),
    ],
)
def test_workload_has_the_parameters_of_hybrids(drafter: str, stated: float) -> None:
    test_workload_has_the_stated_parameters(drafter, stated)


@pytest.mark.slow
def test_a_hybrid_target_has_every_parameter() -> None:
    """79,674,391,296, as others count Qwen3-Coder-Next; 851 tensors of text in Qwen3.5-27B."""
    tensors = find_target("Qwen3-Coder-Next").tensors.values()
    assert sum(prod(info.shape) for info in tensors) == 79_674_391_296
    assert len(find_target("Qwen3.5-27B").tensors) == 851


def test_workload_of_linear_attention_by_hand() -> None:
    """3 key and 6 value heads of 12 by 10, a convolution over 4 positions, blocks of 5."""
    sizes = LinearAttentionConfig(3, 6, 12, 10, conv_kernel=4, fused_projections=False)
    config = replace(find_target("Qwen3.5-4B").config, linear_attention=sizes, is_linear=True)
    cost = ModelCosts("target", config, {}, block_size=5).linear_attention(7, sizes)
    channels = 3 * 12 * 2 + 6 * 10
    assert (cost.rows, cost.kernels) == (7, 2)
    assert cost.state_bytes == 6 * 12 * 10 * 4 + (3 + 4) * (channels + 12) * 2
    assert cost.window_bytes == (3 + 4) * (channels + 12) * 2
    assert cost.row_flops == 6 * 6 * 12 * 10 + 2 * 4 * channels
    assert cost.row_bytes == 2 * (channels + 12 + 60)
    assert cost.weight_bytes == 2 * 4 * channels
    assert cost.position_bytes == cost.position_flops == 0
    alone = ModelCosts("target", config, {}).linear_attention(7, sizes)
    assert alone.state_bytes == 6 * 12 * 10 * 4 + 3 * (channels + 12) * 2


def test_workload_of_dflash_2_by_hand() -> None:
    """Convolutions over 3 rows, groups of 8, around both sublayers of each layer; a selector."""
    v1 = stored_pair("Qwen3-8B-DFlash-b16")
    config = replace(
        v1.drafter.config, conv=DraftConvConfig(3, 8), selector=SelectorConfig(rank=64, top_k=4)
    )
    v2 = replace(v1, drafter=replace(v1.drafter, config=config))
    added = Counter(v2.dflash_step(16, 5)) - Counter(v1.dflash_step(16, 5))
    assert not Counter(v1.dflash_step(16, 5)) - Counter(v2.dflash_step(16, 5))
    linears = {cost.module: cost for cost in added if cost.operation == "linear"}
    places = {f"layers.{n}.{part}_conv" for n in range(5) for part in ("attention", "mlp")}
    selector = linears.pop("candidate_selector.hidden_projection")
    assert linears.keys() == {f"{place}.kernel_projection" for place in places}
    dynamic = 3 * 4096 // 8
    for cost in linears.values():
        assert (cost.rows, cost.weight_bytes) == (16, 2 * 4096 * 2 * dynamic)
    assert (selector.rows, selector.weight_bytes) == (15, 2 * 4096 * 64)
    others = {cost: n for cost, n in added.items() if cost.operation == "elementwise"}
    sides = {cost: n for cost, n in others.items() if cost.rows == 16}
    assert {cost.row_bytes: n for cost, n in sides.items()} == {2 * (2 * 4096 + dynamic): 20}
    (choosing,) = others.keys() - sides.keys()
    assert (choosing.rows, choosing.row_bytes) == (15, 2 * 2 * 4 * 64)
    weights = 2 * (10 * 4096 * 2 * dynamic + 4096 * 64 + 2 * 151936 * 64)
    assert v2.memory_bytes(1, 100) - v1.memory_bytes(1, 100) == weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3.6-27B", "Qwen3.5-35B-A3B", "Qwen3-Coder-Next"])
def test_states_are_those_of_the_ports(name: str) -> None:
    """A step reads and writes each once, and keys and values are of the other layers alone."""
    target, drafter = find_target(name), find_drafter(None, target=name)
    ports = step_io(
        target.config, drafter.config, dtype="bfloat16", cache_len=1024, block_size=16
    )
    states = sum(port.slot_bytes for port in ports if port.recurrent and port.aliases is None)
    step = ModelPair(target, drafter).whole_step()
    assert sum(cost.state_bytes for cost in step) == states
    full = [cost for cost in step if cost.part == "target" and cost.operation == "attention"]
    assert len(full) == target.config.linear_layers.count(False)


def test_traffic_of_states_of_qwen36_27b() -> None:
    """Its states are 151 MB, and 18 MB are windows: 338 MB a step, and 64 KB a token beside."""
    step = ModelPair(find_target("Qwen3.6-27B"), find_drafter(None, target="Qwen3.6-27B"))
    costs = step.dflash_step(16, 15)
    kept = sum(cost.state_bytes for cost in costs)
    states = 48 * 48 * 128 * 128 * 4
    assert kept - states == pytest.approx(17.9e6, rel=0.005)
    assert 2 * kept == pytest.approx(338e6, rel=0.001)
    target = [cost for cost in costs if cost.part == "target"]
    assert sum(cost.position_bytes for cost in target) == 64 * 1024
    short, long = (step.memory_bytes(2, context) for context in (1000, 3000))
    drafter = sum(cost.position_bytes for cost in costs if cost.part == "drafter")
    windowed = drafter * 4 / 5  # four of its layers see 2048 positions
    assert long - short == 2 * (2000 * 64 * 1024 + 2000 * drafter / 5 + 1048 * windowed)


def test_workload_of_gpt_oss_has_the_active_parameters() -> None:
    """5.1 · 10^9 for a token, as OpenAI states: its 4 experts, all else, and no embedding."""
    flops = 0.0
    for cost in stored_pair("gpt-oss-120b-DFlash").plain_step():
        flops += cost.rows * cost.row_flops * cost.top_k
    assert flops / 2 / 1e9 == pytest.approx(5.1, rel=0.01)


def test_workload_of_gpt_oss_has_its_windows() -> None:
    step = stored_pair("gpt-oss-120b-DFlash").dflash_step(10, 9)
    windows = [cost.window for cost in step if cost.operation == "attention"]
    assert windows == [128, 0] * 18 + [0] * 8


@pytest.mark.slow
def test_the_graphs_page_states_what_states_move() -> None:
    """Every figure of its table but what a commit behind ACCEPT keeps."""
    page = (Path(__file__).parents[2] / "trtllm_dflash" / "graph" / "README.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and " MB" in line]
    copies, behind, lazy = ([*line.split("|")[2:5]] for line in rows)
    for column, name in enumerate(("Qwen3.6-27B", "Qwen3.6-35B-A3B"), start=1):
        pair = ModelPair(find_target(name), find_drafter(None, target=name))
        sizes = pair.target.config.linear_attention
        assert sizes is not None
        numbers = sizes.num_value_heads * sizes.value_dim * sizes.key_dim
        state = pair.target.config.linear_layers.count(True) * numbers * STATE_BYTES / 1e6
        assert f" {17 * state:,.0f} MB" in copies[column]
        assert f" {3 * state:,.0f} MB" in behind[column]
        assert f" {2 * pair.state_bytes() / 1e6:,.0f} MB" in lazy[column]
        if name == "Qwen3.6-27B":
            window = pair.state_bytes() / 1e6 - state
            assert copies[0].strip() == f"{state:.0f} MB + {16 * state / 1e3:.2f} GB"
            assert lazy[0].strip() == f"{state:.0f} MB + {window:.0f} MB"


def test_workload_quantizes_linears_only() -> None:
    """NVFP4 takes 4.5 bits; heads stay BF16, and so does fc."""
    drafter = "Qwen3-8B-DFlash-b16"
    exact = stored_pair(drafter).dflash_step(16, 15)
    small = stored_pair(drafter, is_nvfp4=True).dflash_step(16, 15)
    assert quantized_pair(drafter, "nvfp4").dflash_step(16, 15) == small
    ratios: dict[str, set[float]] = {}
    for before, after in zip(exact, small, strict=True):
        if before.weight_bytes:
            role = before.module if before.module == "fc" else before.operation
            ratios.setdefault(role, set()).add(after.weight_bytes / before.weight_bytes)
    assert ratios == {"linear": {4.5 / 16}, "fc": {1.0}, "head": {1.0}}


def test_workload_of_experts_by_hand() -> None:
    """7 experts of 9 features on a hidden state of 12, stored in MXFP4."""
    config = replace(find_target("gpt-oss-20b").config, hidden_size=12)
    costs = ModelCosts("target", config, {"mlp.experts": MXFP4})
    moe = MoEConfig(num_experts=7, top_k=3, intermediate_size=9, normalize=True, fused=True)
    cost = costs.experts("mlp.experts", 5, moe)
    assert (cost.part, cost.operation, cost.rows) == ("target", "experts", 5)
    assert (cost.num_experts, cost.top_k) == (7, 3)
    assert cost.weight_bytes == 3 * 12 * 9 * 4.25 / 8
    assert cost.row_flops == 2 * 3 * 12 * 9


def test_workload_of_eagle3_by_hand() -> None:
    """A projection of 3 · 4096, a layer with inputs of 8192, a head over 32000; run 7 times."""
    costs = Eagle3Tree(60, 7, 10).costs(find_target("Qwen3-8B").config, "bf16")
    layer = 8192 * (4096 + 2048) + 4096 * 4096 + 3 * 4096 * 12288
    expected = 3 * 4096 * 4096 + 7 * (layer + 4096 * 32000)
    assert sum(cost.weight_bytes for cost in costs) == 2 * expected
    assert {cost.rows for cost in costs if cost.operation == "head"} == {1, 10}


def test_workload_of_a_large_model_needs_little_memory() -> None:
    pair = stored_pair("gpt-oss-120b-DFlash")
    tracemalloc.start()
    pair.dflash_step(9, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
