"""Engines of DFlashGatedDelta, built without a GPU; and what its plugin refuses there."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.nvrtc")
from tests.fixtures.tiny_hybrid import PATTERN, tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter
from tests.plugins.cubins import (
    ACCEPT_KEY,
    ADJUST_KEY,
    ARGMAX_KEY,
    ATTENTION_KEYS,
    DELTA_KEY,
    LOOKUP_KEY,
    compiled,
)
from tests.plugins.plugin_graphs import (
    Layer,
    compile_pair,
    layer_log,
    op_model,
    parser_processes,
    plugin_layers,
    refusal,
)
from trtllm_dflash.graph.plugin_nodes import kernel_variants

pytestmark = pytest.mark.slow

DELTA = "DFlashGatedDelta"
FAKE = {DELTA_KEY: b"no kernel" * 100}
NUMBERS: dict[str, Any] = {"num_key_heads": 2}


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with parser_processes(1) as processes:
        yield processes


def engine(arch: str, cubin: bytes) -> tuple[tuple[Layer, ...], bool, set[tuple[str, str]]]:
    """Return the plugins of an engine of one node, whether the cubin is in the engine, and what
    the engine runs.

    Slots and rows are dynamic, in two profiles as a step has them.
    """
    from trtllm_dflash.builder.trt import Compiler

    names = ("qkv", "gates", "window", "state", "past_len", "state_len", "num_known")
    fixed: dict[str, tuple[int, ...]] = {
        "qkv": (1024,),
        "gates": (8,),
        "window": (1, 18, 1032),
        "state": (4, 128, 128),
        **dict.fromkeys(("past_len", "state_len", "num_known"), ()),
    }
    rows = {"qkv": ("rows",), "gates": ("rows",)}
    shapes = {name: ("batch", *rows.get(name, ()), *fixed[name]) for name in names}

    def profile(batch: int, widest: int) -> dict[str, tuple[tuple[int, ...], ...]]:
        def shape(name: str, slots: int, width: int) -> tuple[int, ...]:
            return (slots, *([width] if name in rows else []), *fixed[name])

        pairs = (1, 1), (batch, widest), (batch, widest)
        return {name: tuple(shape(name, *pair) for pair in pairs) for name in names}

    model = op_model(DELTA, shapes=shapes, **NUMBERS)
    assert kernel_variants(model) == {DELTA_KEY: 1}
    log, file = layer_log(), io.BytesIO()
    log.layers.clear()
    compiler = Compiler(log, model, {DELTA_KEY: cubin})
    compiler.compile([arch], [profile(1, 512), profile(3, 16)], file, lambda *_: None)
    layers = plugin_layers(compiler._network)
    return layers, cubin in file.getvalue(), set(log.layers)


@pytest.mark.parametrize("arch", ["sm80", "sm89", "sm120", "sm121"])
def test_an_engine_has_the_plugin_and_its_kernel(arch: str, pool: Executor) -> None:
    """Window and state are written in place, and nothing but the plugin runs."""
    cubin = compiled(DELTA_KEY, arch).code
    (layer,), is_inside, run = pool.submit(engine, arch, cubin).result(timeout=600)
    assert layer.plugin == (DELTA, "1", "trtllm_dflash")
    assert (layer.num_inputs, layer.num_outputs) == (10, 3)
    assert layer.aliased_inputs == (-1, 5, 6)
    sizes = dict(DELTA_KEY.sizes)
    digest = hashlib.sha256(cubin).digest()
    assert layer.fields == {**NUMBERS, **sizes, "cubin_sha256": digest, "cubin": cubin}
    assert is_inside
    assert {kind for kind, _ in run} == {"PluginV3"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtypes": {"state": "bfloat16"}}, f"{DELTA}: state is BF16, expected FLOAT"),
        ({"dtypes": {"window": "float32"}}, f"{DELTA}: window is FLOAT, expected BF16"),
        ({"dtypes": {"state_len": "int64"}}, f"{DELTA}: state_len is INT64, expected INT32"),
        (
            {"shapes": {"gates": (2, 4, 8)}},
            f"{DELTA}: gates is [2, 4, 8], expected [B, S, 2Hv]: S is 4, and S is 3 in qkv",
        ),
        (
            {"shapes": {"window": (2, 1, 4, 1024)}},
            (
                f"{DELTA}: window is [2, 1, 4, 1024], expected [B, 1, R, C+2Hv]: C+2Hv is 1024,"
                " and C is 1024 in qkv, 2Hv is 8 in gates"
            ),
        ),
    ],
)
def test_what_the_parser_gives_it_wrongly_is_told(
    changes: dict[str, Any], words: str, pool: Executor
) -> None:
    told = pool.submit(refusal, DELTA, changes | NUMBERS, FAKE, {}).result(timeout=600)
    assert told.startswith(
        f"BuildError: TensorRT-RTX cannot parse the step graph:\n  {words}\n"
    )


def test_heads_that_make_no_groups_are_told(pool: Executor) -> None:
    told = pool.submit(refusal, DELTA, {"num_key_heads": 3}, FAKE, {}).result(timeout=600)
    assert "gated delta needs value heads in groups: got 4 of them for 3 key heads" in told


def test_the_gated_delta_nets_of_a_target_share_one_kernel(
    pool: Executor, tmp_path: Path
) -> None:
    """The first brings it into the engine; every state and window is written in place."""
    sizes = {"key_dim": 128, "value_dim": 128, "head_dim": 64}
    target = tiny_hybrid(tmp_path / "target", "qwen3_5", dtype="BF16", sizes=sizes)
    drafter = tiny_drafter(
        tmp_path / "drafter", target, taps=(0, 3), num_layers=1, dtype="BF16", head_dim=64
    )
    attention = ATTENTION_KEYS[0]
    keys = (DELTA_KEY, ACCEPT_KEY, ADJUST_KEY, ARGMAX_KEY, LOOKUP_KEY, attention)
    cubins = {key: compiled(key, "sm120").code for key in keys}
    models = {"target": str(target), "drafter": str(drafter)}
    found = pool.submit(compile_pair, models, tmp_path, "sm120", cubins).result(timeout=600)
    count = PATTERN.count("linear_attention")
    assert found.kernels == {
        DELTA_KEY: count,
        ACCEPT_KEY: 1,
        ARGMAX_KEY: 1,
        ADJUST_KEY: 1,
        LOOKUP_KEY: 1,
        attention: len(PATTERN) - count + 1,
    }
    assert found.cubins_in_engine
    layers = [layer for layer in found.layers if layer.plugin[0] == DELTA]
    assert [layer.fields.get("cubin") for layer in layers] == [
        cubins[DELTA_KEY],
        *[None] * (count - 1),
    ]
    assert {layer.aliased_inputs for layer in layers} == {(-1, 5, 6)}
    types = {name: kind for name, kind in found.inputs.items() if "target_" in name}
    assert types["target_state.0"] == "FLOAT"
    assert types["target_window.0"] == "BF16"
