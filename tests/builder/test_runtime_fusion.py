"""What is joined for ONNX Runtime gives the same results with fewer nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from tests.graph.stepper import decode
from trtllm_dflash.builder.runtime_fusion import fuse_for_runtime
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.step import build_step

PROMPTS = [np.random.default_rng(length).integers(0, 90, length) for length in (3, 9)]


@pytest.mark.parametrize("weight_only", [None, "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_joined_steps_decide_the_same_tokens(
    name: str,
    weight_only: str | None,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
) -> None:
    target = make_target(name)
    drafter = make_drafter(target, variant="mixed")
    texts, counts = [], []
    for fuse in (False, True):
        model = build_step(
            load_target(target),
            load_drafter(drafter),
            dtype="float32",
            cache_len=64,
            block_size=4,
            weight_only=weight_only,
        )
        if fuse:
            fuse_for_runtime(model)
        counts.append(Counter(node.op_type for node in model.graph))
        texts.append(decode(model, PROMPTS, count=16, chunk=5, widths=[4, 1, 3]))
    assert texts[0] == texts[1]
    product = "MatMulNBits" if weight_only else "Gemm"
    # Of 5 layers: query, key and value, gate and up; of 3 drafter layers key and value besides.
    assert counts[0][product] - counts[1][product] >= 5 * 3 + 3 * 2
    assert counts[1]["SkipSimplifiedLayerNormalization"] >= 2 * (5 + 3) - 2
    assert counts[1]["RMSNormalization"] < counts[0]["RMSNormalization"]
