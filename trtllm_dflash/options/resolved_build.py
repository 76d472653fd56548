"""The sizes of an engine, resolved from the options of a build and its models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.fields import option_name

if TYPE_CHECKING:
    from trtllm_dflash.models.base import TargetConfig

# What no engine exceeds, so that sizes from a file are bounded.
MAX_SLOTS = 1 << 16
MAX_SEQ_LEN = 1 << 24
_CACHE_ALIGNMENT = 64


@dataclass(frozen=True)
class ResolvedBuild:
    """The sizes an engine is built with; a plain engine has block_size 1 and draft_len 0."""

    gpu_arch: str  # a key of ARCHS: "cpu" too
    backend: str
    dtype: str
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    block_size: int
    draft_len: int  # with auto_draft_len: as many as there can be
    plugins: bool
    gather_generation_logits: bool = False
    weight_only_precision: str | None = None  # of weights as integers by block; None: none is
    auto_draft_len: bool = False  # steps verify as many drafts as pay

    @property
    def cache_len(self) -> int:
        """Return the rows of a cache of all positions: a sequence and three blocks behind its end.

        The step that ends a sequence may begin at its last token but one. It writes a block of
        tokens to verify and, in the drafter's caches, the next block. A session that looks ahead
        has one more step in flight, which begins up to a block later.
        """
        needed = self.max_seq_len + 3 * self.block_size
        return -(-needed // _CACHE_ALIGNMENT) * _CACHE_ALIGNMENT

    @property
    def ring_width(self) -> int | None:
        """Return the widest step that a ring cache must hold; None if no layer has a ring.

        Without plugins a GPU engine has only full caches: TensorRT-RTX 1.7 takes no circular
        TensorScatter. See `engine_dir.ring_cache`. With integer weights of 4 bits some processors
        need a row more (`runtime.sessions.integer_rows`).
        """
        if ARCHS[self.gpu_arch].is_gpu and not self.plugins:
            return None
        return self.max_num_tokens + (self.weight_only_precision == "int4")

    def check_against(self, target: TargetConfig) -> None:
        """Raise UsageError for two sizes that contradict each other; it names both."""
        context = target.context_limit
        one_token = "max-seq-len - 1: a prompt must leave room for one token"
        no_wider = "max-seq-len: no step can be wider than a sequence"
        anchor = "block-size - 1: the block's first token is the anchor"
        limits = (
            ("max_seq_len", context.tokens, context.reason),
            ("max_input_len", self.max_seq_len - 1, one_token),
            ("max_num_tokens", self.max_seq_len, no_wider),
            ("draft_len", self.block_size - 1, anchor),
        )
        for name, limit, reason in limits:
            value = getattr(self, name)
            if value > limit:
                raise UsageError(f"{option_name(name)} {value} is more than {limit}, {reason}")
        if self.max_num_tokens < self.block_size:
            raise UsageError(
                f"--max-num-tokens {self.max_num_tokens} is less than the block of"
                f" {self.block_size} tokens that one step verifies"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the `build_config` section of the engine's config.json."""
        sizes = asdict(self)
        if sizes.pop("auto_draft_len"):
            sizes["draft_len"] = AUTO
        # As in the manifest and on the command line.
        return {"arch": sizes.pop("gpu_arch"), **sizes, "cache_len": self.cache_len}
