"""The tensor table: rows by layer and expert, and fields that differ by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.models.test_base import QWEN3_4B, read
from trtllm_dflash.engine_dir.io_tensors import step_io
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.moe import MoEConfig
from trtllm_dflash.models.tensor_specs import (
    IgnoredPrefix,
    IgnoredSpec,
    TensorSpec,
    TensorTable,
    expand_specs,
    resolve_shape,
    resolve_shapes,
)

HEAD_DIMS, MOE = (64, 128, 64), MoEConfig(2, 1, 24, normalize=True, fused=False)


def config(**changes: Any) -> TargetConfig:
    """Return a target of three layers."""
    return replace(read(QWEN3_4B, num_hidden_layers=3), **changes)


def shapes(row: TensorSpec, target: TargetConfig) -> dict[str, list[int]]:
    """Return the shapes of a row's tensors by name."""
    found = expand_specs([row], target)
    alone = {name: resolve_shape(bound, target) for name, bound in found.items()}
    together = resolve_shapes(found, target)
    assert {name: list(shape) for name, shape in together.items()} == alone
    return alone


def test_a_row_is_spelled_out_by_layer_and_expert() -> None:
    row = TensorSpec("l.{i}.e.{j}.w", ("moe.intermediate_size", "2*hidden_size"))
    found = shapes(row, config(moe=MOE))
    assert set(found) == {
        f"l.{layer}.e.{expert}.w" for layer in range(3) for expert in range(2)
    }
    assert all(shape == [24, 2 * 2560] for shape in found.values())


def test_a_condition_on_an_absent_part_is_false() -> None:
    row = TensorSpec("l.{i}.w", ("moe.num_experts",), when="moe.fused")
    assert shapes(row, config()) == {}
    assert shapes(replace(row, when=None, unless="moe.fused"), config(moe=MOE)).keys() == {
        "l.0.w",
        "l.1.w",
        "l.2.w",
    }


def test_a_size_may_differ_by_layer() -> None:
    target = config(by_layer={"head_dim": HEAD_DIMS})
    row = TensorSpec("l.{i}.w", ("num_q_heads*head_dim", "hidden_size"))
    want = {f"l.{layer}.w": [32 * size, 2560] for layer, size in enumerate(HEAD_DIMS)}
    assert shapes(row, target) == want
    assert shapes(TensorSpec("w", ("head_dim",)), target) == {"w": [128]}  # of no layer


def test_a_row_may_hold_for_some_layers_only() -> None:
    target = config(
        moe=MOE, by_layer={"moe": (None, MOE, None), "qk_norm": (True, False, True)}
    )
    experts = TensorSpec("l.{i}.e.{j}.w", ("moe.intermediate_size",), when="moe")
    assert shapes(experts, target) == {"l.1.e.0.w": [24], "l.1.e.1.w": [24]}
    mlp = TensorSpec("l.{i}.w", ("hidden_size",), unless="moe")
    assert shapes(mlp, target).keys() == {"l.0.w", "l.2.w"}
    norm = IgnoredSpec("l.{i}.n", when="qk_norm", reason="for the test")
    assert shapes(norm, target).keys() == {"l.0.n", "l.2.n"}


def test_a_layer_sees_its_own_values() -> None:
    target = config(by_layer={"head_dim": HEAD_DIMS})
    assert [target.at_layer(layer).head_dim for layer in range(3)] == list(HEAD_DIMS)
    assert target.at_layer(1).by_layer == {}
    assert config().at_layer(1) == config()


def test_caches_have_their_layers_head_dim() -> None:
    target = config(by_layer={"head_dim": HEAD_DIMS})
    ports = step_io(target, None, dtype="float32", cache_len=64, block_size=1)
    found = {port.name: port.shape[-1] for port in ports if port.cache}
    for layer, size in enumerate(HEAD_DIMS):
        assert found[f"target_key.{layer}"] == found[f"target_value.{layer}.out"] == size


def test_names_of_a_model_that_also_takes_images() -> None:
    skipped = IgnoredPrefix("model.visual.", reason="for the test")
    table = TensorTable((), (), ignored_prefixes=(skipped,), stored_under="model.text.")
    assert table.canonical_name("model.text.norm.weight") == "model.norm.weight"
    assert table.canonical_name("lm_head.weight") == table.stored_name("lm_head.weight")
    assert table.stored_name("model.norm.weight") == "model.text.norm.weight"
    assert table.ignored_reason("model.visual.a.weight") == "for the test"
    assert table.ignored_reason("model.visual_norm.weight") is None
