"""The facts of a pair that an export needs, from its config.json files or from the catalog.

TensorRT-LLM runs more targets and drafters than `build` takes, so the readers of `models` are not
used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.catalog.pairs import drafter_licence, pair_of, unknown_name_message
from trtllm_dflash.catalog.published import target_json
from trtllm_dflash.checkpoint.formats import HF_QUANT_CONFIG
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.model_card import stated_licence
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.context import ContextLimit, read_context_limit
from trtllm_dflash.models.dflash2 import is_dflash2
from trtllm_dflash.models.drafter import MAX_BLOCK_SIZE, MIN_BLOCK_SIZE
from trtllm_dflash.models.drafter_keys import either
from trtllm_dflash.models.dspark import is_dspark
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.speculators import TARGETS, flat_config, is_speculators
from trtllm_dflash.models.unsupported_drafters import (
    UNSUPPORTED_DRAFTERS,
    ConfigMarker,
    markers,
)

# Variants of drafters that TensorRT-LLM's DFlash has code for.
DFLASH_2 = "DFlash 2"
SUPPORTED_VARIANTS = (DFLASH_2, "Laguna")
# Variants that `build` takes. TensorRT-LLM's pages do not mention their keys.
_BUILT_VARIANTS = {
    "speculators (RedHat)": (ConfigMarker("speculators_model_type"), ConfigMarker(TARGETS)),
    "Gemma 4": (
        *markers("input_embedding_scale", neutral=(1, 1.0)),
        *markers("output_multiplier", neutral=(1, 1.0)),
        *markers("final_logit_softcapping", neutral=(0, 0.0)),
    ),
    "attention sinks": markers("attention_sink_bias", neutral=(False,)),
    "sample_from_anchor": (
        *markers("sample_from_anchor", neutral=(False,)),
        *markers("shift_label", neutral=(False,)),
    ),
}
# Variants with a decoding_type of their own. Its pages do not mention the others.
DSPARK = "DSpark"
_OTHER_DECODING_TYPES = (DSPARK, "DSpark of other layers", "EAGLE-3")


@dataclass(frozen=True)
class PairFacts:
    """A pair, and the sizes on which splitting it among GPUs depends."""

    target: str  # an absolute directory or a hub name
    drafter: str  # likewise
    architecture: str
    block_size: int | None  # None: not published
    target_layer_ids: tuple[int, ...] | None  # in the drafter's order; None: not published
    mask_token_id: int | None  # None: not published
    context_limit: ContextLimit | None  # of the target; None: not published
    draft_context_bytes: int | None  # of one position in the drafter's caches; None: unknown
    draft_kv_heads: int  # among which those are split; 0: unknown
    heads: dict[str, int]  # known counts by what they are, as "target's {} heads"
    experts: int  # 0: dense
    state_bytes: int  # of one sequence's recurrent states, float32; 0: no linear attention
    quantization: str  # of the target, in words
    drafter_variant: str | None  # of the drafter, where it is not DFlash v1
    drafter_licence: str  # in words
    chat_template_kwargs: Mapping[str, Any]  # with which the drafter was trained, if published


def read_pair(target: str, drafter: str | None) -> PairFacts:
    """Read the facts of a pair of directories or published names.

    Raises:
        UsageError: for an unknown model, or a drafter that is not for TensorRT-LLM's DFlash or not
            for this target.
        ConfigError: for a config.json that lacks what is needed.
    """
    target_name, target_reader, quant_file = _target(target)
    drafter_name, drafter_reader = _drafter(target, drafter)
    variant = _variant(drafter_reader)
    drafter_reader = _published_layout(drafter_reader)
    if variant in _OTHER_DECODING_TYPES:
        raise UsageError(
            f"drafter {drafter_name}: it is of the variant '{variant}', for which TensorRT-LLM"
            " has another decoding_type than DFlash. Give a DFlash drafter"
        )
    _check_pair(target_name, target_reader, drafter_name, drafter_reader)
    architectures = target_reader.read_list(str, "architectures")
    return PairFacts(
        target=target_name,
        drafter=drafter_name,
        architecture=architectures[0] if architectures else "unknown",
        block_size=drafter_reader.read(
            int,
            *either("block_size"),
            default=None,
            low=MIN_BLOCK_SIZE,
            high=MAX_BLOCK_SIZE,
        ),
        target_layer_ids=_read_taps(drafter_reader, target_reader),
        mask_token_id=drafter_reader.read(int, *either("mask_token_id"), default=None, low=0),
        context_limit=read_context_limit(target_reader),
        draft_context_bytes=_draft_context_bytes(drafter_reader),
        draft_kv_heads=_size(drafter_reader, "num_key_value_heads"),
        heads=_heads(target_reader, drafter_reader),
        experts=_size(target_reader, "num_local_experts")
        or _size(target_reader, "num_experts"),
        state_bytes=_state_bytes(target_reader),
        quantization=_quantization(target_reader, quant_file),
        drafter_variant=variant,
        drafter_licence=_licence(drafter_name),
        chat_template_kwargs=_template_options(drafter_name),
    )


def _licence(drafter: str) -> str:
    """Return a drafter's licence and who states it; a directory's model card states its own."""
    stated = stated_licence(Path(drafter)) if drafter.startswith("/") else None
    return drafter_licence(drafter) if stated is None else f"{stated} (its README.md)"


def _template_options(drafter: str) -> Mapping[str, Any]:
    pair = pair_of(drafter, "drafter")
    return {} if pair is None else pair.drafter.chat_template_kwargs


def _read_taps(drafter: HfReader, target: HfReader) -> tuple[int, ...] | None:
    """Return the target layers that the drafter reads, counted from 0; None if not published."""
    taps = drafter.read_list(int, *either("target_layer_ids"), default=None)
    if taps is None:
        return None
    num_layers = _size(drafter, "num_target_layers") or _size(target, "num_hidden_layers")
    for tap in taps:
        if tap < 0 or (num_layers and tap >= num_layers):
            last = f"{num_layers - 1} (the last)" if num_layers else "the target's last layer"
            drafter.fail(
                "target_layer_ids", f"contains {tap}, expected 0 (the first layer) to {last}."
            )
    return taps


def _draft_context_bytes(reader: HfReader) -> int | None:
    """Return the bytes of one position in all of the drafter's caches, in BF16."""
    num_layers, head_dim = _size(reader, "num_hidden_layers"), _size(reader, "head_dim")
    kv_heads = _size(reader, "num_key_value_heads")
    return 2 * 2 * num_layers * kv_heads * head_dim or None


