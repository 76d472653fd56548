"""Qwen3ForCausalLM (dense): Llama with a norm on every query and key head."""

from __future__ import annotations

from functools import partial

from trtllm_dflash.models import llama

layer = partial(llama.layer, qk_norm=True)
