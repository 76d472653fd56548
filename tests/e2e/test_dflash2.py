"""Drafters of DFlash 2 against the reference package, draft by draft.

The reference is one pass of Hugging Face's target over the whole text. The package's drafter and
selector then take all its features at once, without any cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.hybrids import BLOCK, NEW_TOKENS, PROMPTS, answers, with_oracle
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_models import DRAFTER_VARIANTS, MASK_ID, tiny_target, write_safetensors
from trtllm_dflash import Engine
from trtllm_dflash.checkpoint.index import read_all_tensor_infos

Proposals = list[tuple[list[int], list[int]]]
TRAINED_BLOCK = 8


def _proposals(engine: Engine, target: Path, chunk: int | None = None) -> Proposals:
    """Return what the drafter drafts behind many beginnings of the answers to PROMPTS.

    Of an oracle's drafts some are accepted in each step, so that slots drift apart.
    """
    model = hugging_face.load_target(target)
    texts = [hugging_face.greedy(model, prompt, NEW_TOKENS + BLOCK) for prompt in PROMPTS]
    guided, oracle = with_oracle(engine, texts, seed=4, chunk=chunk)
    assert answers(guided) == [text[:NEW_TOKENS] for text in texts]
    assert answers(engine) == [text[:NEW_TOKENS] for text in texts]
    assert len(oracle.proposals) > 20
    return oracle.proposals


def _assert_the_references(proposals: Proposals, target: Path, drafter: Path) -> None:
    model, reference = hugging_face.load_target(target), hugging_face.load_drafter(drafter)
    for text, drafts in proposals:
        assert drafts == hugging_face.drafts_without_caches(
            reference, model, text, MASK_ID, len(drafts) + 1
        )


def test_drafts_equal_the_reference(engine: EngineFactory, tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_dflash2(tmp_path / "drafter", target, variant="mixed")
    _assert_the_references(_proposals(engine(target, drafter), target), target, drafter)


@pytest.mark.slow
@pytest.mark.parametrize("variant", DRAFTER_VARIANTS)
def test_every_mask(variant: str, engine: EngineFactory, tmp_path: Path) -> None:
    """With other sizes of the convolutions, a tied target, and prompts in chunks."""
    target = tiny_target(tmp_path / "target", "qwen3", tied=True)
    sizes = {"conv_kernel_size": 3, "conv_group_size": 12, "selector_top_k": 64}
    drafter = tiny_dflash2(
        tmp_path / "drafter",
        target,
        variant=variant,
        settings=sizes,
        keys_in="top",
        block_size=TRAINED_BLOCK,
    )
    found = _proposals(engine(target, drafter), target, chunk=5)
    _assert_the_references(found, target, drafter)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [2, 3, 8])
def test_every_block_size(block_size: int, engine: EngineFactory, tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "llama")
    drafter = tiny_dflash2(tmp_path / "drafter", target, block_size=TRAINED_BLOCK)
    found = _proposals(engine(target, drafter, block_size=block_size), target)
    assert {len(drafts) for _, drafts in found} == {block_size - 1}
    _assert_the_references(found, target, drafter)


@pytest.mark.slow
def test_scaled_and_capped_logits(engine: EngineFactory, tmp_path: Path) -> None:
    """They change what the selector chooses: unlike pair scores, logits shrink."""
    target = tiny_target(tmp_path / "target", "qwen3")
    plain = tiny_dflash2(tmp_path / "plain", target)
    scaled = tiny_dflash2(
        tmp_path / "scaled",
        target,
        config={"output_multiplier": 0.4, "final_logit_softcapping": 1.5},
    )
    found = _proposals(engine(target, scaled), target)
    _assert_the_references(found, target, scaled)
    assert _share_changed(found, _proposals(engine(target, plain), target)) > 0.2


@pytest.mark.slow
def test_codebooks_stored_without_weight(engine: EngineFactory, tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "qwen3")
    usual = tiny_dflash2(tmp_path / "usual", target)
    other = tiny_dflash2(tmp_path / "other", target, codebook_suffix="")
    found = _proposals(engine(target, other), target)
    assert found == _proposals(engine(target, usual), target)
    _assert_the_references(found, target, other)


def _swapped(tensors: dict[str, np.ndarray], first: str, second: str) -> None:
    for name in [name for name in tensors if first in name]:
        other = name.replace(first, second)
        tensors[name], tensors[other] = tensors[other], tensors[name]


def _reversed(part: str, axis: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith(part):
                tensors[name] = np.flip(tensors[name], axis)

    return change


def _zeroed(part: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if part in name:
                tensors[name] = np.zeros_like(tensors[name])

    return change


FAULTS: dict[str, Callable[[dict[str, np.ndarray]], None]] = {
    "sides swapped": _reversed("base_kernel", 0),
    "offsets in the other order": _reversed("base_kernel", 1),
    "groups in the other order": _reversed("kernel_projection.weight", 0),
    "convolutions of attention and MLP swapped": lambda t: _swapped(
        t, "attention_conv", "mlp_conv"
    ),
    "no dynamic part": _zeroed("kernel_projection"),
    "codebooks swapped": lambda t: _swapped(t, "predecessor", "successor"),
    "no pair scores": _zeroed("successor_codebook"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wiring_fault_would_change_drafts(
    fault: str, engine: EngineFactory, tmp_path: Path
) -> None:
    """The comparisons above would see it: a part in the wrong place drafts otherwise."""
    target = tiny_target(tmp_path / "target", "qwen3")
    right = tiny_dflash2(tmp_path / "right", target)
    wrong = _changed(right, tmp_path / "wrong", FAULTS[fault])
    found = _proposals(engine(target, right), target)
    assert _share_changed(found, _proposals(engine(target, wrong), target)) > 0.3


@pytest.mark.slow
def test_the_anchor_decides_in_blocks_of_two(engine: EngineFactory, tmp_path: Path) -> None:
    """There the anchor is the only one before a draft."""
    target = tiny_target(tmp_path / "target", "qwen3")
    right = tiny_dflash2(tmp_path / "right", target)
    wrong = _changed(right, tmp_path / "wrong", _zeroed("predecessor_codebook"))
    found = _proposals(engine(target, right, block_size=2), target)
    other = _proposals(engine(target, wrong, block_size=2), target)
    assert _share_changed(found, other) > 0.3


@pytest.mark.slow
def test_a_draft_vocabulary(engine: EngineFactory, tmp_path: Path) -> None:
    """Candidates come from the list; with all tokens in it, the drafts are those without one."""
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_dflash2(tmp_path / "drafter", target)
    lists = {"all": list(range(97)), "even": list(range(0, 97, 2)), "few": [3, 50, 51]}
    found = {}
    for name, ids in lists.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(ids))
        listed = engine(target, drafter, draft_vocab=str(tmp_path / f"{name}.json"))
        found[name] = _proposals(listed, target)
        drafted = {token for _, drafts in found[name] for token in drafts}
        assert drafted <= set(ids)
    assert found["all"] == _proposals(engine(target, drafter), target)
    assert found["even"] != found["all"]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [90, 97, 130])
def test_codebooks_of_a_padded_vocabulary(
    rows: int, engine: EngineFactory, tmp_path: Path
) -> None:
    """Of more rows the first are used; tokens behind fewer rows are not drafted."""
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_dflash2(tmp_path / "drafter", target, mask_token_id=5, codebook_rows=rows)
    model, reference = hugging_face.load_target(target), hugging_face.load_drafter(drafter)
    found = _proposals(engine(target, drafter), target)
    assert max(token for _, drafts in found for token in drafts) < min(rows, 97)
    if rows >= 97:
        for text, drafts in found:
            assert drafts == hugging_face.drafts_without_caches(
                reference, model, text, 5, len(drafts) + 1
            )


def _changed(
    drafter: Path, directory: Path, change: Callable[[dict[str, np.ndarray]], None]
) -> Path:
    """Write a copy of a drafter whose tensors `change` has changed."""
    tensors: dict[str, Any] = {
        name: np.array(info.array()) for name, info in read_all_tensor_infos(drafter).items()
    }
    change(tensors)
    directory.mkdir()
    (directory / "config.json").write_text((drafter / "config.json").read_text())
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def _share_changed(found: Proposals, other: Proposals) -> float:
    """Return the share of texts behind which two drafters draft different tokens."""
    assert [text for text, _ in found] == [text for text, _ in other]
    pairs = zip(found, other, strict=True)
    return float(np.mean([ours[1] != theirs[1] for ours, theirs in pairs]))
