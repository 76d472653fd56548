"""Engines for sm120 with drafters of other makers: what a step of theirs has beside DFlash v1's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.speculators import DRAFT_IDS, speculators_drafter
from tests.fixtures.tiny_models import DRAFTER, tiny_drafter, tiny_target
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.checkpoint.writer import write_arrays
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.options.build import BuildConfig

pytestmark = pytest.mark.slow


def with_sinks(drafter: Path) -> Path:
    """Add attention sinks to a drafter, scaled embeddings, and rows that predict the next token."""
    infos = read_tensor_infos(drafter / "model.safetensors")
    arrays = {name: (info.dtype, np.array(info.array())) for name, info in infos.items()}
    for layer in range(DRAFTER["layers"]):
        sinks = np.linspace(-2, 3, DRAFTER["q_heads"], dtype=np.float32)
        arrays[f"layers.{layer}.self_attn.attention_sink_bias"] = ("F32", sinks)
    write_arrays(drafter / "model.safetensors", arrays)
    config = json.loads((drafter / "config.json").read_text())
    config |= {"attention_sink_bias": True, "input_embedding_scale": 7.25, "shift_label": True}
    (drafter / "config.json").write_text(json.dumps(config))
    return drafter


@pytest.mark.parametrize("case", ["own vocabulary and Markov head", "sinks"])
def test_an_engine_for_sm120(case: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = tiny_target(tmp_path / "target", "qwen3", head_dim=64)
    if case == "sinks":
        drafter = with_sinks(tiny_drafter(tmp_path / "drafter", target, head_dim=64))
    else:
        drafter = speculators_drafter(
            tmp_path / "drafter", target, method="dspark", head_dim=64
        )
    sizes = {"max_batch_size": 2, "max_seq_len": 64}
    engine = tmp_path / "engine"
    build_engine(BuildConfig(str(target), engine, str(drafter), arch="sm120", **sizes))
    dflash = json.loads((engine / "config.json").read_text())["dflash"]
    assert dflash["draft_vocab_size"] == (97 if case == "sinks" else len(DRAFT_IDS))
    assert dflash["block_size"] == 5, "four rows draft"
    assert manifest.check(engine, deep=True) == []
    kernels = {kernel["kernel"] for kernel in manifest.load(engine)["kernels"]}
    walk = set() if case == "sinks" else {"select"}
    assert kernels == {"accept", "attention, head_dim 64"} | walk
