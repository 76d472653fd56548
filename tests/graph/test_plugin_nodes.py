"""A step with plugins: the same graph without bodies, without what only bodies need, and with what
finds a plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.engine_dir.io_tensors import step_io
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.graph.plugin_nodes import kernel_variants, lower_to_plugins
from trtllm_dflash.graph.step import build_step

Steps = tuple[ir.Model, ir.Model]


@pytest.fixture(scope="module")
def steps(make_target: Callable[..., Path], make_drafter: Callable[..., Path]) -> Steps:
    """Return the same step with bodies and with plugins."""
    directory = make_target("qwen3", num_layers=2, head_dim=64)
    target = load_target(directory)
    drafter = load_drafter(
        make_drafter(directory, num_layers=2, taps=(0,), variant="mixed", head_dim=128)
    )
    sizes = {"dtype": "bfloat16", "cache_len": 64, "block_size": 4}
    with_bodies, with_plugins = (
        build_step(target, drafter, **sizes, plugins=plugins) for plugins in (False, True)
    )
    names = [
        port.name for port in step_io(target.config, drafter.config, **sizes, plugins=True)
    ]
    values = (*with_plugins.graph.inputs, *with_plugins.graph.outputs)
    assert [value.name for value in values] == names
    return with_bodies, with_plugins


def _ours(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == OPS_DOMAIN]


def test_only_our_nodes_change(steps: Steps) -> None:
    with_bodies, with_plugins = steps
    assert len(with_bodies.functions) == 6
    assert len(with_plugins.functions) == 0
    assert [node.name for node in with_bodies.graph] == [
        node.name for node in with_plugins.graph
    ]
    inputs = [{value.name for value in model.graph.inputs} for model in steps]
    assert inputs[0] - inputs[1] == {"kv_positions"}
    for before, after in zip(*map(_ours, steps), strict=True):
        declared = zip(before.inputs, OPS[before.op_type].inputs, strict=False)
        kept = [value.name for value, tensor in declared if value and not tensor.body_only]
        assert [value.name for value in after.inputs if value] == kept


def test_a_node_says_which_plugin_and_kernel_it_needs(steps: Steps) -> None:
    sizes = {"DFlashVerifyAttention": 64, "DFlashDraftAttention": 128}
    for node in _ours(steps[1]):
        assert node.attributes["plugin_version"].as_string() == "1"
        assert node.attributes["plugin_namespace"].as_string() == "trtllm_dflash"
        if node.op_type in sizes:
            assert node.attributes["head_dim"].as_int() == sizes[node.op_type]
    attention = {
        size: KernelVariant("attention", (("head_dim", size),)) for size in sizes.values()
    }
    assert kernel_variants(steps[1]) == {
        KernelVariant("accept"): 1,
        KernelVariant("adjust"): 1,
        KernelVariant("argmax"): 1,
        KernelVariant("lookup"): 1,
        attention[64]: 2,
        attention[128]: 2,
    }
    assert kernel_variants(steps[0]) == {}
    assert str(attention[64]) == "attention, head_dim 64"


def _holders(model: ir.Model) -> list[str]:
    return [node.op_type for node in _ours(model) if node.attributes["holds_kernels"].as_int()]


def test_one_node_holds_all_kernels(steps: Steps) -> None:
    """It writes into caches, so that TensorRT-RTX stores what it holds once; or it is the first."""
    assert _holders(steps[1]) == ["DFlashVerifyAttention"]
    without = steps[0].clone()
    for node in _ours(without):
        if any(tensor.aliases for tensor in OPS[node.op_type].outputs):
            node.domain = ""
    lower_to_plugins(without)
    left = ["DFlashAccept", "DFlashArgmax", "DFlashLookup"]
    assert [node.op_type for node in _ours(without)] == left
    assert _holders(without) == ["DFlashAccept"]


def test_what_nothing_used_before_stays(steps: Steps) -> None:
    """It must be found by the check of what the parser drops, not vanish."""
    model = steps[0].clone()
    model.graph.inputs.append(
        ir.Value(name="forgotten", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    )
    lower_to_plugins(model)
    assert model.graph.inputs[-1].name == "forgotten"


def test_a_head_dim_without_a_kernel_is_refused(make_target: Callable[..., Path]) -> None:
    target = load_target(make_target("llama"))
    with pytest.raises(
        GraphError,
        match=r"layers.0/DFlashVerifyAttention .*: there is no kernel for head_dim 16",
    ):
        build_step(target, None, dtype="bfloat16", cache_len=64, block_size=1, plugins=True)
