"""Embedding, head and vocabulary in a drafter's files: the target's again, or its own."""

from __future__ import annotations

from trtllm_dflash.models.decoder import EMBEDDING_SHAPE
from trtllm_dflash.models.drafter_keys import either
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.tensor_specs import IgnoredSpec, TensorSpec

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
# Of speculators: copies of the target's tensors, for training; which tokens a drafter drafts.
VERIFIER_HEAD, VERIFIER_NORM = "verifier_lm_head.weight", "verifier_norm.weight"
OFFSETS, IS_DRAFTED = "d2t", "t2d"
# What a stored copy is compared with (the target's head may be its embedding).
SHARED_TABLES = {EMBEDDING: "model.embed_tokens.weight", HEAD: "lm_head.weight"}

_COPY = "it is the target's table, which a drafter embeds and decodes with."
_TRAINING = "it is a copy of the target's, for training."
_IDS = "the token ids that the head's rows stand for are read from it."
_OWN = "draft_vocab_size"  # the field under which the head is the drafter's own
_OWN_HEAD = (_OWN, "hidden_size")

USED = (TensorSpec(HEAD, _OWN_HEAD, when=_OWN, is_linear=True),)
IGNORED = (
    IgnoredSpec(EMBEDDING, shape=EMBEDDING_SHAPE, reason=_COPY),
    IgnoredSpec(HEAD, shape=EMBEDDING_SHAPE, reason=_COPY, unless=_OWN),
    IgnoredSpec(VERIFIER_HEAD, shape=EMBEDDING_SHAPE, reason=_TRAINING, unless=_OWN),
    IgnoredSpec(VERIFIER_HEAD, shape=_OWN_HEAD, reason=_TRAINING, when=_OWN),
    IgnoredSpec(VERIFIER_NORM, shape=("hidden_size",), reason=_TRAINING),
    IgnoredSpec(OFFSETS, shape=(_OWN,), reason=_IDS, when=_OWN),
    IgnoredSpec(IS_DRAFTED, shape=("vocab_size",), reason=_IDS, when=_OWN),
)


def read_draft_vocab_size(reader: HfReader, vocab_size: int) -> int | None:
    """Return how many tokens a drafter can draft with a head of its own, None for all of them."""
    size = reader.read(
        int, *either("draft_vocab_size"), default=vocab_size, low=1, high=vocab_size
    )
    return None if size == vocab_size else size


def read_embedding_scale(reader: HfReader) -> float:
    """Return what the embeddings of a block are multiplied by."""
    scale = reader.read(float, *either("input_embedding_scale"), default=1.0)
    if scale <= 0.0:
        reader.fail("input_embedding_scale", f"is {scale:g}, expected more than 0.")
    return scale
