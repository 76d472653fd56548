"""The registry and the code agree: each row's config.json goes through the readers that `build`
uses.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_dflash.builder import pair_support
from trtllm_dflash.builder.pair_support import check_support, list_support, markdown_table
from trtllm_dflash.catalog.pairs import PAIRS
from trtllm_dflash.catalog.published import DFLASH, Pair, drafter_json, target_json
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.errors import BuildError, CheckpointError, ConfigError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.models.registry import TARGET_FAMILIES

BY_NAME = {pair.name: pair for pair in PAIRS}


def test_a_drafter_whose_sizes_are_not_published_is_not_made_up() -> None:
    assert pair_support.published_drafter("z-lab/MiniMax-M2.5-DFlash") is None
    found = pair_support.published_drafter("GPT-OSS-120B-DFlash")
    assert found is not None
    assert found.config.hidden_size == 2880


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_loader_says_the_same_of_every_row(pair: Pair, tmp_path: Path) -> None:
    """A directory with the row's config.json: the loader refuses it as the registry says, or goes
    on to the weights. It does so as well where tensors decide about a method of quantization.
    """
    reasons = []
    for half, load, config in (
        ("target", load_target, target_json(pair.target)),
        ("drafter", load_drafter, drafter_json(pair.drafter)),
    ):
        if not config:
            reasons.append("its config.json could not be read for the table of pairs")
            continue
        directory = tmp_path / half
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            load(directory)
        text = str(caught.value)
        if "there is neither model.safetensors nor" not in text:
            reasons.append(text.split(": ", 1)[1])
    status = check_support(pair)
    by_label = "as ModelOpt writes them"
    assert [text for _, text in status.reasons if by_label not in text] == reasons
    assert bool(status.archs) == (not status.reasons)


@pytest.mark.parametrize("status", list_support(), ids=lambda status: status.pair.name)
def test_a_refusal_is_not_for_a_gap_in_the_row(
    status: pair_support.PairSupport,
) -> None:
    for reason in status.refusals:
        assert "is missing" not in reason
    if status.pair.target.architecture not in TARGET_FAMILIES:
        whys = ("architectures", "quant", "could not be read")
        assert any(why in reason for reason in status.refusals for why in whys)


def test_what_fits_is_checked_too() -> None:
    pair = BY_NAME["Qwen3-8B"]
    assert check_support(pair).archs == tuple(ARCHS)
    other = replace(pair, drafter=BY_NAME["Qwen3-4B"].drafter)
    assert (
        "hidden_size is 2560 in the drafter and 4096 in the target"
        in check_support(other).refusals[0]
    )
    small = replace(pair.target, config={**pair.target.config, "head_dim": 80})
    assert (
        "no attention kernel for the target's head_dim 80"
        in check_support(replace(pair, target=small)).refusals[0]
    )
    fp8 = replace(
        pair.target,
        config={
            **pair.target.config,
            "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        },
    )
    assert check_support(replace(pair, target=fp8)).archs == (
        "cpu",
        "sm120",
        "sm121",
        "sm100",
        "sm103",
    )


def test_what_is_refused_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = next(
        status
        for status in list_support()
        if status.refusals and status.pair.drafter.architecture == DFLASH
    )
    name = refused.pair.name
    with pytest.raises(BuildError, match=re.escape(refused.refusals[0])):
        pair_support.reject_unsupported_pair(name, refused.pair.drafter.repository)
    by_drafter = {
        status.pair.drafter.repository: dict(status.reasons) for status in list_support()
    }
    drafter = next(name for name, reasons in by_drafter.items() if "drafter" in reasons)
    reason = by_drafter[drafter]["drafter"]
    with pytest.raises(BuildError, match=re.escape(reason)):
        pair_support.reject_unsupported_pair(str(tmp_path), drafter)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    pair_support.reject_unsupported_pair(name, None)  # a directory: its own files will speak
    pair_support.reject_unsupported_pair("Qwen3-8B", "Qwen3-8B-DFlash-b16")
    with pytest.raises(BuildError, match=re.escape(reason)):
        pair_support.reject_unsupported_pair("Qwen3-8B", drafter.split("/")[-1].lower())


def test_a_refusal_names_the_hand_over() -> None:
    words = "`dflash-trt export-trtllm --target Kimi-K2.5` writes what it needs"
    with pytest.raises(BuildError, match=words):
        pair_support.reject_unsupported_pair("Kimi-K2.5", None)
    with pytest.raises(BuildError) as caught:
        pair_support.reject_unsupported_pair("gemma-4-12B-it", None)
    assert "export-trtllm" not in str(caught.value)


def test_a_pair_beyond_one_gpu_is_planned_and_not_fetched(tmp_path: Path) -> None:
    status = check_support(BY_NAME["Qwen3.5-397B-A17B"])
    assert status.builds == "hand-over"
    with pytest.raises(BuildError, match=r"larger than one GPU.*--dry-run plans this build"):
        pair_support.reject_handed_over("qwen3.5-397b-a17b")
    pair_support.reject_handed_over("Qwen3.5-4B")
    pair_support.reject_handed_over(str(tmp_path))


def test_inferred_sizes_are_for_plans_alone() -> None:
    """1.3 billion parameters as published, with fc, 6 layers, norms left out."""
    drafter = BY_NAME["Qwen3.5-397B-A17B"].drafter
    assert "target_layer_ids" not in drafter.config
    found = pair_support.published_drafter(drafter.repository)
    assert found is not None
    total = sum(math.prod(info.shape) for info in found.tensors.values())
    assert total * 2 / 2**30 == pytest.approx(2.41, abs=0.005)


def test_the_table_has_a_row_for_each_pair() -> None:
    lines = markdown_table(list_support()).splitlines()
    assert len(lines) == len(PAIRS) + 2
    assert (
        lines[3]
        == "| `Qwen3-8B` | Qwen/Qwen3-8B | z-lab/Qwen3-8B-DFlash-b16 | 16 | every --arch |"
    )
    assert all(line.count("|") == 6 for line in lines)
