"""What an export's reader is told, what replaces what, and lengths that belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trtllm_export.conftest import LocalPair, command, page_of
from trtllm_dflash.catalog.pairs import PAIRS
from trtllm_dflash.catalog.published import Pair
from trtllm_dflash.errors import DFlashError, UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.trtllm_export.llm_args import WRITTEN_FOR


def test_uncertain_drafter_is_marked_in_both_places(tmp_path: Path) -> None:
    words = "Uncertain: this drafter is of the variant 'Gemma 4'"
    result = command(tmp_path / "e", "--target", "gemma-4-31B-it", "--gpus", "2")
    assert f"note:   {words}" in result.stdout
    assert f"> {words}" in (tmp_path / "e" / "README.md").read_text()


@pytest.mark.parametrize(
    ("target", "state"),
    [
        ("Qwen3.5-397B-A17B", 45 * 64 * 128 * 128 * 4),
        ("Qwen3.6-27B", 48 * 48 * 128 * 128 * 4),
        ("Qwen3-Coder-Next", 36 * 32 * 128 * 128 * 4),
    ],
)
def test_recurrent_states_are_counted(
    target: str, state: int, exported: Callable[..., dict[str, Any]]
) -> None:
    page = page_of(exported(target=target, draft_len=7, max_batch_size=3, gpus=2))
    assert "takes such targets since its pull request 13782" in page
    assert f"a state for each of 14 draft positions: {human_bytes(state)} each" in page
    assert f"for 3 requests up to {human_bytes(3 * 14 * state)} over all GPUs" in page


def test_layer_types_decide_which_layers_have_states(
    local_pair: LocalPair, exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = local_pair.target / "config.json"
    heads = {"linear_num_value_heads": 3, "linear_key_head_dim": 5, "linear_value_head_dim": 7}
    types = ["linear_attention", "full_attention", "linear_attention"]
    config = json.loads(path.read_text()) | heads | {"layer_types": types}
    path.write_text(json.dumps(config))
    page = page_of(exported(**local_pair.options))
    assert f"draft positions: {human_bytes(2 * 3 * 5 * 7 * 4)} each in float32" in page


def test_a_target_without_states_has_no_note_of_them(
    exported: Callable[..., dict[str, Any]],
) -> None:
    assert "linear attention" not in page_of(exported(target="Qwen3-8B"))


def test_long_sequences_are_read_in_chunks(exported: Callable[..., dict[str, Any]]) -> None:
    made = exported(max_seq_len=131072, max_num_tokens=131071, max_batch_size=1)
    assert made["yaml"]["enable_chunked_prefill"] is True
    assert "Prompts above max_num_tokens are read in chunks" in page_of(made)


def test_yarn_reaches_its_documented_length(
    local_pair: LocalPair, exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = local_pair.target / "config.json"
    config = json.loads(path.read_text())
    positions = config["max_position_embeddings"]
    scaling = {"rope_type": "yarn", "factor": 4.0}
    scaling["original_max_position_embeddings"] = positions
    path.write_text(json.dumps(config | {"rope_scaling": scaling}))
    pair = local_pair.options
    assert exported(**pair, max_seq_len=4 * positions)["yaml"]["max_seq_len"] == 4 * positions
    with pytest.raises(UsageError, match=f"is more than {4 * positions}, the reach of"):
        exported(**pair, max_seq_len=4 * positions + 1, output_dir=tmp_path / "x")


def test_unpublished_ids_are_to_be_filled_in(tmp_path: Path) -> None:
    """A drafter of which only the block is known."""
    result = command(
        tmp_path / "e",
        *("--target", "Qwen3-8B", "--gpus", "2"),
        *("--drafter", "RedHatAI/gemma-4-31B-it-speculator.dflash"),
    )
    words = "Fill in target_layer_ids and mask_token_id under speculative_config"
    assert words in result.stdout
    assert words in (tmp_path / "e" / "README.md").read_text()
    assert "target_layer_ids" not in (tmp_path / "e" / "trtllm.yaml").read_text()


def test_draft_len_stands_for_an_unpublished_block(
    exported: Callable[..., dict[str, Any]],
) -> None:
    made = exported(target="MiniMax-M2.5", draft_len=7)
    assert made["yaml"]["speculative_config"]["max_draft_len"] == 7
    assert "max_draft_len = 7 is not checked" in page_of(made)


def test_taps_outside_the_target_are_refused(
    local_pair: LocalPair, exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = local_pair.drafter / "config.json"
    config = json.loads(path.read_text())
    section = config.get("dflash_config", config)
    made = exported(**local_pair.options)
    speculation = made["yaml"]["speculative_config"]
    assert speculation["target_layer_ids"] == section["target_layer_ids"]
    assert speculation["mask_token_id"] == section["mask_token_id"]
    section["target_layer_ids"] = [0, 99]
    path.write_text(json.dumps(config))
    with pytest.raises(DFlashError, match="target_layer_ids contains 99, expected 0"):
        exported(**local_pair.options, output_dir=tmp_path / "x")


def test_checkpoint_without_quant_algo_is_refused(
    local_pair: LocalPair, exported: Callable[..., dict[str, Any]]
) -> None:
    """As one of which only the caches are quantized."""
    quantization = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    (local_pair.target / "hf_quant_config.json").write_text(
        json.dumps({"quantization": quantization})
    )
    with pytest.raises(UsageError, match="has no quant_algo, and TensorRT-LLM refuses"):
        exported(**local_pair.options)


def test_schedule_of_profile_is_exported(
    exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text('{"8": 2, "2": 7}')
    made = exported(draft_len_schedule=schedule)
    speculation = made["yaml"]["speculative_config"]
    assert speculation["draft_len_schedule"] == {2: 7, 8: 2}
    assert speculation["max_draft_len"] == 7
    assert "ends at batch 8: from 9 to 32 requests nothing is drafted" in page_of(made)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"1": 3, "4": 7}', "it has 3 drafts up to batch 1 and 7 beyond, and TensorRT-LLM"),
        ('{"4": 10}', "--draft-len-schedule 10 is more than 9"),
        ('{"4": 0}', "it drafts nothing at any batch"),
        ("[1]", "expected a JSON object from batch sizes to numbers of drafts"),
        ("", "not JSON"),
    ],
)
def test_schedule_that_cannot_be_is_refused(
    text: str, words: str, exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        exported(draft_len_schedule=schedule)
    assert not (tmp_path / "export").exists()


def test_sampling_switch_is_exported(exported: Callable[..., dict[str, Any]]) -> None:
    made = exported(rejection_sampling=True)
    assert made["yaml"]["speculative_config"]["use_rejection_sampling"] is True
    assert "accept drafts by rejection sampling" in page_of(made)


def test_drafter_context_that_is_too_large_is_said(
    exported: Callable[..., dict[str, Any]],
) -> None:
    long = {"gpus": 1, "arch": "sm100", "max_seq_len": 131072, "max_batch_size": 64}
    assert "The drafter's context may take" in page_of(exported(**long))


def test_page_starts_a_reachable_server_in_a_container(
    exported: Callable[..., dict[str, Any]],
) -> None:
    page = page_of(exported())
    assert (
        f"nvcr.io/nvidia/tensorrt-llm/release:{WRITTEN_FOR} /export/serve.sh --host 0.0.0.0"
        in (page)
    )
    assert "-p 8000:8000" in page


@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair.handover], ids=lambda p: p.name
)
def test_every_handed_over_pair_is_exported_by_name(pair: Pair, tmp_path: Path) -> None:
    """What is not published is said; the licence is in both places."""
    block = pair.drafter.block_size
    draft_len = ("--draft-len", "3") if block is None else ()
    result = command(tmp_path / "e", "--target", pair.name, "--gpus", "8", *draft_len)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "e" / "README.md").read_text()
    assert f"drafter's licence: {pair.drafter.licence_text}" in result.stdout
    assert f"- the drafter's licence: {pair.drafter.licence_text}" in page
    speculation = yaml.safe_load((tmp_path / "e" / "trtllm.yaml").read_text())[
        "speculative_config"
    ]
    assert speculation["max_draft_len"] == (3 if block is None else block - 1)
    for name in ("target_layer_ids", "mask_token_id"):
        published = pair.drafter.config.get(name)
        assert speculation.get(name) == published
        assert (f"Fill in {name}" in page or f"and {name} under" in page) is (published is None)


def test_licence_of_a_directory_is_its_cards(
    local_pair: LocalPair, exported: Callable[..., dict[str, Any]]
) -> None:
    card = local_pair.drafter / "README.md"
    card.write_text("---\nlicense: mit\n---\n# A drafter\n")
    page = page_of(exported(**local_pair.options))
    assert "- the drafter's licence: mit (its README.md)" in page


def test_template_options_of_the_drafter_are_said(
    exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    page = page_of(exported(target="Qwen3-8B"))
    assert 'was trained with chat_template_kwargs {"enable_thinking": false}' in page
    other = exported(target="gpt-oss-20b", output_dir=tmp_path / "other")
    assert "chat_template_kwargs" not in page_of(other)


def test_one_gpu_is_singular(tmp_path: Path) -> None:
    result = command(tmp_path / "e", "--target", "gpt-oss-20b", "--gpus", "1")
    assert "1 GPU, 1 node\n" in result.stdout
    assert (
        (tmp_path / "e" / "README.md")
        .read_text()
        .startswith("# gpt-oss-20b with DFlash on 1 GPU\n")
    )


def test_overwrite_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    options = ("--target", "gpt-oss-20b", "--gpus", "1")
    assert command(tmp_path / "e", *options).exit_code == 0
    refused = command(tmp_path / "e", *options)
    assert refused.exit_code == 2
    assert "is not empty; give another, or --overwrite to replace an export" in refused.stderr
    assert command(tmp_path / "e", *options, "--draft-len", "3", "--overwrite").exit_code == 0
    assert "max_draft_len: 3" in (tmp_path / "e" / "trtllm.yaml").read_text()
    (tmp_path / "e" / "notes.txt").write_text("mine")
    stranger = command(tmp_path / "e", *options, "--overwrite")
    assert stranger.exit_code == 2
    assert "also holds files that do not belong to it: notes.txt" in stranger.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    other = command(tmp_path / "mine", *options, "--overwrite")
    assert other.exit_code == 2
    assert "has no export.json and trtllm.yaml" in other.stderr
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
