"""The models of an estimate, by their names in `dflash-trt list` or by a directory's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_dflash.builder.pair_support import published_drafter, published_target
from trtllm_dflash.catalog.pairs import Role, pair_of, unknown_name_message
from trtllm_dflash.checkpoint.actual_quantization import settle_quantization
from trtllm_dflash.checkpoint.formats import HF_QUANT_CONFIG
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.index import has_weights_in, read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.checkpoint.text_part import drafter_quantization
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config


def find_target(name: str, *, has_weights: bool = False) -> Checkpoint[TargetConfig]:
    """Return the target whose config.json is in the directory `name`, or the listed one.

    With `has_weights`, a quantization that only its tensors can settle is not refused.

    Raises:
        UsageError: for an unknown name, with the nearest ones.
        ConfigError: for a configuration that is not supported.
    """
    if Path(name).is_dir():
        return _read_directory(name, "target", has_weights=has_weights)
    found = published_target(name)
    if found is None:
        raise UsageError(f"{unknown_name_message(name, 'target')}. Give its directory.")
    return found


def find_drafter(
    name: str | None, *, target: str = "", has_weights: bool = False
) -> Checkpoint[DrafterConfig]:
    """Return the drafter `name` likewise; without a name that of the listed `target`.

    Raises:
        UsageError: for an unknown name, and for one whose sizes are not published.
        ConfigError: for a configuration that is not supported.
    """
    if name is not None and Path(name).is_dir():
        return _read_directory(name, "drafter", has_weights=has_weights)
    if name is not None:
        pair, missing = pair_of(name, "drafter"), unknown_name_message(name, "drafter")
    else:
        pair = None if Path(target).is_dir() else pair_of(target)
        missing = f"--drafter is missing, and the target {target} brings none"
    if pair is None:
        raise UsageError(f"{missing}. Give its directory.")
    repository = pair.drafter.repository
    found = published_drafter(repository)
    if found is None:
        raise UsageError(
            f"drafter {repository}: its sizes are not published; give its directory."
        )
    return found


def source_of(model: Checkpoint[Any]) -> str:
    """Return whose files state a model's shape, for people."""
    name = str(model.directory)
    role: Role = "target" if isinstance(model.config, TargetConfig) else "drafter"
    pair = None if model.directory.is_dir() else pair_of(name, role)
    return name if pair is None else pair.source


def _read_directory(name: str, role: Role, *, has_weights: bool) -> Checkpoint[Any]:
    config_json, where = read_json_in(Path(name), "config.json"), f"{role} {name}"
    if config_json is None:
        raise UsageError(
            f"{name}: there is no config.json in it. Give the directory of a checkpoint."
        )
    quant_file = read_json_in(Path(name), HF_QUANT_CONFIG)
    stored = has_weights_in(Path(name))
    quantization = read_quantization(
        config_json, quant_file, where, has_weights=has_weights or stored
    )
    if stored and quantization.unread_method is not None:
        infos = read_all_tensor_infos(Path(name))
        quantization = settle_quantization(quantization, infos, where)
    if role == "target":
        target = read_target_config(config_json, None, where)
        return checkpoint_of_config(target, quantization, name)
    config = DrafterConfig.from_hf(config_json, where)
    return checkpoint_of_config(config, drafter_quantization(quantization), name)
