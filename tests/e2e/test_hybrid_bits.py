"""A hybrid target's logits and states are the same bits for every way to the same text.

This holds with gated delta nets in row order, in which our kernel goes too. The body in chunks
rounds by the width of a step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import VOCAB, tiny_drafter
from tests.graph.stepper import Stepper
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.step import build_step

BLOCK, LENGTH, ROW = 6, 60, slice(0, 1)
TEXT = np.random.default_rng(0).integers(0, VOCAB, (1, LENGTH))
Reached = tuple[np.ndarray, dict[str, np.ndarray]]  # logits, and the states before them


def _width_changes_products() -> bool:
    """Tell whether this machine's matrix products of one row and of more differ in their bits."""
    import onnxruntime

    random = np.random.default_rng(1)
    rows, weight = (
        random.standard_normal(shape).astype(np.float32) for shape in ((BLOCK, 48), (48, 80))
    )
    x = ir.Value(name="x", shape=ir.Shape(["n", 48]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.Tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph(
        [x],
        node.outputs,
        nodes=[node],
        initializers=[w],
        opset_imports={"": 24},
        name="product",
    )
    session = onnxruntime.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    )
    products = [session.run(None, {"x": part})[0] for part in (rows, *np.split(rows, BLOCK))]
    return not np.array_equal(products[0], np.concatenate(products[1:]))


@pytest.fixture
def graphs(tmp_path: Path) -> dict[int, ir.Model]:
    """Return the plain step and the speculative one, by their block's size.

    The target has no experts: their products are of as many rows as have chosen them.
    """
    target = tiny_hybrid(tmp_path / "target", "qwen3_5")
    drafter = tiny_drafter(tmp_path / "drafter", target, taps=(0, 3), block_size=BLOCK)
    return {
        block: build_step(
            load_target(target),
            load_drafter(drafter) if block > 1 else None,
            dtype="float32",
            cache_len=LENGTH + 2 * BLOCK,
            block_size=block,
            gather_logits=True,
            row_order=True,
        )
        for block in (1, BLOCK)
    }


def _states(run: Stepper) -> dict[str, np.ndarray]:
    return {name: cache.copy() for name, cache in run.caches.items() if "state." in name}


def _plain(graph: ir.Model) -> list[Reached]:
    """Return the logits behind each token, and the states that have taken it in."""
    run = Stepper(graph, 1)
    reached = []
    for place in range(LENGTH):
        found = run.step(ROW, TEXT[:, place : place + 1], known=1, rows=1)
        reached.append((found["logits"][0, 0], _states(run)))
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [1, 7, 23])
def test_speculative_is_plain_bit_for_bit(prompt: int, graphs: dict[int, ir.Model]) -> None:
    """A prompt in chunks, then blocks of random width and acceptance, with wrong drafts behind."""
    if _width_changes_products():
        pytest.skip("this machine's matrix products depend on their number of rows")
    want = _plain(graphs[1])
    run, random = Stepper(graphs[BLOCK], 1), np.random.default_rng(prompt)
    place = 0
    while place < prompt:
        width = min(int(random.integers(1, 9)), prompt - place)
        found = run.step(ROW, TEXT[:, place : place + width], known=width, rows=1)
        place += width
        np.testing.assert_array_equal(found["logits"][0, 0], want[place - 1][0])
        run.past[:] = place
    accepted_drafts = 0
    while place + BLOCK <= LENGTH:
        width = int(random.integers(1, BLOCK + 1))
        accepted = int(random.integers(0, width))
        block = TEXT[:, place : place + width].copy()
        block[:, 1 + accepted :] = random.integers(0, VOCAB, (1, width - 1 - accepted))
        found = run.step(ROW, block, known=1, rows=width)
        for row in range(1 + accepted):
            np.testing.assert_array_equal(found["logits"][0, row], want[place + row][0])
        states = _states(run)
        assert len(states) == 4  # of six layers
        for name, state in states.items():  # which have taken in the anchor and no draft
            np.testing.assert_array_equal(state, want[place][1][name])
        place += 1 + accepted
        run.past[:] = place
        accepted_drafts += accepted
    assert accepted_drafts > 5
