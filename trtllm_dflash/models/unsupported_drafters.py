"""Drafter dialects that look like DFlash v1 and are not: one table, by which each is recognised and
refused by name.

A drafter loaded under the wrong dialect computes without an error and drafts noise, so the table is
checked three times: against the file names, against config.json before anything else is read from
it, and against the tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.hf_config import HfReader

ARCHITECTURE = "DFlashDraftModel"


@dataclass(frozen=True)
class Sign:
    """A config key that gives a dialect away: any value outside `neutral`, or, if `equals` is
    given, one of those.
    """

    path: str
    neutral: tuple[object, ...] = ()
    equals: tuple[object, ...] = ()

    def matches(self, reader: HfReader) -> bool:
        """Tell whether the key is present with a telling value."""
        value = reader.get(self.path)
        if value is None:
            return False
        if self.equals:
            entries = value if isinstance(value, list) else [value]
            return any(entry in self.equals for entry in entries)
        return value not in self.neutral


@dataclass(frozen=True)
class Dialect:
    """One dialect: its name, its signs in config.json, tensor names (regular expressions) and
    files, and why not.
    """

    name: str
    signs: tuple[Sign, ...]
    tensors: tuple[str, ...]
    sentence: str
    files: tuple[str, ...] = ()


def _either(
    name: str, *, neutral: tuple[object, ...] = (), equals: tuple[object, ...] = ()
) -> tuple[Sign, ...]:
    """The key at the top level or inside dflash_config: published drafters use both places."""
    return tuple(Sign(path, neutral, equals) for path in (name, f"dflash_config.{name}"))


# The first match speaks, so the specific dialects stand before the features that several of them
# share.
DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "DFlash 2",
        (Sign("architectures", equals=("DFlash2DraftModel",)),
         *_either("conv_kernel_size"), *_either("conv_group_size"),
         *_either("selector_rank"), *_either("selector_top_k"), *_either("selector_vocab_size")),
        (r"\.(attention_conv|mlp_conv)\.", r"^candidate_selector\."),
        "its convolutions and candidate selector are not supported. Use a DFlash v1 drafter.",
    ),
    Dialect(
        "Laguna",
        (Sign("architectures", equals=("DFlashLagunaForCausalLM", "LagunaDFlashDraftModel")),
         Sign("model_type", equals=("laguna",)), Sign("gating")),
        (r"\.(qkv_proj|g_proj)\.", r"^aux_hidden_norms\."),
        "its fused projections, output gates and norms per tap are not supported.",
    ),
    Dialect(
        "speculators (RedHat)",
        (Sign("speculators_model_type"), Sign("speculators_config"), Sign("transformer_layer_config"),
         *_either("draft_vocab_size"), *_either("aux_hidden_state_layer_ids")),
        (r"^(d2t|t2d)$",),
        "it has its own reduced vocabulary and counts target layers from 1. Use the z-lab original of this drafter.",
    ),
    Dialect(
        "DSpark or Domino",
        (Sign("architectures", equals=("Qwen3DSparkModel", "DSparkDraftModel", "DominoDraftModel")),
         *_either("projector_type", neutral=("dflash",)), *_either("markov_rank"), Sign("dspark_markov_rank")),
        (r"(^|\.)(markov\w*|confidence_head|gru)\.",),
        "its correction head is not supported. Use a DFlash v1 drafter.",
    ),
    Dialect(
        "MiMo",
        _either("attention_value_scale", neutral=(1, 1.0)),
        (r"^mask_embedding$",),
        "its attention sinks, value scale and mask embedding are not supported.",
        ("mask_embedding.pt",),
    ),
    Dialect(
        "Nemotron or another drafter with attention sinks",
        (*_either("attention_sink_bias", neutral=(False,)), *_either("attention_sink", neutral=(False,)),
         Sign("add_swa_attention_sink_bias", equals=(True,))),
        (r"\.(sinks?|attention_sink_bias|attn_sink)$",),
        "attention sinks are not supported in a drafter.",
    ),
    Dialect(
        "sample_from_anchor",
        (*_either("sample_from_anchor", neutral=(False,)), *_either("shift_label", neutral=(False,))),
        (),
        "its rows are shifted by one; in DFlash v1 the anchor's row drafts nothing, a mask row its own position.",
    ),
    Dialect(
        "Muse-Glimmer",
        (Sign("model_type", equals=("muse_glimmer_assistant",)),
         Sign("architectures", equals=("MuseGlimmerAssistantModel", "MuseGlimmerAssistantDraftModel"))),
        (r"^encoder\.(fc|output_norm_enc)\.",),
        "its encoder layout is not supported.",
    ),
    Dialect(
        "Gemma 4",
        (*_either("input_embedding_scale", neutral=(1, 1.0)), *_either("output_multiplier", neutral=(1, 1.0)),
         *_either("final_logit_softcapping", neutral=(0, 0.0))),
        (),
        "scaled embeddings and capped or scaled logits are not supported in a drafter.",
    ),
    Dialect(
        "EAGLE-3",
        (Sign("architectures", equals=("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")),),
        (r"^midlayer\.",),
        "it drafts one token per pass. Use a DFlash v1 drafter.",
    ),
)  # fmt: skip


def refuse_dialects_in_config(reader: HfReader) -> None:
    """Raise ConfigError naming the dialect that config.json gives away."""
    for dialect in DIALECTS:
        for sign in dialect.signs:
            if sign.matches(reader):
                raise ConfigError(_refusal(reader.where, sign.path, dialect))


def refuse_dialects_in_names(names: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming the dialect that the tensor names give away."""
    listed = sorted(names)
    for dialect in DIALECTS:
        for pattern in map(re.compile, dialect.tensors):
            hit = next((name for name in listed if pattern.search(name)), None)
            if hit is not None:
                raise CheckpointError(_refusal(where, f"tensor {hit}", dialect))


def refuse_dialects_in_files(files: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming the dialect that a file beside the weights gives away."""
    present = set(files)
    for dialect in DIALECTS:
        for file in dialect.files:
            if file in present:
                raise CheckpointError(_refusal(where, file, dialect))


def _refusal(where: str, evidence: str, dialect: Dialect) -> str:
    return (
        f"{where}: {evidence} shows a drafter of the dialect '{dialect.name}': {dialect.sentence}"
    )
