"""Ring caches: how many rows they have, which graphs have them, and that they change no token
however long it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.tiny_models import BLOCK, TARGET, VOCAB, WINDOW
from tests.graph.stepper import Stepper, decode
from trtllm_dflash.checkpoint.loader import Checkpoint, load_drafter, load_target
from trtllm_dflash.engine_dir import ring_cache
from trtllm_dflash.engine_dir.io_tensors import step_io
from trtllm_dflash.engine_dir.ring_cache import cache_rows, ring_flags, rows_needed
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.models.base import TargetConfig

MakePair = Callable[..., Path]
CACHE, CHUNK = 400, 7  # of the step graphs here: no power of two, no multiple of each other
MIXED = (5, 0, 11, 0, 5)  # windows of the target's layers


def windowed(directory: Path, windows: tuple[int, ...]) -> Checkpoint[TargetConfig]:
    """Return a target whose layers have these windows. No supported architecture has any yet."""
    target = load_target(directory)
    return replace(target, config=replace(target.config, windows=windows))


@pytest.fixture
def smallest_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings without a row to spare."""
    monkeypatch.setattr(ring_cache, "ALIGNMENT", 1)


def test_ring_holds_first_window_and_a_steps_rows() -> None:
    """By simulation: the smallest ring loses nothing that is looked at, one row less does."""

    def loses(rows: int, window: int, written: int, start: int) -> bool:
        held = {position % rows: position for position in range(start + written)}
        return any(
            held[position % rows] != position
            for position in range(max(start - window + 1, 0), start + written)
        )

    for window in (1, 2, 6, 128):
        for written in (1, 5, 16):
            rows = rows_needed(window, written)
            assert not any(loses(rows, window, written, start) for start in range(3 * rows))
            assert rows == 1 or loses(rows - 1, window, written, 2 * rows)


def test_rows_by_layer() -> None:
    sizes: dict[str, Any] = {"cache_len": 256, "written": 40}
    assert cache_rows((0, 6, 128, 300), **sizes) == (256, 48, 176, 256)
    assert cache_rows((6, 217, 218), **sizes) == (48, 256, 256)  # 217 - 1 + 40 is all of it
    assert cache_rows((0, 6, 128), cache_len=256, written=None) == (256, 256, 256)
    assert ring_flags((256, 48, 176), 256) == (0, 1, 1)
    assert ring_flags((256, 256), 256) == ()


def test_ports_have_their_layers_rows(make_target: MakePair, make_drafter: MakePair) -> None:
    """The drafter writes its block behind the step's tokens, so its rings are longer by that."""
    directory = make_target("qwen3")
    target = windowed(directory, MIXED).config
    drafter = load_drafter(make_drafter(directory, variant="mixed")).config
    for plugins in (False, True):
        ports = step_io(
            target,
            drafter,
            dtype="float32",
            cache_len=CACHE,
            block_size=BLOCK,
            ring_width=40,
            plugins=plugins,
        )
        rows = {port.name: port.shape[2] for port in ports if port.cache}
        assert [rows[f"target_key.{layer}"] for layer in range(5)] == [48, CACHE, 64, CACHE, 48]
        assert [rows[f"draft_value.{layer}"] for layer in range(3)] == [
            64,
            64,
            CACHE,
        ]  # 6 - 1 + 40 + 4 is over 48
        assert all(rows[port.name] == rows[port.aliases] for port in ports if port.aliases)


def _ring_values(model: ir.Model, op_type: str) -> list[int | None]:
    nodes = [
        node for node in model.graph if (node.domain, node.op_type) == (OPS_DOMAIN, op_type)
    ]
    return [
        node.attributes["ring"].as_int() if "ring" in node.attributes else None
        for node in nodes
    ]


