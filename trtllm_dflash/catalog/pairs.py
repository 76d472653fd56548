"""Published pairs of target and DFlash drafter: data only. What can be built is asked of the code:
build.known.

Not all that are published: UNLISTED names the others that we know of. A row states what is
published of both config.json files and no more: names, architectures, and those keys that decide
whether a pair can be built. `build` reads the files themselves and believes only them.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

from trtllm_dflash.catalog.published import (
    GPT_OSS_YARN,
    KnownDrafter,
    KnownTarget,
    Pair,
    decoder,
    drafter,
    gpt_oss,
    qwen3,
)

_COLLECTION = "z-lab's DFlash collection and the README of dflash 0.1.0"
_CONFIGS = f"{_COLLECTION}; public tables of both config.json files"
_CARD = "the drafter's model card"


_GPT_OSS_DRAFTER: dict[str, Any] = {
    "heads": (64, 8, 64),
    "attention_bias": True,
    "rms_norm_eps": 1e-5,
    "vocab_size": 201088,
    "mask_token_id": 200000,
    "rope_theta": 150000,
    "rope_scaling": GPT_OSS_YARN,
}
_LLAMA31_8B = decoder(32, 4096, 14336, (32, 8, 128), vocab=128256, eps=1e-5) | {
    "model_type": "llama",
    "max_position_embeddings": 131072,
    "rope_theta": 500000,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_CODER_30B = qwen3(
    48, 2048, 6144, (32, 4), model_type="qwen3_moe", rope_theta=10000000, max_position_embeddings=262144,
    num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True, decoder_sparse_step=1,
    mlp_only_layers=[],
)  # fmt: skip
_QWEN3_MASK: dict[str, Any] = {"vocab_size": 151936, "mask_token_id": 151669, "rope_theta": 1000000}
_QWEN35_MASK: dict[str, Any] = {
    "vocab_size": 248320,
    "mask_token_id": 248070,
    "rope_theta": 10000000,
}
_QWEN35, _QWEN35_MOE = "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"
_GEMMA4, _KIMI = "Gemma4ForConditionalGeneration", "KimiK25ForConditionalGeneration"
_GEMMA4_LOGITS: dict[str, Any] = {"final_logit_softcapping": 30.0}
_KIMI_ROPE: dict[str, Any] = {
    "heads": (64, 8, 128),
    "mask_token_id": 163838,
    "vocab_size": 163840,
    "rope_theta": 50000,
    "rope_scaling": {
        "rope_type": "deepseek_yarn",
        "factor": 64.0,
        "original_max_position_embeddings": 4096,
    },
}
_DFLASH2: dict[str, Any] = {
    "conv_kernel_size": 2,
    "conv_group_size": 16,
    "selector_rank": 256,
    "selector_top_k": 16,
}
_EVERY_8 = (1, 9, 17, 25, 33)
_LOW_TAPS = (1, 5, 9, 13, 17, 21, 25, 29)

# The first row of a target is the one that its name and its repository stand for.
PAIRS: tuple[Pair, ...] = (
    Pair(
        "Qwen3-4B",
        KnownTarget(
            "Qwen/Qwen3-4B", "Qwen3ForCausalLM", qwen3(36, 2560, 9728, (32, 8), tie_word_embeddings=True)
        ),
        drafter("z-lab/Qwen3-4B-DFlash-b16", 5, 2560, 9728, 16, _EVERY_8, 36, **_QWEN3_MASK),
        _CONFIGS,
    ),
    Pair(
        "Qwen3-8B",
        KnownTarget("Qwen/Qwen3-8B", "Qwen3ForCausalLM", qwen3(36, 4096, 12288, (32, 8))),
        drafter("z-lab/Qwen3-8B-DFlash-b16", 5, 4096, 12288, 16, _EVERY_8, 36, **_QWEN3_MASK),
        _CONFIGS,
    ),
    Pair(
        "Llama-3.1-8B-Instruct",
        KnownTarget("meta-llama/Llama-3.1-8B-Instruct", "LlamaForCausalLM", _LLAMA31_8B),
        drafter(
            "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat", 5, 4096, 12288, 10, (1, 8, 15, 22, 29), 32,
            vocab_size=128256,
        ),
        _CONFIGS,
    ),
    Pair(
        "gpt-oss-20b",
        KnownTarget("openai/gpt-oss-20b", "GptOssForCausalLM", gpt_oss(24, 32)),
        drafter("z-lab/gpt-oss-20b-DFlash", 8, 2880, 7680, 8, (1, 6, 11, 16, 21), 24, **_GPT_OSS_DRAFTER),
        _CONFIGS,
    ),
    Pair(
        "gpt-oss-120b",
        KnownTarget("openai/gpt-oss-120b", "GptOssForCausalLM", gpt_oss(36, 128)),
        drafter("z-lab/gpt-oss-120b-DFlash", 8, 2880, 7680, 10, _EVERY_8, 36, **_GPT_OSS_DRAFTER),
        _CONFIGS,
    ),
    Pair(
        "Qwen3-Coder-30B-A3B",
        KnownTarget("Qwen/Qwen3-Coder-30B-A3B-Instruct", "Qwen3MoeForCausalLM", _CODER_30B),
        drafter(
            "z-lab/Qwen3-Coder-30B-A3B-DFlash", 8, 2048, 6144, 16, (1, 12, 23, 34, 45), 48, heads=(32, 4, 128),
            **_QWEN3_MASK,
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3-Coder-Next",
        KnownTarget("Qwen/Qwen3-Coder-Next", "Qwen3NextForCausalLM"),
        drafter(
            "z-lab/Qwen3-Coder-Next-DFlash", 8, 2048, 6144, 16, (3, 11, 23, 35, 43), 48, heads=(32, 4, 128)
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3-32B-FP8",
        KnownTarget(
            "Qwen/Qwen3-32B-FP8", "Qwen3ForCausalLM",
            qwen3(64, 5120, 25600, (64, 8), quantization_config={
                "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
            }),
        ),
        KnownDrafter("chutesai/Qwen3-32B-FP8-DFLASH", {
            "num_hidden_layers": 5, "hidden_size": 5120, "num_target_layers": 64,
            "target_layer_ids": [1, 16, 31, 46, 61], **_QWEN3_MASK,
        }),
        _CARD,
    ),
    Pair(
        "Qwen3.5-4B",
        KnownTarget("Qwen/Qwen3.5-4B", _QWEN35),
        drafter(
            "z-lab/Qwen3.5-4B-DFlash", 6, 2560, 9216, 16, _LOW_TAPS, 32, sliding=(5, 4096), **_QWEN35_MASK
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.5-9B",
        KnownTarget("Qwen/Qwen3.5-9B", _QWEN35),
        drafter(
            "z-lab/Qwen3.5-9B-DFlash", 6, 4096, 12288, 16, _LOW_TAPS, 32, sliding=(5, 4096), **_QWEN35_MASK
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.5-27B",
        KnownTarget("Qwen/Qwen3.5-27B", _QWEN35),
        drafter(
            "z-lab/Qwen3.5-27B-DFlash", 6, 5120, 17408, 16, (1, 10, 18, 27, 35, 44, 52, 61), 64, sliding=(5, 4096),
            **_QWEN35_MASK,
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.5-35B-A3B",
        KnownTarget("Qwen/Qwen3.5-35B-A3B", _QWEN35_MOE),
        drafter(
            "z-lab/Qwen3.5-35B-A3B-DFlash", 6, 2048, 6144, 16, (1, 6, 11, 16, 22, 27, 32, 37), 40, sliding=(5, 4096),
            **_QWEN35_MASK,
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.5-122B-A10B",
        KnownTarget("Qwen/Qwen3.5-122B-A10B", _QWEN35_MOE),
        drafter(
            "z-lab/Qwen3.5-122B-A10B-DFlash", 6, 3072, 9216, 16, (1, 7, 14, 20, 26, 32, 39, 45), 48,
            sliding=(5, 4096), **_QWEN35_MASK,
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.5-397B-A17B",
        KnownTarget("Qwen/Qwen3.5-397B-A17B", _QWEN35_MOE),
        KnownDrafter("z-lab/Qwen3.5-397B-A17B-DFlash"),
        _COLLECTION,
    ),
    Pair(
        "Qwen3.6-27B",
        KnownTarget("Qwen/Qwen3.6-27B", _QWEN35),
        drafter(
            "z-lab/Qwen3.6-27B-DFlash", 5, 5120, 17408, 16, (1, 16, 31, 46, 61), 64, sliding=(4, 2048), **_QWEN35_MASK
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.6-35B-A3B",
        KnownTarget("Qwen/Qwen3.6-35B-A3B", _QWEN35_MOE),
        drafter(
            "z-lab/Qwen3.6-35B-A3B-DFlash", 6, 2048, 6144, 16, (1, 6, 11, 16, 22, 27, 32, 37), 40, sliding=(5, 4096),
            **_QWEN35_MASK,
        ),
        _CONFIGS,
    ),
    Pair(
        "Qwen3.8-27B",
        KnownTarget("Qwen/Qwen3.8-27B", _QWEN35),
        drafter(
            "z-lab/Qwen3.8-27B-DFlash2", 5, 5120, 17408, 8, (5, 19, 33, 47, 61), 64, sliding=(5, 2048),
            is_causal=False, architecture="DFlash2DraftModel", **_QWEN35_MASK, **_DFLASH2,
        ),
        f"{_CONFIGS}; the target's architecture is that of Qwen3.5, not read from its file",
    ),
    Pair(
        "gemma-4-31B-it",
        KnownTarget("google/gemma-4-31B-it", _GEMMA4),
        drafter(
            "z-lab/gemma-4-31B-it-DFlash", 5, 5376, 10752, 16, (1, 12, 23, 35, 46, 57), 60, heads=(64, 8, 128),
            sliding=(4, 2048), **_GEMMA4_LOGITS,
        ),
        _CONFIGS,
    ),
    Pair(
        "gemma-4-26B-A4B-it",
        KnownTarget("google/gemma-4-26B-A4B-it", _GEMMA4),
        drafter(
            "z-lab/gemma-4-26B-A4B-it-DFlash", 5, 2816, 5632, 16, (1, 6, 11, 17, 22, 27), 30, sliding=(4, 2048),
            **_GEMMA4_LOGITS,
        ),
        _CONFIGS,
    ),
    Pair(
        "Kimi-K2.5",
        KnownTarget("moonshotai/Kimi-K2.5", _KIMI),
        drafter("z-lab/Kimi-K2.5-DFlash", 6, 7168, 18432, 8, (1, 12, 24, 35, 47, 58), 61, **_KIMI_ROPE),
        _CONFIGS,
    ),
    Pair(
        "Kimi-K2.6",
        KnownTarget("moonshotai/Kimi-K2.6", _KIMI),
        drafter("z-lab/Kimi-K2.6-DFlash", 6, 7168, 18432, 8, (1, 12, 24, 35, 47, 58), 61, **_KIMI_ROPE),
        _CONFIGS,
    ),
    Pair(
        "Kimi-K2.6-nvidia",
        KnownTarget("moonshotai/Kimi-K2.6", _KIMI),
        KnownDrafter("nvidia/Kimi-K2.6-DFlash"),
        _CARD,
    ),
    Pair(
        "Kimi-K2.7-Code",
        KnownTarget("moonshotai/Kimi-K2.7-Code", _KIMI),
        KnownDrafter("nvidia/Kimi-K2.7-Code-DFlash"),
        f"{_CARD}; the target's architecture is that of Kimi-K2.5, not read from its file",
    ),
    Pair(
        "MiniMax-M2.5",
        KnownTarget("MiniMaxAI/MiniMax-M2.5", "MiniMaxM2ForCausalLM"),
        KnownDrafter("z-lab/MiniMax-M2.5-DFlash"),
        _COLLECTION,
    ),
    Pair(
        "MiniMax-M2.7",
        KnownTarget("MiniMaxAI/MiniMax-M2.7", "MiniMaxM2ForCausalLM"),
        KnownDrafter("nvidia/MiniMax-M2.7-DFlash"),
        _CARD,
    ),
    Pair(
        "Muse-Glimmer-30B",
        KnownTarget("RadixArk/Muse-Glimmer-NVFP4", "MuseGlimmerForConditionalGeneration"),
        KnownDrafter("incoai/Muse-Glimmer-30B-DFlash2", {"block_size": 16, **_DFLASH2}, "DFlash2DraftModel"),
        "TensorRT Edge-LLM 0.11.0's table of drafters",
    ),
    Pair(
        "Nemotron-3.5-Lightning",
        KnownTarget("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4", "NemotronHForCausalLM"),
        KnownDrafter("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4-DFlash", {
            "block_size": 8, "mask_token_id": 990, "is_causal": True, "attention_sink_bias": True,
            "target_layer_ids": [1, 5, 19, 29, 41, 51], "num_target_layers": 52,
        }),
        _CARD,
    ),
    Pair(
        "Nemotron-3.5-Lightning-DSpark",
        KnownTarget("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4", "NemotronHForCausalLM"),
        KnownDrafter("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4-DSpark", {
            "block_size": 8, "projector_type": "dspark",
        }),
        _CARD,
    ),
    Pair(
        "Qwen3-8B-speculator",
        KnownTarget("Qwen/Qwen3-8B", "Qwen3ForCausalLM", qwen3(36, 4096, 12288, (32, 8))),
        KnownDrafter("RedHatAI/Qwen3-8B-speculator.dflash", {
            "block_size": 8, "speculators_model_type": "dflash", "draft_vocab_size": 32000,
        }),
        _CARD,
    ),
    Pair(
        "gemma-4-31B-it-speculator",
        KnownTarget("google/gemma-4-31B-it", _GEMMA4),
        KnownDrafter("RedHatAI/gemma-4-31B-it-speculator.dflash", {
            "block_size": 8, "speculators_model_type": "dflash",
        }),
        _CARD,
    ),
)  # fmt: skip


# Named in other projects' tables of models or on cards, but neither a config.json nor the exact
# pair of repositories could be read: a row would be a guess.
UNLISTED = (
    "GLM-5.1 and GLM-5.1-FP8",
    "Alpamayo",
    "incoai/Qwen3.8-Flash-Next-DFlash2",
    "MiniMax-M3.1-Flash-DFlash2",
    "poolside's Laguna-*-DFlash",
    "XiaomiMiMo/MiMo-V2.5-Pro-FP4-DFlash",
    "a community's drafter for Qwen3.5-0.8B",
)

Role = Literal["target", "drafter"]


def pair_of(name: str, role: Role = "target") -> Pair | None:
    """The first pair whose target (or drafter) a name stands for, in any case; None if it is not
    known.

    A target's name is that of the table; every model is also known by its repository, with or
    without the owner.
    """
    wanted = name.casefold()
    return next((pair for pair in PAIRS if wanted in _names_of(pair, role)), None)


def _names_of(pair: Pair, role: Role) -> tuple[str, ...]:
    repository = (pair.target if role == "target" else pair.drafter).repository.casefold()
    own = (pair.name.casefold(),) if role == "target" else ()
    return (*own, repository, repository.rpartition("/")[2])


def nearest_names(name: str, role: Role = "target") -> list[str]:
    """At most three targets' names of the table, or drafters' repositories, that look like `name`,
    the nearest first.

    Owners count for nothing.
    """
    names = {
        pair.name.casefold() if role == "target" else _names_of(pair, role)[-1]: (
            pair.name if role == "target" else pair.drafter.repository
        )
        for pair in PAIRS
    }
    wanted = name.casefold().rpartition("/")[2]
    return [names[found] for found in get_close_matches(wanted, names, n=3, cutoff=0.6)]


def unknown_name_message(name: str, role: Role) -> str:
    """What to say of a name that is neither a directory nor known: a sentence without its end."""
    near = nearest_names(name, role)
    nearest = f"; the nearest are {', '.join(near)}" if near else ""
    return f"--{role} {name}: neither a directory nor a {role} of `dflash-trt list`{nearest}"
