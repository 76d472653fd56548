"""Steps of tiny hybrid targets: logits of prompts, blocks and drafts against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.tiny_hybrid import HYBRIDS, tiny_hybrid
from tests.fixtures.tiny_models import BLOCK, VOCAB, tiny_drafter
from tests.graph.stepper import Stepper, decode
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.step import build_step

CACHE = 96
# between two forms of the same layer, transformers' own differ by 1e-5 of the scale
TOLERANCE = 1e-4


def _logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    """Return transformers' logits of every position of one pass."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return logits


def _step(directory: Path, block_size: int = 1, **options: Any) -> ir.Model:
    sizes: dict[str, Any] = {"dtype": "float32", "cache_len": CACHE, "block_size": block_size}
    return build_step(load_target(directory), options.pop("drafter", None), **sizes, **options)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", HYBRIDS)
def test_logits_equal_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    """Two prompts, in chunks of different widths."""
    directory = tiny_hybrid(tmp_path, name, tied=tied, fused=tied)
    random = np.random.default_rng(1)
    ids = random.integers(0, VOCAB - 2, (2, 70))
    want = _logits(directory, ids)
    run = Stepper(_step(directory, gather_logits=True), 2)
    while (past := int(run.past[0])) < 70:
        width = min(int(random.integers(1, 40)), 70 - past)
        logits = run.step(slice(None), ids[:, past : past + width], known=width, rows=1)[
            "logits"
        ]
        run.past[:] = past + width
        of_last = want[:, past + width - 1]
        np.testing.assert_allclose(
            logits[:, 0], of_last, rtol=0, atol=TOLERANCE * np.abs(want).max()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_widths_and_drafts_change_no_token(name: str, tmp_path: Path) -> None:
    """A plain engine, and one with a drafter in slots at different lengths."""
    target = tiny_hybrid(tmp_path / "target", name)
    taps = (0, 3)  # a gated delta net, and a layer with attention
    drafter = load_drafter(tiny_drafter(tmp_path / "drafter", target, taps=taps))
    random = np.random.default_rng(2)
    prompts = [random.integers(0, VOCAB - 2, count) for count in (3, 17, 40)]
    sizes: dict[str, Any] = {"count": 24, "chunk": 7}
    plain = decode(_step(target), prompts, widths=[1], **sizes)
    drafted = _step(target, BLOCK, drafter=drafter)
    assert decode(drafted, prompts, widths=[BLOCK, 1, 3, 2], **sizes) == plain
    assert len({tuple(answer) for answer in plain}) == len(prompts)
