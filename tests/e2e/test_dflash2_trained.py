"""A trained drafter of DFlash 2: acceptance lengths equal the reference's, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.fixtures.tiny_models import write_safetensors
from tests.fixtures.trained_pair.make_dflash2 import HERE, write_dflash2
from tests.fixtures.trained_pair.make_pair import sentences
from trtllm_dflash.checkpoint.index import read_all_tensor_infos

pytestmark = pytest.mark.slow

TARGET = HERE / "target"
NEW_TOKENS = 60


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dflash2(tmp_path_factory.mktemp("pair") / "dflash2")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Beginnings of sentences of another seed, of different lengths."""
    import torch

    rows = sentences(8, torch.Generator().manual_seed(99)).tolist()
    return [row[: 6 + index % 7] for index, row in enumerate(rows)]


@pytest.mark.parametrize("block_size", [3, 8])
def test_acceptance_equals_the_reference(
    block_size: int, drafter: Path, prompts: list[list[int]], engine: EngineFactory
) -> None:
    """The reference's last blocks are shorter, and those alone may differ."""
    model, reference = hugging_face.load_target(TARGET), hugging_face.load_drafter(drafter)
    ours = engine(TARGET, drafter, block_size=block_size).generate(
        prompts, max_tokens=NEW_TOKENS, drafts="dflash"
    )
    lengths_of_all = []
    for prompt, out in zip(prompts, ours, strict=True):
        tokens, lengths = hugging_face.reference_generate(
            reference, model, prompt, NEW_TOKENS, block_size
        )
        assert out.token_ids == tokens
        full_blocks = int((np.cumsum(lengths) + 1 + block_size <= NEW_TOKENS).sum())
        assert full_blocks > 3
        assert out.acceptance_lengths[:full_blocks] == lengths[:full_blocks]
        lengths_of_all += lengths[:full_blocks]
    assert np.mean(lengths_of_all) > 0.8 * block_size


def test_drafts_change_no_text(
    drafter: Path, prompts: list[list[int]], engine: EngineFactory, tmp_path: Path
) -> None:
    """Greedy and sampled, alone and together, with a draft vocabulary and without drafts."""
    (tmp_path / "even.json").write_text(json.dumps(list(range(0, 67, 2))))
    engines = [
        engine(TARGET, None),
        engine(TARGET, drafter),
        engine(TARGET, drafter, draft_vocab=str(tmp_path / "even.json")),
    ]
    seeds = list(range(7, 7 + len(prompts)))
    for options in ({"temperature": 0}, {"temperature": 1.0, "top_k": 20}):
        texts = []
        for one in engines:
            answers = one.generate(prompts, max_tokens=40, seed=seeds, **options)
            texts.append([item.token_ids for item in answers])
        assert texts[0] == texts[1] == texts[2]
        alone = engines[1].generate(prompts[:1], max_tokens=40, seed=seeds[:1], **options)
        assert alone[0].token_ids == texts[1][0]


@pytest.mark.parametrize(
    ("part", "axis", "share"), [("base_kernel", 0, 0.9), ("base_kernel", 1, 0.5)]
)
def test_a_wiring_fault_costs_acceptance(
    part: str,
    axis: int,
    share: float,
    drafter: Path,
    prompts: list[list[int]],
    engine: EngineFactory,
    tmp_path: Path,
) -> None:
    """Sides or offsets of the convolutions the other way round: the tokens stay right."""
    tensors: dict[str, Any] = {
        name: np.array(info.array()) for name, info in read_all_tensor_infos(drafter).items()
    }
    for name in tensors:
        if name.endswith(part):
            tensors[name] = np.flip(tensors[name], axis)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "config.json").write_text((drafter / "config.json").read_text())
    write_safetensors(wrong / "model.safetensors", tensors)
    found = {}
    for name, directory in (("right", drafter), ("wrong", wrong)):
        answers = engine(TARGET, directory).generate(
            prompts, max_tokens=NEW_TOKENS, drafts="dflash"
        )
        lengths = [length for item in answers for length in item.acceptance_lengths]
        found[name] = [item.token_ids for item in answers], float(np.mean(lengths))
    assert found["right"][0] == found["wrong"][0]
    assert found["wrong"][1] < share * found["right"][1], found
