"""Builds with drafters of other makers: what is planned, refused, and compiled for sm120."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.speculators import DRAFT_IDS, METHODS, speculators_drafter
from tests.fixtures.tiny_models import DRAFTER, tiny_drafter, tiny_target
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.checkpoint.writer import write_arrays
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import BuildConfig


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """Write a target, and a drafter with a vocabulary of its own."""
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = speculators_drafter(tmp_path / "drafter", target, method="dspark")
    return {"target": str(target), "drafter": str(drafter)}


def test_a_plan_knows_the_drafters_own_tables(pair: dict[str, str], tmp_path: Path) -> None:
    models = resolve_models(BuildConfig(**pair, output_dir=tmp_path, max_seq_len=64))
    rows = dict(summary_rows(models))
    assert rows["drafted"] == f"{len(DRAFT_IDS)} of 97 tokens, with a head of the drafter's own"
    assert rows["block"] == "5 tokens (trained with 5); run verifies as many drafts as pay"
    assert models.draft_vocab is not None
    assert models.draft_vocab.tolist() == list(DRAFT_IDS)
    stored = sum(model.nbytes for model in models.checkpoints.values())
    again = 4 * len(DRAFT_IDS) * METHODS["dspark"]["markov_rank"]  # W1's rows of the list
    assert models.weight_bytes == stored + again


def test_a_list_beside_the_drafters_own(pair: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[1, 2]")
    options = {"draft_vocab": str(tmp_path / "ids.json"), "max_seq_len": 64}
    words = f"the drafter has a head over {len(DRAFT_IDS)} tokens of its own choice"
    with pytest.raises(UsageError, match=words):
        resolve_models(BuildConfig(**pair, output_dir=tmp_path, **options))


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


@pytest.mark.slow
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
    walk = {"argmax"} if case == "sinks" else {"select"}
    assert kernels == {"accept", "adjust", "attention, head_dim 64", "lookup"} | walk
