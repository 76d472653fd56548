"""A tied table with a row more than the vocabulary: GPU engines have one, so that TensorRT-RTX
stores it once. Here CPU engines have it too, and choose the same tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_models import HIDDEN, MASK_ID, VOCAB, tiny_drafter, tiny_target
from trtllm_dflash import Engine
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.engine_dir.files import MANIFEST_FILE
from trtllm_dflash.engine_dir.manifest import file_entry
from trtllm_dflash.graph.builder import DTYPES
from trtllm_dflash.graph.draft_head import padded_tables
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.options.build import BuildConfig

TABLE = "model.embed_tokens.weight"
PROMPTS = [[5], [7, 8, 9], [MASK_ID, 3, 60, 61, 62]]
DRAFTERS = {"none": None, "dflash": tiny_drafter, "dflash2": tiny_dflash2}


@pytest.mark.parametrize("plugins", [False, True])
@pytest.mark.parametrize(("vocab", "rows"), [(97, 98), (96, 96)])
def test_an_odd_tied_table_gets_a_row_of_zeros(
    vocab: int, rows: int, plugins: bool, tmp_path: Path
) -> None:
    target = load_target(
        tiny_target(tmp_path / "target", tied=True, vocab_size=vocab, head_dim=64, dtype="BF16")
    )
    model = build_step(
        target, None, dtype="bfloat16", cache_len=64, block_size=1, plugins=plugins
    )
    value = model.graph.initializers[f"target.{TABLE}"]
    assert value.const_value is not None
    table = value.const_value.numpy().view(ml_dtypes.bfloat16).reshape(rows, HIDDEN)
    assert (table[:vocab] == target.tensors[TABLE].array()).all()
    assert (table[vocab:] == 0).all()
    assert sorted(node.op_type for node in value.consumers()) == ["Gather", "Gemm"]


def test_other_tables_have_no_more_rows(tmp_path: Path) -> None:
    untied = load_target(tiny_target(tmp_path / "target", dtype="BF16")).config
    tied = load_target(tiny_target(tmp_path / "tied", tied=True, dtype="BF16")).config
    for config, dtype, padded in (
        (untied, "bfloat16", ()),
        (tied, "float32", ()),
        (tied, "bfloat16", (TABLE,)),
    ):
        assert padded_tables(config, DTYPES[dtype]) == padded


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_row_more_is_no_token(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is made one that would be chosen in many steps, if it could be."""
    target = tiny_target(tmp_path / "target", "qwen3", tied=True)
    make = DRAFTERS[kind]
    drafter = str(make(tmp_path / "drafter", target)) if make else None
    sizes = {"max_batch_size": 3, "max_seq_len": 64, "max_num_tokens": 8}
    config = BuildConfig(str(target), tmp_path / "plain", drafter, **sizes)
    plain = build_here(config)
    monkeypatch.setattr("trtllm_dflash.graph.step.padded_tables", lambda *_: (TABLE,))
    padded = build_here(BuildConfig(str(target), tmp_path / "padded", drafter, **sizes))
    _overwrite_last_row(padded)
    found = []
    for directory in (plain, padded):
        engine = Engine.load(directory, num_threads=1)
        answers = engine.generate(PROMPTS, max_tokens=40, logprobs=2)
        found.append([(answer.token_ids, answer.acceptance_lengths) for answer in answers])
    assert found[0] == found[1]


def _overwrite_last_row(directory: Path) -> None:
    path = directory / "rank0.safetensors"
    info = read_tensor_infos(path)[f"target.{TABLE}"]
    assert info.shape == (VOCAB + 1, HIDDEN)
    row = 1e4 * np.random.default_rng(3).standard_normal(HIDDEN).astype(np.float32)
    with path.open("r+b") as file:
        file.seek(info.offset + VOCAB * row.nbytes)
        file.write(row.tobytes())
    facts = json.loads((directory / MANIFEST_FILE).read_text())
    facts["files"][path.name] = file_entry(path)
    (directory / MANIFEST_FILE).write_text(json.dumps(facts))
