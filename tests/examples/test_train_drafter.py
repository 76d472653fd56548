"""Training the demo drafter further begins where its file ends."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.examples.scripts import ROOT, example
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos

pytestmark = pytest.mark.slow

DRAFTER = ROOT / "examples" / "demo_pair" / "drafter"
TARGET_CONFIG = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 8192,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
}


def test_training_further_begins_where_the_file_ends(tmp_path: Path) -> None:
    train = example("train_drafter/train.py")
    width = 5 * 576
    scale = 2.0 ** torch.arange(width).remainder(7)  # divides without rounding
    args = Namespace(layers=2, rope_theta=10000.0, init_layers=None, continue_from=DRAFTER)
    weights = {"model.norm.weight": torch.ones(576)}
    drafter = train.build_drafter(args, weights, scale)
    assert all(parameter.requires_grad for parameter in drafter.parameters())
    train.save_drafter(drafter, tmp_path, TARGET_CONFIG, scale)
    expected = read_tensor_infos(DRAFTER / "model.safetensors")
    found = read_tensor_infos(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, info in expected.items():
        assert found[name].array().tobytes() == info.array().tobytes(), name
