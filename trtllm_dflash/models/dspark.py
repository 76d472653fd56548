"""What DSpark adds to a drafter: a Markov head, which adds to a row's logits by the token before.

Source: DSpark (arXiv 2607.05147), as ModelOpt, speculators and NeMo AutoModel implement it. Only
the plain ("vanilla") head is built: its bias W2 · W1[token before] needs no row's hidden state. The
candidates are the 64 likeliest tokens of a row; the makers add the bias to all of them.
"""

from __future__ import annotations

from trtllm_dflash.models.dflash2 import MAX_CANDIDATES, SelectorConfig
from trtllm_dflash.models.drafter_keys import either
from trtllm_dflash.models.hf_config import MAX_SIZE, Allowed, HfReader
from trtllm_dflash.models.tensor_specs import IgnoredSpec, TensorSpec

# DeepSpec's and AutoModel's class, and SpecForge's and speculators'. ModelOpt names it in a key.
ARCHITECTURES = ("Qwen3DSparkModel", "DSparkDraftModel")
PROJECTOR = "dspark"
MARKOV = "markov_head"
W1, W2 = f"{MARKOV}.markov_w1", f"{MARKOV}.markov_w2"

_HEAD_TYPE = tuple(
    Allowed(
        path,
        ("vanilla",),
        "a gated or recurrent head needs each row's hidden state beside the token before. Use a"
        " drafter with the plain head.",
    )
    for path in either("markov_head_type")
)
_CONFIDENCE = "it predicts which drafts are accepted; an engine verifies --draft-len of them."
_CONFIDENCE_HEADS = (
    "confidence_head.proj.weight",
    "confidence_head.proj.bias",
    "confidence_proj.weight",
    "confidence_proj.bias",
)

USED = (
    TensorSpec(f"{W1}.weight", ("vocab_size", "markov_rank"), when="markov_rank"),
    TensorSpec(f"{W2}.weight", ("num_draft_tokens", "markov_rank"), when="markov_rank"),
)
IGNORED = tuple(
    IgnoredSpec(name, reason=_CONFIDENCE, when="markov_rank") for name in _CONFIDENCE_HEADS
)


def is_dspark(reader: HfReader) -> bool:
    """Tell whether config.json describes DSpark."""
    names = reader.read_list(str, "architectures", default=())
    projector = reader.read(str, *either("projector_type"), default=None)
    stated = any(reader.get(path) for path in either("markov_rank"))
    return names[:1] in [(name,) for name in ARCHITECTURES] or projector == PROJECTOR or stated


def read_markov_rank(reader: HfReader) -> int | None:
    """Return the rank of a DSpark drafter's Markov head, None for a drafter without one."""
    reader.check_allowed(_HEAD_TYPE)
    return reader.read(int, *either("markov_rank"), low=0, high=MAX_SIZE) or None


def walk_of(markov_rank: int) -> SelectorConfig:
    """Return the walk over a row's candidates that a Markov head of this rank makes."""
    return SelectorConfig(markov_rank, MAX_CANDIDATES)


def read_anchor_rows(reader: HfReader, *, default: bool) -> bool:
    """Return whether the anchor's row drafts; DSpark's does by default.

    `dspark_bonus_anchor` says the opposite in other words.
    """
    paths = (*either("sample_from_anchor"), *either("shift_label"))
    bonus = reader.read(bool, *either("dspark_bonus_anchor"), default=None)
    if bonus is None:
        return reader.read(bool, *paths, default=default)
    stated = reader.read(bool, *paths, default=not bonus)
    if stated is bonus:
        reader.fail(
            "dspark_bonus_anchor",
            f"is {str(bonus).lower()}, and so is sample_from_anchor: the anchor's row drafts or"
            " not. Make them agree or drop one.",
        )
    return stated
