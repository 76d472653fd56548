"""The fields of TensorRT-LLM's configuration that exports use, from its LLM API reference.

TensorRT-LLM refuses unknown fields, so a configuration is checked against these tables first. Each
table is documented in
https://nvidia.github.io/TensorRT-LLM/1.4.0rc4/llm-api/reference/<its name>.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WRITTEN_FOR = "1.4.0rc4"
# DFlash came with 1.3.0rc13 or rc14, `attention_backend` FA4 with 1.3.0rc27, the other fields
# earlier.
OLDEST = "1.3.0rc27"

# A type, the values it may have, or the table of a nested object. `dict` maps integers to integers.
FieldType = type | tuple[object, ...] | str

TABLES: Mapping[str, Mapping[str, FieldType]] = {
    "TorchLlmArgs": {
        "tensor_parallel_size": int,
        "pipeline_parallel_size": int,
        "gpus_per_node": int,
        "moe_expert_parallel_size": int,
        "moe_tensor_parallel_size": int,
        "max_batch_size": int,
        "max_seq_len": int,
        "max_num_tokens": int,
        "enable_chunked_prefill": bool,
        "kv_cache_config": "KvCacheConfig",
        "cuda_graph_config": "CudaGraphConfig",
        "speculative_config": "DFlashDecodingConfig",
    },
    "KvCacheConfig": {
        "enable_block_reuse": bool,
        "free_gpu_memory_fraction": float,
        "dtype": str,
    },
    "CudaGraphConfig": {"enable_padding": bool, "max_batch_size": int},
    "DFlashDecodingConfig": {
        "decoding_type": ("DFlash",),
        "max_draft_len": int,
        "speculative_model": str,
        "mask_token_id": int,
        "target_layer_ids": list,
        "draft_len_schedule": dict,
        "use_rejection_sampling": bool,
        "attention_backend": ("VANILLA", "TRTLLM", "FA4"),
    },
}


def schema_errors(arguments: Mapping[str, Any], table: str = "TorchLlmArgs") -> list[str]:
    """List what TensorRT-LLM would not accept, as "Table.field: why"."""
    errors = []
    for name, value in arguments.items():
        expected = TABLES[table].get(name)
        if isinstance(expected, str) and isinstance(value, Mapping):
            errors += schema_errors(value, expected)
        elif problem := _problem(value, expected):
            errors.append(f"{table}.{name}: {problem}")
    return errors + _contradictions(arguments, table)


def _contradictions(arguments: Mapping[str, Any], table: str) -> list[str]:
    """List settings of which each is right by itself, and TensorRT-LLM refuses both together."""
    schedule = arguments.get("draft_len_schedule")
    if table != "DFlashDecodingConfig" or not isinstance(schedule, Mapping) or not schedule:
        return []
    longest = arguments.get("max_draft_len")
    if schedule[min(schedule)] == longest == max(schedule.values()):
        return []
    return [f"{table}.draft_len_schedule: its first row is not max_draft_len = {longest}"]


def _problem(value: Any, expected: FieldType | None) -> str | None:
    if expected is None:
        return "no such field"
    if isinstance(expected, str):
        return "not an object"
    if isinstance(expected, tuple):
        return None if value in expected else f"{value!r} is none of {expected}"
    return None if type(value) is expected else f"{value!r} is no {expected.__name__}"
