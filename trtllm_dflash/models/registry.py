"""The supported targets: every module of this package that defines a FAMILY is one of them."""

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
        family = getattr(importlib.import_module(module.name), "FAMILY", None)
        if family is not None:
            families[family.architecture] = family
    return families


TARGET_FAMILIES: Mapping[str, TargetFamily] = _discover()
_WITH_EXPERTS = [name for name, family in TARGET_FAMILIES.items() if family.read_experts]
_NO_EXPERTS = tuple(
    Allowed(name, (0, 1), f"only {' and '.join(_WITH_EXPERTS)} have experts here.")
    for name in ("num_experts", "num_local_experts")
)


def read_target_config(
    config_json: dict[str, Any], generation_config: dict[str, Any] | None, where: str
) -> TargetConfig:
    """Read a target's config.json; `where` names it in errors (ConfigError).

    Stop tokens in generation_config.json replace config.json's, as in `generate`.
    """
    family = _family(HfReader(config_json, where))
    # As in Hugging Face, a missing key has the config class's default, and a null has not.
    keys = {**family.defaults, **config_json, "model_type": family.model_type}
    reader = HfReader(keys, where)
    if family.read_experts is None:
        reader.check_allowed(_NO_EXPERTS)
    return TargetConfig.from_hf(reader, family, generation_config)


def _family(reader: HfReader) -> TargetFamily:
    if reader.get("build_config.arch") is not None:
        reader.fail(
            "build_config", "is of an engine, not of a model. Give the model's checkpoint."
        )
    names = reader.read_list(str, "architectures")
    family = TARGET_FAMILIES.get(names[0]) if len(names) == 1 else None
    if family is None:
        supported = ", ".join(TARGET_FAMILIES)
        reader.fail(
            "architectures", f"is {quote(names)}, and supported targets are {supported}."
        )
    model_type = reader.read(str, "model_type", default=family.model_type)
    if model_type != family.model_type:
        expected = f"but {family.architecture} goes with {family.model_type!r}."
        reader.fail("model_type", f"is {quote(model_type)}, {expected}")
    return family
