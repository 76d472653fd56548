"""The fields of TensorRT-LLM's configuration that we write, as its LLM API reference documents
them.

TensorRT-LLM refuses a field that it does not know, so a file for it is checked against this before
it is written. Page of each table:
https://nvidia.github.io/TensorRT-LLM/1.4.0rc1/llm-api/reference/<its name>.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WRITTEN_FOR = "1.4.0rc1"
# DFlash came with 1.3.0rc13 or rc14; `attention_backend` FA4 with 1.3.0rc27, the other fields here
# before it.
OLDEST = "1.3.0rc27"

Field = (
    type | tuple[object, ...] | str
)  # a type, the values it may have, or the table of a nested object

TABLES: Mapping[str, Mapping[str, Field]] = {
    "TorchLlmArgs": {
        "tensor_parallel_size": int,
        "pipeline_parallel_size": int,
        "gpus_per_node": int,
        "moe_expert_parallel_size": int,
        "moe_tensor_parallel_size": int,
        "max_batch_size": int,
        "max_seq_len": int,
        "max_num_tokens": int,
        "kv_cache_config": "KvCacheConfig",
        "cuda_graph_config": "CudaGraphConfig",
        "speculative_config": "DFlashDecodingConfig",
    },
    "KvCacheConfig": {"enable_block_reuse": bool, "free_gpu_memory_fraction": float, "dtype": str},
    "CudaGraphConfig": {"enable_padding": bool, "max_batch_size": int},
    "DFlashDecodingConfig": {
        "decoding_type": ("DFlash",),
        "max_draft_len": int,
        "speculative_model": str,
        "mask_token_id": int,
        "target_layer_ids": list,
        "attention_backend": ("VANILLA", "TRTLLM", "FA4"),
    },
}


def faults(arguments: Mapping[str, Any], table: str = "TorchLlmArgs") -> list[str]:
    """What TensorRT-LLM would not take, as "Table.field: why"; [] if nothing."""
    found = []
    for name, value in arguments.items():
        kind = TABLES[table].get(name)
        if kind is None:
            found.append(f"{table}.{name}: no such field")
        elif isinstance(kind, str):
            found += (
                faults(value, kind)
                if isinstance(value, Mapping)
                else [f"{table}.{name}: not an object"]
            )
        elif isinstance(kind, tuple):
            found += [] if value in kind else [f"{table}.{name}: {value!r} is none of {kind}"]
        elif type(value) is not kind:
            found.append(f"{table}.{name}: {value!r} is no {kind.__name__}")
    return found
