"""The target architectures: one short file each, one function `layer` each."""

from __future__ import annotations

from trtllm_dflash.graph.targets import llama, qwen3
from trtllm_dflash.graph.targets.context import LayerFunction

LAYERS: dict[str, LayerFunction] = {"llama": llama.layer, "qwen3": qwen3.layer}
