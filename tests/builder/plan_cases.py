"""Pairs with every family, format and option whose engines are compared with their plans.

They are small, and wide enough for weights to be most of an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fixtures.published import published_copy
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_hybrid import EXCLUSIONS, HYBRIDS, tiny_hybrid
from tests.fixtures.tiny_models import DENSE_FAMILIES, tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from tests.graph.test_moe_layer import share_scales
from trtllm_dflash.options.build import BuildConfig

VOCAB, ODD_VOCAB = 16000, 16001
SIZES = {"hidden": 1024, "q_heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 2816}
EXPERTS = {"experts": 16, "expert_size": 512, "shared_size": 512}
DELTA = {"key_heads": 8, "value_heads": 16, "key_dim": 128, "value_dim": 128}
DRAFTER = {"layers": 2, "q_heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 2048}
LAYERS, HYBRID_LAYERS = 2, 4  # the first with keys and values is a hybrid's fourth


@dataclass(frozen=True)
class PlanCase:
    """One engine for sm120; `draft` is the kind of its drafter."""

    family: str
    form: str
    draft: str
    slots: int
    plugins: bool = True
    fp8_caches: bool = False
    gather: bool = False
    odd_tied: bool = False

    def __str__(self) -> str:
        words = [self.family, self.form, self.draft, f"{self.slots}slots"]
        words += [name for name in ("fp8_caches", "gather", "odd_tied") if getattr(self, name)]
        return "-".join(words if self.plugins else [*words, "no_plugins"])

    def make(self, directory: Path) -> BuildConfig:
        """Write the pair of checkpoints; return what builds its engine."""
        target = self._target(directory)
        drafter = self._drafter(directory, target)
        return BuildConfig(
            str(target),
            directory / "engine",
            None if drafter is None else str(drafter),
            arch="sm120",
            plugins=self.plugins,
            max_batch_size=self.slots,
            max_seq_len=1024,
            max_num_tokens=256,
            gather_generation_logits=self.gather,
        )

    def _target(self, directory: Path) -> Path:
        source = directory / "source"
        made: dict[str, Any] = {
            "dtype": "BF16",
            "vocab_size": ODD_VOCAB if self.odd_tied else VOCAB,
            "sizes": SIZES | EXPERTS | DELTA | {"layers": LAYERS},
        }
        if self.family in HYBRIDS:
            made["sizes"]["layers"] = HYBRID_LAYERS
            tiny_hybrid(source, self.family, tied=self.odd_tied, **made)
        elif self.family in DENSE_FAMILIES:
            tiny_target(source, self.family, tied=self.odd_tied, **made)
        else:
            del made["sizes"]["ffn"]
            make = tiny_gpt_oss if self.family == "gpt_oss" else tiny_qwen3_moe
            mxfp4 = {"mxfp4": self.form == "mxfp4"} if make is tiny_gpt_oss else {}
            make(source, **made, **mxfp4)
        if self.form in ("bf16", "mxfp4"):
            return source
        target = directory / "target"
        if self.form == "fp8_block":
            return published_copy(source, target, "fine_grained")
        exclude = (*EXCLUSIONS, *(("*mlp.experts.*",) if self.form == "fp8" else ()))
        quantized_copy(source, target, self.form, exclude=exclude, kv_cache=self.fp8_caches)
        if self.form == "nvfp4" and self.family not in DENSE_FAMILIES:
            share_scales(target)
        return target

    def _drafter(self, directory: Path, target: Path) -> Path | None:
        options: dict[str, Any] = {"dtype": "BF16", "taps": (0,), "block_size": 8}
        options["sizes"] = DRAFTER
        if self.draft == "none":
            return None
        if self.draft == "dflash":
            return tiny_drafter(directory / "drafter", target, **options)
        settings = {"selector_rank": 64, "selector_top_k": 16}
        return tiny_dflash2(directory / "drafter", target, settings=settings, **options)


NO_PLUGINS = {"plugins": False}
CASES = (
    PlanCase("llama", "bf16", "none", 4, odd_tied=True),
    PlanCase("llama", "fp8", "dflash", 1, fp8_caches=True, gather=True),
    PlanCase("llama", "fp8_block", "dflash", 4, **NO_PLUGINS),
    PlanCase("llama", "nvfp4", "dflash2", 1, gather=True, odd_tied=True, **NO_PLUGINS),
    PlanCase("qwen2", "fp8", "none", 1, fp8_caches=True, odd_tied=True),
    PlanCase("mistral", "bf16", "none", 1, gather=True, **NO_PLUGINS),
    PlanCase("qwen3", "bf16", "dflash", 4, gather=True, odd_tied=True),
    PlanCase("qwen3_moe", "bf16", "none", 1, **NO_PLUGINS),
    PlanCase("qwen3_moe", "nvfp4", "dflash2", 4, fp8_caches=True, gather=True),
    PlanCase("gpt_oss", "mxfp4", "none", 4),
    PlanCase("gpt_oss", "mxfp4", "dflash2", 4, **NO_PLUGINS),
    PlanCase("qwen3_next", "bf16", "dflash", 4, **NO_PLUGINS),
    PlanCase("qwen3_5", "bf16", "dflash2", 4, odd_tied=True, **NO_PLUGINS),
    PlanCase("qwen3_5", "nvfp4", "dflash", 4),
    PlanCase("qwen3_5_moe", "bf16", "dflash2", 4, gather=True),
    PlanCase("qwen3_5_moe", "nvfp4", "dflash", 1, fp8_caches=True),
)
