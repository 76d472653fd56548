"""The supported targets: every FAMILY and all FAMILIES that modules of this package define."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from trtllm_dflash import models
from trtllm_dflash.models.base import TargetConfig, TargetFamily
from trtllm_dflash.models.hf_config import Allowed, HfReader, quote


def _discover() -> dict[str, TargetFamily]:
    """Import this package's modules and return their families by Hugging Face architecture."""
    families = {}
    for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        if module.name == __name__:
            continue
        content = importlib.import_module(module.name)
        one = getattr(content, "FAMILY", None)
        for family in getattr(content, "FAMILIES", () if one is None else (one,)):
            families[family.architecture] = family
    return families


TARGET_FAMILIES: Mapping[str, TargetFamily] = _discover()
_NO_EXPERTS = tuple(
    Allowed(name, (0, 1), "this architecture has no experts.")
    for name in ("num_experts", "num_local_experts")
)
# The first letters of architectures that look like a supported one -> why they are another.
_OTHERS: Mapping[str, str] = {
    "Qwen4Exp": "Qwen3.8-Flash-Next and its like compute other layers than Qwen3.5's",
}


def read_target_config(
    config_json: dict[str, Any], generation_config: dict[str, Any] | None, where: str
) -> TargetConfig:
    """Read a target's config.json; `where` names it in errors (ConfigError).

    Stop tokens in generation_config.json replace config.json's, as in `generate`.
    """
    outer = HfReader(config_json, where)
    family = _family(outer)
    text = _text_section(outer, family)
    # As in Hugging Face, a missing key has the config class's default, and a null has not.
    keys = {**family.defaults, **text.data, "model_type": family.model_type}
    if family.text_in:
        keys |= _read_outer(outer)
    reader = HfReader(keys, where, text.prefix)
    if family.read_experts is None:
        reader.check_allowed(_NO_EXPERTS)
    return TargetConfig.from_hf(reader, family, generation_config)


def _read_outer(outer: HfReader) -> dict[str, Any]:
    """Return the keys that count around the decoder's section rather than in it.

    As in Hugging Face, the head and the stop tokens are the outer model's.
    """
    stated = {
        "tie_word_embeddings": outer.read(bool, "tie_word_embeddings", default=None),
        "eos_token_id": list(outer.read_list(int, "eos_token_id", default=(), scalar=True)),
    }
    return {key: value for key, value in stated.items() if value not in (None, [])}


def _family(reader: HfReader) -> TargetFamily:
    if reader.get("build_config.arch") is not None:
        reader.fail(
            "build_config", "is of an engine, not of a model. Give the model's checkpoint."
        )
    names = reader.read_list(str, "architectures")
    family = TARGET_FAMILIES.get(names[0]) if len(names) == 1 else None
    if family is None:
        for start, reason in _OTHERS.items():
            if names and names[0].startswith(start):
                reader.fail(
                    "architectures", f"is {quote(names)}, which is not built: {reason}."
                )
        supported = ", ".join(TARGET_FAMILIES)
        reader.fail(
            "architectures", f"is {quote(names)}, and supported targets are {supported}."
        )
    model_type = reader.read(str, "model_type", default=family.model_type)
    if model_type != family.model_type:
        expected = f"but {family.architecture} goes with {family.model_type!r}."
        reader.fail("model_type", f"is {quote(model_type)}, {expected}")
    return family


def _text_section(outer: HfReader, family: TargetFamily) -> HfReader:
    """Return the reader of the keys of the decoder, which models with images keep in a section."""
    if not family.text_in:
        return outer
    text = outer.section(family.text_in)
    if text is None:
        outer.fail(
            family.text_in, f"is missing, and {family.architecture} has its sizes in there."
        )
    expected = f"{family.model_type}_text"
    model_type = text.read(str, "model_type", default=expected)
    if model_type != expected:
        text.fail("model_type", f"is {quote(model_type)}, expected {expected!r}.")
    if text.get("quantization_config"):
        text.fail(
            "quantization_config", "is not read there. Move it to the top level of config.json."
        )
    return text
