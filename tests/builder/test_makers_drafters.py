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


@pytest.mark.parametrize("maker", ["speculators", "modelopt"])
def test_an_engine_for_sm120(maker: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = tiny_target(tmp_path / "target", "qwen3", head_dim=64)
    if maker == "speculators":
        drafter = speculators_drafter(tmp_path / "drafter", target, head_dim=64)
    else:
        drafter = with_sinks(tiny_drafter(tmp_path / "drafter", target, head_dim=64))
    sizes = {"max_batch_size": 2, "max_seq_len": 64}
    engine = tmp_path / "engine"
    build_engine(BuildConfig(str(target), engine, str(drafter), arch="sm120", **sizes))
    dflash = json.loads((engine / "config.json").read_text())["dflash"]
    drafted = len(DRAFT_IDS) if maker == "speculators" else 97
    assert dflash["draft_vocab_size"] == drafted
    assert dflash["block_size"] == (4 if maker == "speculators" else 5)
    assert manifest.check(engine, deep=True) == []
    assert [kernel["kernel"] for kernel in manifest.load(engine)["kernels"]] == [
        "accept",
        "attention, head_dim 64",
    ]
