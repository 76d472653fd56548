"""Which tensors of a model are quantized, and the names that its files give to all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantization_checks import quantized_to
from trtllm_dflash.checkpoint.quantized_tensors import Quantizable
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.models.tensor_specs import expand_specs

# Where ModelOpt's two descriptions list the modules that it left out.
_EXCLUSIONS = ("exclude_modules", "ignore")


def quantized_weights(checkpoint: Checkpoint[Any]) -> frozenset[str]:
    """Return the names of the weights of a model's linears that are quantized.

    Heads, embeddings, the drafter's `fc` and the gates of linear attention are not. Convolutions,
    routers and the gate of a shared expert are no linears of the table.
    """
    config = checkpoint.config
    rows = expand_specs(config.tensors.used, config)
    linears = Quantizable.from_rows(rows, config).linears
    stated = quantized_to("fp8")
    return frozenset(f"{name}.weight" for name in linears if not stated.excluded_by(name))


def stored_tensors(
    original: Checkpoint[Any], packed: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Return all tensors of the quantized checkpoint by the names that the original's files use.

    `packed` replace the original's by name. A model with images has its decoder under a prefix, and
    its other parts, which nothing here reads, are kept as they are.
    """
    table = original.config.tensors
    infos = read_all_tensor_infos(original.directory)
    is_under_prefix = _is_under_prefix(infos, table)
    found = {}
    for name, info in {**original.tensors, **packed}.items():
        found[table.stored_name(name) if is_under_prefix else name] = info
    others = [name for name in infos if table.ignored_reason(name) is not None]
    return found | {name: infos[name] for name in others}


def in_stored_names(original: Checkpoint[Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description of ModelOpt's with the names of modules that the files use.

    Parts that are kept as they are become exclusions: other engines read them.
    """
    table = original.config.tensors
    infos = read_all_tensor_infos(original.directory)
    is_under_prefix = _is_under_prefix(infos, table)
    prefixes = [part.prefix for part in table.ignored_prefixes]
    present = [each for each in prefixes if any(name.startswith(each) for name in infos)]
    kept = [f"{prefix.removesuffix('.')}*" for prefix in present]

    def rename(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        result = {key: rename(inner) for key, inner in value.items()}
        for key in _EXCLUSIONS:
            if isinstance(value.get(key), list):
                names = value[key]
                if is_under_prefix:
                    names = [table.stored_name(name) for name in names]
                result[key] = [*names, *kept]
        return result

    renamed: dict[str, Any] = rename(described)
    return renamed


def _is_under_prefix(names: Collection[str], table: Any) -> bool:
    prefix = table.stored_under
    return bool(prefix) and any(name.startswith(prefix) for name in names)
