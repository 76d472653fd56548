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
class ConfigMarker:
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
class UnsupportedDrafter:
    """One variant of drafter: its name, its markers in config.json, tensor names (regular expressions) and
    files, and why not.
    """

    name: str
    markers: tuple[ConfigMarker, ...]
    tensors: tuple[str, ...]
    reason: str
    files: tuple[str, ...] = ()


def _either(
    name: str, *, neutral: tuple[object, ...] = (), equals: tuple[object, ...] = ()
) -> tuple[ConfigMarker, ...]:
    """The key at the top level or inside dflash_config: published drafters use both places."""
    return tuple(ConfigMarker(path, neutral, equals) for path in (name, f"dflash_config.{name}"))


# The first match speaks, so the specific dialects stand before the features that several of them
# share.
UNSUPPORTED_DRAFTERS: tuple[UnsupportedDrafter, ...] = (
    UnsupportedDrafter(
        "DFlash 2",
        (ConfigMarker("architectures", equals=("DFlash2DraftModel",)),
         *_either("conv_kernel_size"), *_either("conv_group_size"),
         *_either("selector_rank"), *_either("selector_top_k"), *_either("selector_vocab_size")),
        (r"\.(attention_conv|mlp_conv)\.", r"^candidate_selector\."),
        "its convolutions and candidate selector are not supported. Use a DFlash v1 drafter.",
    ),
    UnsupportedDrafter(
        "Laguna",
        (ConfigMarker("architectures", equals=("DFlashLagunaForCausalLM", "LagunaDFlashDraftModel")),
         ConfigMarker("model_type", equals=("laguna",)), ConfigMarker("gating")),
        (r"\.(qkv_proj|g_proj)\.", r"^aux_hidden_norms\."),
        "its fused projections, output gates and norms per tap are not supported.",
    ),
    UnsupportedDrafter(
        "speculators (RedHat)",
        (ConfigMarker("speculators_model_type"), ConfigMarker("speculators_config"), ConfigMarker("transformer_layer_config"),
         *_either("draft_vocab_size"), *_either("aux_hidden_state_layer_ids")),
        (r"^(d2t|t2d)$",),
        "it has its own reduced vocabulary and counts target layers from 1. Use the z-lab original of this drafter.",
    ),
    UnsupportedDrafter(
        "DSpark or Domino",
        (ConfigMarker("architectures", equals=("Qwen3DSparkModel", "DSparkDraftModel", "DominoDraftModel")),
         *_either("projector_type", neutral=("dflash",)), *_either("markov_rank"), ConfigMarker("dspark_markov_rank")),
        (r"(^|\.)(markov\w*|confidence_head|gru)\.",),
        "its correction head is not supported. Use a DFlash v1 drafter.",
    ),
    UnsupportedDrafter(
        "MiMo",
        _either("attention_value_scale", neutral=(1, 1.0)),
        (r"^mask_embedding$",),
        "its attention sinks, value scale and mask embedding are not supported.",
        ("mask_embedding.pt",),
    ),
    UnsupportedDrafter(
        "Nemotron or another drafter with attention sinks",
        (*_either("attention_sink_bias", neutral=(False,)), *_either("attention_sink", neutral=(False,)),
         ConfigMarker("add_swa_attention_sink_bias", equals=(True,))),
        (r"\.(sinks?|attention_sink_bias|attn_sink)$",),
        "attention sinks are not supported in a drafter.",
    ),
    UnsupportedDrafter(
        "sample_from_anchor",
        (*_either("sample_from_anchor", neutral=(False,)), *_either("shift_label", neutral=(False,))),
        (),
        "its rows are shifted by one; in DFlash v1 the anchor's row drafts nothing, a mask row its own position.",
    ),
    UnsupportedDrafter(
        "Muse-Glimmer",
        (ConfigMarker("model_type", equals=("muse_glimmer_assistant",)),
         ConfigMarker("architectures", equals=("MuseGlimmerAssistantModel", "MuseGlimmerAssistantDraftModel"))),
        (r"^encoder\.(fc|output_norm_enc)\.",),
        "its encoder layout is not supported.",
    ),
    UnsupportedDrafter(
        "Gemma 4",
        (*_either("input_embedding_scale", neutral=(1, 1.0)), *_either("output_multiplier", neutral=(1, 1.0)),
         *_either("final_logit_softcapping", neutral=(0, 0.0))),
        (),
        "scaled embeddings and capped or scaled logits are not supported in a drafter.",
    ),
    UnsupportedDrafter(
        "EAGLE-3",
        (ConfigMarker("architectures", equals=("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")),),
        (r"^midlayer\.",),
        "it drafts one token per pass. Use a DFlash v1 drafter.",
    ),
)  # fmt: skip


def refuse_unsupported_in_config(reader: HfReader) -> None:
    """Raise ConfigError naming the dialect that config.json gives away."""
    for unsupported in UNSUPPORTED_DRAFTERS:
        for marker in unsupported.markers:
            if marker.matches(reader):
                raise ConfigError(_refusal(reader.where, marker.path, unsupported))


def refuse_unsupported_in_names(names: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming the dialect that the tensor names give away."""
    listed = sorted(names)
    for unsupported in UNSUPPORTED_DRAFTERS:
        for pattern in map(re.compile, unsupported.tensors):
            hit = next((name for name in listed if pattern.search(name)), None)
            if hit is not None:
                raise CheckpointError(_refusal(where, f"tensor {hit}", unsupported))


def refuse_unsupported_in_files(files: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming the dialect that a file beside the weights gives away."""
    present = set(files)
    for unsupported in UNSUPPORTED_DRAFTERS:
        for file in unsupported.files:
            if file in present:
                raise CheckpointError(_refusal(where, file, unsupported))


def _refusal(where: str, evidence: str, unsupported: UnsupportedDrafter) -> str:
    return f"{where}: {evidence} shows a drafter of the variant '{unsupported.name}': {unsupported.reason}"
