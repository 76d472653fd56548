"""The quick look at hybrid targets: blocks that are accepted in part, and Hugging Face's tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import BLOCK, VOCAB, tiny_drafter
from tests.graph.stepper import Stepper
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.step import build_step

PROMPT = np.arange(5, 14)
COUNT, RIGHT = 10, 2  # tokens of an answer, and right drafts of each block


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5", "qwen3_5_moe"])
def test_blocks_accepted_in_part(name: str, tmp_path: Path) -> None:
    """Three of the four layers have a state; the last of a block's three drafts is wrong."""
    sizes = {"layers": 4, "experts": 3, "top_k": 2}
    target = tiny_hybrid(tmp_path / "target", name, sizes=sizes)
    model = hugging_face.load_target(target)
    text = hugging_face.greedy(model, PROMPT.tolist(), COUNT + BLOCK)
    drafter = tiny_drafter(tmp_path / "drafter", target, taps=(0,), num_layers=1)
    graph = build_step(
        load_target(target),
        load_drafter(drafter),
        dtype="float32",
        cache_len=64,
        block_size=BLOCK,
    )
    run = Stepper(graph, 1)
    answer = [run.prompt(0, PROMPT, chunk=5)]
    while len(answer) < COUNT:
        block = run._next[0]
        block[1:] = text[len(answer) : len(answer) + BLOCK - 1]
        block[-1] = (block[-1] + 1) % VOCAB
        (new,) = run.generate(BLOCK)
        assert len(new) == RIGHT + 1
        answer += new
    assert answer == text[: len(answer)]