def test_nodes_say_which_caches_are_rings(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    directory = make_target("qwen3", head_dim=64)
    target, drafter = (
        windowed(directory, MIXED),
        load_drafter(make_drafter(directory, variant="mixed", head_dim=64)),
    )
    for plugins, dtype in ((False, "float32"), (True, "bfloat16")):
        sizes: dict[str, Any] = {
            "dtype": dtype,
            "cache_len": CACHE,
            "block_size": BLOCK,
            "plugins": plugins,
        }
        model = build_step(target, drafter, **sizes, ring_width=CHUNK)
        assert _ring_values(model, "DFlashVerifyAttention") == [1, 0, 1, 0, 1]
        assert _ring_values(model, "DFlashDraftAttention") == [1, 1, 0]
        nodes = [node for node in model.graph if node.op_type == "DFlashVerifyAttention"]
        assert [node.attributes["window_size"].as_int() for node in nodes] == list(MIXED)


def test_without_windows_the_graph_is_the_one_without_rings(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    """Node for node: what nobody uses costs nothing."""
    directory = make_target("llama")
    target = load_target(directory)
    for drafter in (None, load_drafter(make_drafter(directory, variant="full"))):
        sizes: dict[str, Any] = {
            "dtype": "float32",
            "cache_len": CACHE,
            "block_size": BLOCK if drafter else 1,
        }
        with_rings, without = (
            build_step(target, drafter, **sizes, ring_width=width) for width in (CHUNK, None)
        )
        assert (
            ir.to_proto(with_rings).SerializeToString()
            == ir.to_proto(without).SerializeToString()
        )
        assert set(_ring_values(with_rings, "DFlashVerifyAttention")) == {None}
        attention = [f for f in with_rings.functions.values() if "Attention" in f.name]
        nodes = [node for function in attention for node in function]
        assert nodes
        assert not [
            node for node in nodes if node.op_type == "Mod" or "mode" in node.attributes
        ]


def test_windows_longer_than_the_caches_need_no_rings(make_target: MakePair) -> None:
    target = windowed(make_target("qwen3"), (CACHE,) * TARGET["layers"])
    model = build_step(
        target, None, dtype="float32", cache_len=CACHE, block_size=1, ring_width=CHUNK
    )
    assert set(_ring_values(model, "DFlashVerifyAttention")) == {None}


def _prompts() -> list[np.ndarray]:
    """Shorter than a window, about a chunk, longer than every ring."""
    random = np.random.default_rng(11)
    return [random.integers(0, VOCAB, length) for length in (3, 8, 90)]


@pytest.mark.slow
@pytest.mark.usefixtures("smallest_rings")
@pytest.mark.parametrize(
    "variant", ["sliding", "sliding_bidirectional", "mixed", "mixed_bidirectional"]
)
def test_rings_change_no_token(
    variant: str, make_target: MakePair, make_drafter: MakePair
) -> None:
    """Plain and speculative, in the smallest rings: what caches of all positions give, over many
    rounds of each ring.

    Drafts are random here, so most are rejected; steps of other widths in turn leave rejected rows
    unwritten.
    """
    directory = make_target("qwen3")
    target = windowed(directory, MIXED)
    drafter = load_drafter(make_drafter(directory, variant=variant))
    count, sizes = 120, {"dtype": "float32", "cache_len": CACHE}

    def tokens(
        checkpoint: Any, block: int, ring_width: int | None, widths: list[int]
    ) -> list[list[int]]:
        model = build_step(target, checkpoint, block_size=block, ring_width=ring_width, **sizes)
        return decode(model, _prompts(), count=count, chunk=CHUNK, widths=widths)

    expected = tokens(None, 1, None, [1])
    assert expected != decode(
        build_step(windowed(directory, (0,) * 5), None, block_size=1, **sizes),
        _prompts(),
        count=count,
        chunk=CHUNK,
        widths=[1],
    )
    assert tokens(None, 1, CHUNK, [1]) == expected
    assert tokens(drafter, BLOCK, CHUNK, [BLOCK]) == expected
    assert tokens(drafter, BLOCK, CHUNK, [BLOCK, 1, 2, 1]) == expected


@pytest.mark.usefixtures("smallest_rings")
@pytest.mark.parametrize("variant", ["sliding", "sliding_bidirectional", "mixed"])
def test_rings_change_no_draft(
    variant: str, make_target: MakePair, make_drafter: MakePair
) -> None:
    """Wrong drafts change no token, so they are compared themselves, step by step, with those of
    whole caches.
    """
    directory = make_target("qwen3")
    target, drafter = (
        windowed(directory, MIXED),
        load_drafter(make_drafter(directory, variant=variant)),
    )
    runs = []
    for ring_width in (CHUNK, None):
        model = build_step(
            target,
            drafter,
            dtype="float32",
            cache_len=CACHE,
            block_size=BLOCK,
            ring_width=ring_width,
        )
        run = Stepper(model, 3)
        for slot, prompt in enumerate(_prompts()):
            run.prompt(slot, prompt, CHUNK)
        blocks = []
        for turn in range(60):
            run.generate((BLOCK, 1, 3)[turn % 3])
            blocks.append(np.stack(run._next))
        runs.append((np.stack(blocks), run))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert len(np.unique(runs[0][0][..., 1:])) > 10  # drafts of some variety
    rows = [run.caches["draft_key.0"].shape[2] for _, run in runs]
    assert rows == [rows_needed(WINDOW, CHUNK + BLOCK), CACHE]


@pytest.mark.usefixtures("smallest_rings")
def test_rings_of_fp8_codes_change_no_token(make_target: MakePair) -> None:
    target = windowed(make_target("qwen3"), MIXED)
    scales = {layer: (0.013 + 0.01 * layer, 0.011) for layer in range(TARGET["layers"])}
    tokens = []
    for ring_width, kv_scales in ((CHUNK, scales), (None, scales), (None, None)):
        sizes: dict[str, Any] = {
            "dtype": "float32",
            "cache_len": CACHE,
            "block_size": 1,
            "ring_width": ring_width,
        }
        model = build_step(target, None, **sizes, kv_scales=kv_scales)
        tokens.append(decode(model, _prompts(), count=60, chunk=CHUNK, widths=[1]))
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.usefixtures("smallest_rings")
def test_a_smaller_ring_would_change_tokens(
    make_target: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above would see a ring that is one row too small: the oldest key of a chunk's first
    row is gone.
    """
    target = windowed(make_target("qwen3"), MIXED)
    caches = []
    for missing in (0, 1):
        monkeypatch.setattr(
            ring_cache,
            "rows_needed",
            lambda window, written, less=missing: window - 1 + written - less,
        )
        model = build_step(
            target, None, dtype="float32", cache_len=CACHE, block_size=1, ring_width=CHUNK
        )
        run = Stepper(model, 1)
        run.prompt(0, _prompts()[2], CHUNK)
        caches.append(run.caches["target_key.1"])
    assert np.abs(caches[0] - caches[1])[:, :, :90].max() > 1e-3


def test_plugin_and_body_declare_the_same_ports(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    directory = make_target("qwen3", head_dim=64)
    target, drafter = (
        windowed(directory, MIXED),
        load_drafter(make_drafter(directory, variant="mixed", head_dim=64)),
    )
    sizes: dict[str, Any] = {
        "cache_len": CACHE,
        "block_size": BLOCK,
        "ring_width": CHUNK,
        "dtype": "bfloat16",
    }
    model = build_step(target, drafter, plugins=True, **sizes)
    found = {
        str(value.name): value.shape for value in (*model.graph.inputs, *model.graph.outputs)
    }
    for port in step_io(target.config, drafter.config, plugins=True, **sizes):
        assert found[port.name] == port.shape