def _state_bytes(reader: HfReader) -> int:
    """Return the bytes of one sequence's states in gated delta nets, as Qwen3.5 and Next have them.

    Without layer_types every fourth layer, or what full_attention_interval says, is another.
    """
    heads = _size(reader, "linear_num_value_heads")
    size = _size(reader, "linear_key_head_dim") * _size(reader, "linear_value_head_dim")
    num_layers = _size(reader, "num_hidden_layers")
    types = reader.read_list(str, "layer_types", "text_config.layer_types", default=None)
    interval = _size(reader, "full_attention_interval") or 4
    linear = num_layers - num_layers // interval
    if types is not None:
        linear = types.count("linear_attention")
    return linear * heads * size * 4


def _published_layout(reader: HfReader) -> HfReader:
    """Return a drafter's keys in the published layout, as far as they are known."""
    is_whole = reader.get(TARGETS) is not None and reader.get("block_size") is not None
    if not is_speculators(reader.data) or not is_whole:
        return reader
    return HfReader(flat_config(reader.data, reader.where), reader.where)


def _variant(reader: HfReader) -> str | None:
    for variant in UNSUPPORTED_DRAFTERS:
        if any(marker.matches(reader) for marker in variant.markers):
            return variant.name
    if is_dspark(reader):
        return DSPARK
    if is_dflash2(reader):
        return DFLASH_2
    for name, telling in _BUILT_VARIANTS.items():
        if any(marker.matches(reader) for marker in telling):
            return name
    return None


