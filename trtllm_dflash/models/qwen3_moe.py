"""Qwen3MoeForCausalLM: a mixture of experts in every layer, and Qwen3's norm on every query and key
head.
"""

from __future__ import annotations

from functools import partial

from trtllm_dflash.models import gpt_oss

layer = partial(gpt_oss.layer, qk_norm=True)
