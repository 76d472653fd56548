"""What the reader of an export must know or fill in: on its page and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.catalog.gpus import gpus_of
from trtllm_dflash.log import human_bytes
from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.trtllm_export.pair import SUPPORTED_VARIANTS, PairFacts


def notes_for(
    config: TrtllmExportConfig, facts: PairFacts, arguments: Mapping[str, Any]
) -> list[str]:
    """Return one paragraph for each thing, the ones that need an action first."""
    speculation = arguments["speculative_config"]
    found = [
        _unpublished(facts, speculation),
        _unchecked_block(facts, speculation),
        _uncertain_variant(facts),
        _template_options(facts),
        _draft_context(config, facts, arguments),
        _recurrent_states(config, facts, speculation),
        _chunked_prefill(arguments),
        _batch_beyond_schedule(config, speculation),
    ]
    return [note for note in found if note is not None]


def _unpublished(facts: PairFacts, speculation: Mapping[str, Any]) -> str | None:
    names = ("target_layer_ids", "mask_token_id")
    missing = [name for name in names if name not in speculation]
    if not missing:
        return None
    return (
        f"Fill in {' and '.join(missing)} under speculative_config, from the config.json of"
        f" {facts.drafter}: they are not published elsewhere, and TensorRT-LLM may not read them"
        " from a name on the hub."
    )


def _unchecked_block(facts: PairFacts, speculation: Mapping[str, Any]) -> str | None:
    if facts.block_size is not None:
        return None
    return (
        f"The block size of {facts.drafter} is not published, so max_draft_len ="
        f" {speculation['max_draft_len']} is not checked: it must be below the block_size of its"
        " config.json."
    )


def _uncertain_variant(facts: PairFacts) -> str | None:
    if facts.drafter_variant in (None, *SUPPORTED_VARIANTS):
        return None
    return (
        f"Uncertain: this drafter is of the variant '{facts.drafter_variant}', and TensorRT-LLM's"
        " pages do not say that its DFlash takes it. If it loads, compare τ with the drafter's"
        " model card before anything else."
    )


def _template_options(facts: PairFacts) -> str | None:
    if not facts.chat_template_kwargs:
        return None
    options = json.dumps(dict(facts.chat_template_kwargs))
    return (
        f"The drafter was trained with chat_template_kwargs {options}, and other prompts accept"
        " fewer drafts. Send them with each chat request: trtllm-serve has no default for them."
    )


def _draft_context(
    config: TrtllmExportConfig, facts: PairFacts, arguments: Mapping[str, Any]
) -> str | None:
    """Compare the drafter's context with what the KV cache leaves free on the smallest GPU."""
    if facts.draft_context_bytes is None:
        return None
    max_seq_len = arguments["max_seq_len"]
    positions = (config.max_batch_size + 1) * (max_seq_len + (facts.block_size or 0))
    needed = positions * facts.draft_context_bytes // min(config.gpus, facts.draft_kv_heads)
    gpus = gpus_of(config.arch)
    if not gpus:
        return None
    smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
    fraction = arguments["kv_cache_config"]["free_gpu_memory_fraction"]
    left = int(smallest.memory_bytes * (1 - fraction))
    if needed <= left:
        return None
    return (
        f"The drafter's context may take {human_bytes(needed)} on each GPU where TensorRT-LLM keeps"
        f" it for every slot in full length ({config.max_batch_size} × {max_seq_len}"
        f" positions), and free_gpu_memory_fraction {fraction} leaves at most"
        f" {human_bytes(left)} of a {smallest.name}. Lower max_batch_size, max_seq_len or that"
        " fraction."
    )


def _recurrent_states(
    config: TrtllmExportConfig, facts: PairFacts, speculation: Mapping[str, Any]
) -> str | None:
    """State what its pull requests say of targets with linear attention.

    Sources: NVIDIA/TensorRT-LLM 13782, 15132, 16914 (DFlash on such targets), 16464 and 16768.
    """
    if not facts.state_bytes:
        return None
    states = 2 * speculation["max_draft_len"]
    taken = human_bytes(config.max_batch_size * states * facts.state_bytes)
    return (
        "Not run here: the target has linear attention. TensorRT-LLM's DFlash takes such targets"
        " since its pull request 13782, and its tests name Qwen3.5-4B, Qwen3.5-35B-A3B and"
        " Qwen3.6-35B-A3B. By that request it keeps a state for each of"
        f" {states} draft positions: {human_bytes(facts.state_bytes)} each in float32, for"
        f" {config.max_batch_size} requests up to {taken} over all GPUs, beside the KV cache. Its"
        " replay of states (16464, 16768) is for MTP. Lower max_batch_size or max_draft_len if that"
        " does not fit."
    )


def _chunked_prefill(arguments: Mapping[str, Any]) -> str | None:
    if not arguments["enable_chunked_prefill"]:
        return None
    return (
        "Prompts above max_num_tokens are read in chunks (enable_chunked_prefill); without it"
        " TensorRT-LLM refuses them."
    )


def _batch_beyond_schedule(
    config: TrtllmExportConfig, speculation: Mapping[str, Any]
) -> str | None:
    schedule = speculation.get("draft_len_schedule")
    if schedule is None or max(schedule) >= config.max_batch_size:
        return None
    return (
        f"draft_len_schedule ends at batch {max(schedule)}: from {max(schedule) + 1} to"
        f" {config.max_batch_size} requests nothing is drafted."
    )
