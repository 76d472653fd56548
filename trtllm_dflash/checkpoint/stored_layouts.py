"""Other layouts of the same tensors, brought into the one that the tables of models describe.

Nothing is read or copied: a part of a stored tensor is a tensor at another place of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS, WEIGHT_DTYPES
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.dflash2 import CODEBOOKS
from trtllm_dflash.models.dspark import MARKOV, W1, W2

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# Names of a drafter's tables in some files -> those in most.
_OTHER_NAMES = {codebook: f"{codebook}.weight" for codebook in CODEBOOKS} | {
    f"{name.removeprefix(f'{MARKOV}.')}.weight": f"{name}.weight" for name in (W1, W2)
}
_FUSED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


def span_of(infos: Sequence[TensorInfo]) -> TensorInfo | None:
    """Return the bytes of tensors of one type as one tensor, None unless they lie one behind the
    other in a file.
    """
    first = infos[0]
    end = first.offset
    for info in infos:
        if (info.path, info.dtype, info.offset) != (first.path, first.dtype, end):
            return None
        end += info.nbytes
    return replace(first, nbytes=end - first.offset)


def in_usual_layout(
    infos: Mapping[str, TensorInfo], config: TargetConfig
) -> dict[str, TensorInfo]:
    """Return a target's tensors by the names of its table.

    A tied model may store its one table as the head. All experts of a layer may be one tensor, as
    transformers 5 keeps them. Its gate_up_proj is [experts, 2·intermediate, hidden], the rows of
    gate first. Its down_proj is [experts, hidden, intermediate].
    """
    found = dict(infos)
    head = infos.get(HEAD)
    if (
        config.tie_word_embeddings
        and head is not None
        and head.dtype in WEIGHT_DTYPES
        and EMBEDDING not in infos
    ):
        found[EMBEDDING] = found.pop(HEAD)
    if config.moe is None or config.moe.fused:
        return found
    for name, info in infos.items():
        match = _FUSED.fullmatch(name)
        if match and info.dtype in WEIGHT_DTYPES:
            parts = dict(_experts_of(info, match[1], match[2], config))
            if parts and not parts.keys() & infos.keys():
                del found[name]
                found |= parts
    return found


def drafter_in_usual_layout(
    infos: Mapping[str, TensorInfo], where: str
) -> dict[str, TensorInfo]:
    """Return a drafter's tensors by the names of its table.

    A file may store a codebook without ".weight". ModelOpt leaves out the Markov head's own name.

    Raises: CheckpointError: for a table that is stored under both names.
    """
    found = dict(infos)
    for other, usual in _OTHER_NAMES.items():
        if other not in infos:
            continue
        if usual in infos:
            raise CheckpointError(
                f"{where}: {other} and {usual} are both there, and a table has one of the names."
                " Get an intact copy of the checkpoint."
            )
        found[usual] = found.pop(other)
    return found


def _experts_of(
    info: TensorInfo, prefix: str, name: str, config: TargetConfig
) -> Iterator[tuple[str, TensorInfo]]:
    """Yield each expert's linears in a tensor of all; none if its shape is another."""
    moe = config.moe
    if moe is None:
        return
    inner, hidden = moe.intermediate_size, config.hidden_size
    linears = {"down_proj": (hidden, inner)}
    rows, columns = hidden, inner
    if name == "gate_up_proj":
        linears = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
        rows, columns = 2 * inner, hidden
    if info.shape != (moe.num_experts, rows, columns):
        return
    offset = info.offset
    for expert in range(moe.num_experts):
        for linear, shape in linears.items():
            nbytes = prod(shape) * DTYPE_BITS[info.dtype] // 8
            full = f"{prefix}.{expert}.{linear}.weight"
            yield full, TensorInfo(full, info.dtype, shape, info.path, offset, nbytes)
            offset += nbytes
