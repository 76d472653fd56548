"""The decoder's tensors among all of a checkpoint: models with images store more than that.

They get the names that the tables of models have; a TensorInfo keeps the file's, for errors. What
belongs to another part is left out for a written reason, quantized or not, before anything is
matched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trtllm_dflash.checkpoint.formats import Quantization
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.tensor_specs import TABLE_PREFIX, TensorTable

_TRAINED_AS = "dflash_module."


@dataclass(frozen=True)
class TextPart:
    """The decoder's tensors by the names of its table, and the others with the reason of each."""

    infos: Mapping[str, TensorInfo]
    ignored: Mapping[str, tuple[TensorInfo, str]]


def text_part(infos: Mapping[str, TensorInfo], table: TensorTable, where: str) -> TextPart:
    """Return the tensors of the decoder and those of other parts.

    Raises: CheckpointError: for a tensor that is stored under both of its names.
    """
    found = dict[str, TensorInfo]()
    ignored = dict[str, tuple[TensorInfo, str]]()
    for name, info in infos.items():
        reason = table.ignored_reason(name)
        if reason is not None:
            ignored[name] = (info, reason)
            continue
        canonical = table.canonical_name(name)
        if canonical in found:
            raise CheckpointError(
                f"{where}: {canonical} is stored twice, also as {table.stored_name(canonical)}."
                " Get an intact copy of the files."
            )
        found[canonical] = info
    return TextPart(found, ignored)


def text_quantization(quantization: Quantization, table: TensorTable) -> Quantization:
    """Return the quantization of the decoder, with its linears by the names of its table."""
    if not table.stored_under:
        return quantization
    modules = {
        table.canonical_name(name): fmt
        for name, fmt in quantization.modules.items()
        if table.ignored_reason(f"{name}.") is None
    }
    return replace(
        quantization, modules=modules, stored_under=(table.stored_under, TABLE_PREFIX)
    )


def drafter_quantization(quantization: Quantization) -> Quantization:
    """Return the quantization of a drafter, with its linears by the names of its table.

    ModelOpt names them as parts of the target's model, in which it trained the drafter.
    """
    modules = {
        name.removeprefix(_TRAINED_AS): fmt for name, fmt in quantization.modules.items()
    }
    return replace(quantization, modules=modules, stored_under=(_TRAINED_AS, ""))
