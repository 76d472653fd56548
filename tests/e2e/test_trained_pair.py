"""A trained tiny pair (tests/fixtures/trained_pair): acceptance lengths equal the reference's.

Wiring faults show as well: wrong features or a wrong mask id cost half of the acceptance or more.
Causal instead of bidirectional attention hardly does, so test_drafter_numerics exists.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.fixtures.tiny_models import write_safetensors
from tests.fixtures.trained_pair.make_pair import sentences
from trtllm_dflash.checkpoint.loader import load_drafter

pytestmark = pytest.mark.slow

PAIR = Path(__file__).parents[1] / "fixtures" / "trained_pair"
TARGET, DRAFTER = PAIR / "target", PAIR / "drafter"
NEW_TOKENS, BLOCK = 60, 8


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Beginnings of sentences that the pair was not trained on (another seed), of different
    lengths.
    """
    import torch

    rows = sentences(20, torch.Generator().manual_seed(99)).tolist()
    return [row[: 6 + index % 7] for index, row in enumerate(rows)]


@pytest.mark.parametrize("block_size", [2, 4, 6, 8])
def test_tokens_and_acceptance_equal_the_reference(
    block_size: int, prompts: list[list[int]], engine: EngineFactory
) -> None:
    """Step by step; only the reference's last steps differ, whose blocks it shortens at the end of
    the answer.
    """
    target, drafter = hugging_face.load_target(TARGET), hugging_face.load_drafter(DRAFTER)
    ours = engine(TARGET, DRAFTER, block_size=block_size).generate(
        prompts, max_tokens=NEW_TOKENS, drafts="dflash"
    )
    for prompt, out in zip(prompts, ours, strict=True):
        assert out.token_ids == hugging_face.greedy(target, prompt, NEW_TOKENS)
        tokens, lengths = hugging_face.reference_generate(
            drafter, target, prompt, NEW_TOKENS, block_size
        )
        assert out.token_ids == tokens
        committed = np.cumsum(lengths) + 1
        full_blocks = int((committed + block_size <= NEW_TOKENS).sum())
        assert full_blocks > 3
        assert out.acceptance_lengths[:full_blocks] == lengths[:full_blocks]


def test_batches_and_sampling_are_lossless_with_high_acceptance(
    prompts: list[list[int]], engine: EngineFactory
) -> None:
    """With several tokens accepted in a step, rows of a batch drift apart: still each gets what it
    gets alone.
    """
    speculative, plain = engine(TARGET, DRAFTER), engine(TARGET, None)
    seeds = list(range(7, 7 + len(prompts)))
    for options in (
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "min_p": 0.02},
    ):
        alone = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            answers = speculative.generate([prompt], max_tokens=40, seed=seed, **options)
            alone.append(answers[0].token_ids)
        for engine_of_all in (speculative, plain):
            together = engine_of_all.generate(prompts, max_tokens=40, seed=seeds, **options)
            assert [item.token_ids for item in together] == alone


def _with_taps(taps: list[int]) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["dflash_config"].update(target_layer_ids=taps)


def _with_mask(token_id: int) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["dflash_config"].update(mask_token_id=token_id)


# fault -> (what it does to config.json, does it zero fc, largest share of the right acceptance that
# it may keep)
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], bool, float]] = {
    "features from one layer too early": (_with_taps([0, 1, 2]), False, 0.7),
    "features from one layer too late": (_with_taps([2, 3, 4]), False, 0.7),
    "tap ids reversed": (_with_taps([3, 2, 1]), False, 0.7),
    "features zeroed": (_with_taps([1, 2, 3]), True, 0.5),
    "wrong mask token": (_with_mask(61), False, 0.7),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wiring_fault_costs_acceptance(
    fault: str, prompts: list[list[int]], engine: EngineFactory, tmp_path: Path
) -> None:
    """Greedy tokens stay right, because the target decides; the acceptance falls."""
    change, zero_fc, share = FAULTS[fault]
    options: dict[str, Any] = {"max_tokens": NEW_TOKENS, "drafts": "dflash"}
    right = engine(TARGET, DRAFTER).generate(prompts, **options)
    wrong = engine(TARGET, _faulty_drafter(tmp_path / "drafter", change, zero_fc)).generate(
        prompts, **options
    )
    assert [item.token_ids for item in wrong] == [item.token_ids for item in right]
    assert _tau(wrong) < share * _tau(right), (_tau(wrong), _tau(right))


def _faulty_drafter(
    directory: Path, change: Callable[[dict[str, Any]], None], zero_fc: bool
) -> Path:
    shutil.copytree(DRAFTER, directory)
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {
        name: np.array(info.array()) for name, info in load_drafter(DRAFTER).tensors.items()
    }
    if zero_fc:
        tensors["fc.weight"][:] = 0
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def _tau(generations: list[Any]) -> float:
    lengths = [length for item in generations for length in item.acceptance_lengths]
    return sum(lengths) / len(lengths)


def test_a_draft_vocabulary_costs_acceptance_and_nothing_else(
    prompts: list[list[int]], engine: EngineFactory, tmp_path: Path
) -> None:
    """Drafts come from the list alone; the tokens stay the target's."""
    listed = list(range(0, 67, 2))
    (tmp_path / "even.json").write_text(json.dumps(listed))
    options: dict[str, Any] = {"max_tokens": NEW_TOKENS, "drafts": "dflash"}
    everything = engine(TARGET, DRAFTER).generate(prompts, **options)
    even = engine(TARGET, DRAFTER, draft_vocab=str(tmp_path / "even.json")).generate(
        prompts, **options
    )
    assert [item.token_ids for item in even] == [item.token_ids for item in everything]
    assert 1 < _tau(even) < _tau(everything)
    for item in even:
        ends = np.cumsum(item.acceptance_lengths)
        accepted = set(range(len(item.token_ids))) - {0} - set(ends.tolist())
        assert {item.token_ids[place] for place in accepted} <= set(listed)
