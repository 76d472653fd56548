"""Small random pairs whose step has every kernel of ours: a row for each family and format.

Weights are bfloat16 and heads have sizes that there are kernels for, so that the CPU engine and
the GPU's have the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.fixtures.engines import build_here
from tests.fixtures.published import published_copy
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.speculators import speculators_drafter
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from tests.stand_in.agreement import Nearness
from tests.stand_in.clear_routes import with_clear_routes
from tests.stand_in.small_builder import build_for_stand_in
from tests.stand_in.twin import make_twin
from trtllm_dflash.options.build import BuildConfig

NEAR = Nearness(0.08, 1)
# An activation next to the middle of two FP8 numbers becomes either, up to an eighth of it apart.
# That moves all products behind it, and most answers meet a tie as near.
NEAR_OF_FP8 = Nearness(0.5, 3)
# Where linears are ours too, each of their sums may be rounded to the next bfloat16.
NEAR_OF_LINEARS = Nearness(0.08, 2)
# Three slots decode in a padded step of four rows.
FOUR_SLOTS = {"max_batch_size": 4}
SIZES = {"max_batch_size": 3, "max_seq_len": 96, "max_num_tokens": 16}


@dataclass(frozen=True)
class Pair:
    """A target and the masks of its drafter; None: a plain engine."""

    target: Callable[[Path], Path]
    variant: str | None = "full"
    build: Mapping[str, Any] = field(default_factory=dict)
    drafter: Mapping[str, Any] = field(default_factory=dict)
    make_drafter: Callable[..., Path] = tiny_drafter
    near: Nearness = NEAR


@dataclass(frozen=True)
class Engines:
    """Directories of one pair's engines: for the stand-in GPU, and the CPU's that rounds alike."""

    gpu: Path
    twin: Path


def _dense(model_type: str, **options: Any) -> Callable[[Path], Path]:
    sizes = {"num_layers": 3, "head_dim": 64} | options
    return lambda folder: tiny_target(folder, model_type, dtype="BF16", **sizes)


def _gpt_oss(**options: Any) -> Callable[[Path], Path]:
    sizes = {"head_dim": 64, "layers": 3}
    return with_clear_routes(
        lambda folder: tiny_gpt_oss(folder, dtype="BF16", sizes=sizes, **options)
    )


def _qwen3_moe(folder: Path) -> Path:
    return tiny_qwen3_moe(folder, dtype="BF16", sizes={"head_dim": 64})


def _quantized_experts(name: str) -> Callable[[Path], Path]:
    """Return what writes a target whose experts have this format, and nothing else."""
    sizes = {"hidden": 64, "head_dim": 64, "expert_size": 32}
    plain = with_clear_routes(lambda to: tiny_qwen3_moe(to, dtype="BF16", sizes=sizes))
    others = ("lm_head", "*embed_tokens", "*self_attn*", "*mlp.gate")
    return lambda folder: quantized_copy(
        plain(folder / "source"), folder / name, name, exclude=others
    )


def _fp8_blocks(folder: Path) -> Path:
    """Write a target whose linears and experts are FP8, with a scale for each block of 128."""
    sizes = {"hidden": 160, "head_dim": 64, "expert_size": 144, "experts": 4, "layers": 2}
    plain = with_clear_routes(lambda to: tiny_qwen3_moe(to, dtype="BF16", sizes=sizes))
    return published_copy(plain(folder / "source"), folder / "blocks", "fp8_block")


def _hybrid(name: str) -> Callable[[Path], Path]:
    sizes = {"head_dim": 64, "key_dim": 128, "value_dim": 128, "expert_size": 24, "layers": 4}
    return lambda folder: tiny_hybrid(folder, name, dtype="BF16", sizes=sizes)


def _fp8(folder: Path) -> Path:
    return quantized_copy(_dense("qwen3")(folder / "source"), folder / "fp8", "fp8")


def _fp8_caches(folder: Path) -> Path:
    """Write a target with FP8 caches, and with FP8 weights whose products are not rounded."""
    source = _dense("qwen3")(folder / "source")
    return published_copy(source, folder / "caches", "fp8_tensor", kv_cache=True)


_dspark = partial(speculators_drafter, method="dspark")


PAIRS: Mapping[str, Pair] = {
    "llama": Pair(_dense("llama")),
    "plain": Pair(_dense("llama"), variant=None),
    "windows": Pair(_dense("mistral"), "mixed_bidirectional"),
    "qwen2": Pair(_dense("qwen2"), "causal"),
    "qwen3": Pair(_dense("qwen3", head_dim=128), "mixed", drafter={"head_dim": 128}),
    "mistral": Pair(_dense("mistral", head_dim=96), "sliding", build=FOUR_SLOTS),
    "qwen3_moe": Pair(with_clear_routes(_qwen3_moe), "mixed_causal"),
    "fp8_experts": Pair(_quantized_experts("fp8"), "full"),
    "nvfp4_experts": Pair(_quantized_experts("nvfp4"), "causal"),
    "fp8_blocks": Pair(_fp8_blocks, "full", drafter={"num_taps": 1}, near=NEAR_OF_LINEARS),
    "dflash2": Pair(_dense("qwen3"), "mixed", make_drafter=tiny_dflash2),
    "dspark": Pair(_dense("llama"), "full", make_drafter=_dspark),
    "gpt_oss": Pair(_gpt_oss(), "sliding_bidirectional"),
    "gpt_oss_bf16": Pair(_gpt_oss(mxfp4=False), "mixed_bidirectional"),
    "qwen3_next": Pair(with_clear_routes(_hybrid("qwen3_next")), "full"),
    "qwen3_5": Pair(_hybrid("qwen3_5"), "mixed", build=FOUR_SLOTS),
    "qwen3_5_moe": Pair(with_clear_routes(_hybrid("qwen3_5_moe")), "causal"),
    "fp8": Pair(_fp8, "mixed", near=NEAR_OF_FP8, build=FOUR_SLOTS),
    "fp8_caches": Pair(_fp8_caches, "full"),
    "long": Pair(
        _dense("llama", num_layers=2),
        "full",
        drafter={"num_layers": 1, "num_taps": 1},
        build={"max_seq_len": 1300, "max_num_tokens": 256},
    ),
}


def build_pair(name: str, folder: Path) -> Engines:
    """Build the engines of a pair into `folder`."""
    pair = PAIRS[name]
    target = pair.target(folder / "target")
    options: dict[str, Any] = {**SIZES, **pair.build}
    if pair.variant:
        sizes = {"head_dim": 64, "num_layers": 2, "num_taps": 2} | pair.drafter
        options["drafter"] = str(
            pair.make_drafter(
                folder / "drafter", target, variant=pair.variant, dtype="BF16", **sizes
            )
        )
    gpu = BuildConfig(str(target), folder / "gpu", arch="sm120", **options)
    build_for_stand_in(gpu)
    with patch("trtllm_dflash.builder.runtime_fusion.write_attention"):  # the twin rounds there
        build_here(BuildConfig(str(target), folder / "cpu", **options))
    return Engines(folder / "gpu", make_twin(folder / "cpu", folder / "gpu", folder / "twin"))


def random_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Return prompts of these lengths, of tokens that no model treats apart."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 90, length).tolist() for length in lengths]
