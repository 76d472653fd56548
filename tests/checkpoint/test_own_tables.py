"""Vocabulary, head and embedding of a drafter's own: what is used, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.speculators import DRAFT_IDS, speculators_drafter
from tests.fixtures.tiny_models import HIDDEN, VOCAB
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair, draft_ids
from trtllm_dflash.errors import CheckpointError

Maker = Callable[..., Path]
COUNT = len(DRAFT_IDS)
OFFSETS = np.array(DRAFT_IDS, np.int64) - np.arange(COUNT)
FLAGS = np.isin(np.arange(VOCAB), DRAFT_IDS).astype(np.uint8)


@pytest.fixture
def target(make_target: Maker) -> Path:
    return make_target("qwen3")


def changed(array: np.ndarray, index: int, value: int) -> np.ndarray:
    """Return a copy with one element changed."""
    array = array.copy()
    array[index] = value
    return array


def table(target: Path, name: str) -> np.ndarray:
    """Return a tensor of a target."""
    return np.array(load_target(target).tensors[name].array())


def test_offsets_are_added_to_the_row(target: Path, tmp_path: Path) -> None:
    drafter = load_drafter(speculators_drafter(tmp_path, target))
    ids = draft_ids(drafter)
    assert ids is not None
    assert ids.tolist() == list(DRAFT_IDS)
    assert drafter.tensors["lm_head.weight"].shape == (COUNT, HIDDEN)
    assert check_pair(load_target(target), drafter) == drafter


def test_a_list_in_any_order_and_without_flags(target: Path, tmp_path: Path) -> None:
    ids = np.array(DRAFT_IDS[::-1])
    offsets = {"d2t": ids - np.arange(COUNT)}
    directory = speculators_drafter(tmp_path, target, tensors=offsets)
    assert draft_ids(load_drafter(directory)).tolist() == ids.tolist()


BAD: list[tuple[str, np.ndarray, str]] = [
    (
        "d2t",
        changed(OFFSETS, 3, VOCAB),
        rf"d2t\[3\] is {VOCAB}, so row 3 .* token 3 \+ {VOCAB}",
    ),
    ("d2t", changed(OFFSETS, 0, -1), r"row 0 of the head stands for token 0 \+ -1 = -1"),
    ("d2t", changed(OFFSETS, 1, 2**63 - 1), "and tokens are 0 to 96"),
    (
        "d2t",
        changed(OFFSETS, 2, OFFSETS[1] - 1),
        f"{COUNT} rows .* for {COUNT - 1} tokens only",
    ),
    # Ids where offsets belong: with a row's number added, they are not the flagged ones.
    ("d2t", np.arange(COUNT), "t2d .*is taken as an offset"),
    ("d2t", OFFSETS[:-1], rf"d2t has \[{COUNT - 1}\], expected \[{COUNT}\]"),
    ("d2t", OFFSETS.astype(np.float32), "tensor d2t is F32, expected I64 or I32"),
    (
        "t2d",
        changed(FLAGS, 1, 1),
        rf"t2d has token 1 and d2t has not .*{COUNT} .* t2d {COUNT + 1}",
    ),
    ("t2d", changed(FLAGS, 3, 0), "d2t has token 3 and t2d has not"),
    ("t2d", FLAGS[:-1], r"t2d has \[96\], expected \[97\]"),
    ("t2d", FLAGS.astype(np.int64), "tensor t2d is I64, expected BOOL"),
    ("lm_head.weight", np.zeros((VOCAB, HIDDEN), np.float32), rf"expected \[{COUNT}, 48\]"),
]


@pytest.mark.parametrize(("name", "array", "words"), BAD)
def test_refused_lists(
    name: str, array: np.ndarray, words: str, target: Path, tmp_path: Path
) -> None:
    directory = speculators_drafter(tmp_path, target, tensors={name: array})
    with pytest.raises(CheckpointError, match=words):
        load_drafter(directory)


def test_a_list_that_is_missing(target: Path, tmp_path: Path) -> None:
    directory = speculators_drafter(
        tmp_path, target, draft_ids=None, config={"draft_vocab_size": 9}
    )
    with pytest.raises(CheckpointError, match=r"missing: lm_head.weight \[9, 48\]"):
        load_drafter(directory)
    head = {"lm_head.weight": np.zeros((9, HIDDEN), np.float32)}
    directory = speculators_drafter(
        tmp_path / "head", target, draft_ids=None, config={"draft_vocab_size": 9}, tensors=head
    )
    with pytest.raises(CheckpointError, match="9 of 97 tokens, but there is no tensor d2t"):
        load_drafter(directory)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_copies_are_shared_and_others_are_used(
    name: str, target: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = load_target(target)
    copy = table(target, {"embed_tokens.weight": "model.embed_tokens.weight"}.get(name, name))
    for folder, is_own in (("copy", False), ("own", True)):
        copy[5, 7] += is_own
        directory = speculators_drafter(
            tmp_path / folder, target, draft_ids=None, tensors={name: copy}
        )
        drafter = check_pair(theirs, load_drafter(directory))
        assert (name in drafter.tensors) is is_own
        assert (name in drafter.ignored) is not is_own
        assert ("index [5, 7]: it is used as the drafter's own" in caplog.text) is is_own


@pytest.mark.parametrize("rows", [VOCAB - 1, VOCAB + 3])
def test_own_tables_of_another_length(rows: int, target: Path, tmp_path: Path) -> None:
    """A head may have other rows than the target; an embedding needs one for every token."""
    theirs = load_target(target)
    own = np.full((rows, HIDDEN), 0.5, np.float32)
    sizes = {"transformer_layer_config": None, "draft_vocab_size": rows, "mask_token_id": 3}
    for name in ("lm_head.weight", "embed_tokens.weight"):
        directory = speculators_drafter(
            tmp_path / name, target, draft_ids=None, tensors={name: own}
        )
        config = json.loads((directory / "config.json").read_text())
        body = config["transformer_layer_config"] | {"vocab_size": rows}
        sizes |= {"transformer_layer_config": body}
        (directory / "config.json").write_text(json.dumps(config | sizes))
        drafter = load_drafter(directory)
        if name == "embed_tokens.weight" and rows < VOCAB:
            with pytest.raises(
                CheckpointError, match=f"has {rows} rows, but tokens of the target"
            ):
                check_pair(theirs, drafter)
            continue
        shape = check_pair(theirs, drafter).tensors[name].shape
        assert shape == (min(rows, VOCAB), HIDDEN), (
            "no draft is outside the target's vocabulary"
        )


TRAINING: list[tuple[str, str]] = [
    ("verifier_norm.weight", "model.norm.weight"),
    ("verifier_lm_head.weight", "lm_head.weight"),
]


@pytest.mark.parametrize("ids", [DRAFT_IDS, None])
@pytest.mark.parametrize(("name", "original"), TRAINING)
def test_copies_kept_for_training(
    name: str, original: str, ids: tuple[int, ...] | None, target: Path, tmp_path: Path
) -> None:
    """They are of no use in an engine, and show whether this is the target."""
    theirs = load_target(target)
    copy = table(target, original)
    if ids is not None and copy.ndim == 2:
        copy = copy[list(ids)]
    good = speculators_drafter(tmp_path / "a", target, draft_ids=ids, tensors={name: copy})
    check_pair(theirs, load_drafter(good))
    copy[-1] += 1
    bad = speculators_drafter(tmp_path / "b", target, draft_ids=ids, tensors={name: copy})
    with pytest.raises(CheckpointError, match=rf"{name} differs .* It was trained for another"):
        check_pair(theirs, load_drafter(bad))


def verifier(**keys: Any) -> dict[str, Any]:
    """Return the section of config.json that names a target."""
    return {"speculators_config": {"verifier": keys}}


def test_a_target_that_is_another_model(target: Path, tmp_path: Path) -> None:
    keys = verifier(architectures=["LlamaForCausalLM"], name_or_path="meta-llama/x")
    drafter = load_drafter(speculators_drafter(tmp_path, target, config=keys))
    words = (
        r"trained for a LlamaForCausalLM \(meta-llama/x\), and the target is a Qwen3ForCausalLM"
    )
    with pytest.raises(CheckpointError, match=words):
        check_pair(load_target(target), drafter)


@pytest.mark.parametrize("names", [["Qwen3ForConditionalGeneration"], ["Qwen3ForCausalLM"], []])
def test_the_same_decoder_under_other_names(
    names: list[str], target: Path, tmp_path: Path
) -> None:
    keys = verifier(architectures=names, name_or_path="somebody/a-quantized-copy")
    check_pair(
        load_target(target), load_drafter(speculators_drafter(tmp_path, target, config=keys))
    )


def test_tokens_that_the_target_lacks(make_target: Maker, target: Path, tmp_path: Path) -> None:
    drafter = load_drafter(speculators_drafter(tmp_path, target, mask_token_id=1))
    smaller = load_target(make_target("qwen3", vocab_size=VOCAB - 3))
    with pytest.raises(
        CheckpointError, match="drafts token 95, but tokens of the target are 0 to"
    ):
        check_pair(smaller, drafter)
