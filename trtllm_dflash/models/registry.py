"""The target architectures: one short file each, one function `layer` each."""

from __future__ import annotations

from trtllm_dflash.graph.target import LayerFunction
from trtllm_dflash.models import gpt_oss, llama, qwen3, qwen3_moe

LAYERS: dict[str, LayerFunction] = {
    "gpt_oss": gpt_oss.layer,
    "llama": llama.layer,
    "qwen3": qwen3.layer,
    "qwen3_moe": qwen3_moe.layer,
}