def _heads(target: HfReader, drafter: HfReader) -> dict[str, int]:
    """Return the heads that are split among GPUs, none in part.

    Value heads of linear attention are a multiple of its key heads, and are split with those.
    """
    heads = {
        "target's {} heads": _size(target, "num_attention_heads"),
        "target's {} key heads of linear attention": _size(target, "linear_num_key_heads"),
        "drafter's {} heads": _size(drafter, "num_attention_heads"),
    }
    return {words: count for words, count in heads.items() if count}


def _target(name: str) -> tuple[str, HfReader, dict[str, Any] | None]:
    path = Path(name)
    if path.is_dir():
        quant_file = read_json_in(path, HF_QUANT_CONFIG)
        return str(path.resolve()), HfReader(_config(path), f"target {path}"), quant_file
    pair = pair_of(name)
    if pair is None:
        raise UsageError(f"{unknown_name_message(name, 'target')}. Give its directory.")
    repository = pair.target.repository
    return repository, HfReader(target_json(pair.target), f"target {repository}"), None


def _drafter(target: str, name: str | None) -> tuple[str, HfReader]:
    path = Path(name) if name else None
    if path is not None and path.is_dir():
        return str(path.resolve()), HfReader(_config(path), f"drafter {path}")
    if name is not None:
        pair = pair_of(name, "drafter")
        if pair is None:
            raise UsageError(f"{unknown_name_message(name, 'drafter')}. Give its directory.")
    else:
        pair = None if Path(target).is_dir() else pair_of(target)
        if pair is None:
            raise UsageError(
                "--drafter is missing, and a target's directory selects none. Give the drafter's"
                " directory or name."
            )
    drafter = pair.drafter
    published = {"architectures": [drafter.architecture], **drafter.config}
    return drafter.repository, HfReader(published, f"drafter {drafter.repository}")


def _check_pair(
    target: str, target_reader: HfReader, drafter: str, drafter_reader: HfReader
) -> None:
    """Raise UsageError for sizes that contradict each other, as far as both are known.

    TensorRT-LLM would find them on the GPUs only.
    """
    names = {
        "hidden_size": "hidden_size",
        "vocab_size": "vocab_size",
        "num_target_layers": "num_hidden_layers",
    }
    problems = []
    for name, target_key in names.items():
        size = _size(drafter_reader, name)
        expected = _size(target_reader, target_key)
        if size and expected and size != expected:
            problems.append(
                f"{name} is {size} in the drafter, and {target_key} {expected} in the target"
            )
    if problems:
        raise UsageError(
            f"the drafter {drafter} does not fit the target {target}: {'; '.join(problems)}. Give"
            " the drafter that was trained for this target."
        )


def _config(directory: Path) -> dict[str, Any]:
    config = read_json_in(directory, "config.json")
    if config is None:
        raise UsageError(
            f"{directory}: there is no config.json in it. Give the directory of a Hugging Face"
            " checkpoint."
        )
    return config


def _size(reader: HfReader, name: str) -> int:
    """Read a size, which models with images keep in text_config; 0 if it is missing."""
    return reader.read(int, name, f"text_config.{name}", default=0, low=0)


def _quantization(reader: HfReader, quant_file: dict[str, Any] | None) -> str:
    if quant_file is not None:
        reader = HfReader(
            {"quantization_config": quant_file.get("quantization", {})}, reader.where
        )
    method = reader.read(
        str, "quantization_config.quant_algo", "quantization_config.quant_method", default=None
    )
    if quant_file is not None and method is None:
        raise UsageError(
            f"{reader.where}: {HF_QUANT_CONFIG} has no quant_algo, and TensorRT-LLM refuses such a"
            " checkpoint. Give the original target, or one with quantized weights."
        )
    return method or "none: the weights are as trained"
