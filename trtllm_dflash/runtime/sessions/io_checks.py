"""Comparison of an engine's table of inputs and outputs with what the engine itself states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.errors import EngineError

Size = int | str | None  # a symbol or None: it varies, or is unknown
_ADVICE = (
    "The directory was put together from two engines, or config.json was edited: build the engine"
    " again, or copy it again intact."
)


@dataclass(frozen=True)
class PresentTensor:
    """An input or output as the engine states it.

    `aliases` is the input whose memory an output shares; None: the engine does not say.
    """

    direction: str
    dtype: str
    shape: tuple[Size, ...]
    aliases: str | None = None


def check_present(
    described: Iterable[IoTensor], present: Mapping[str, PresentTensor], *, where: str
) -> None:
    """Compare the rows of config.json with what the engine `where` has, by name.

    Raises:
        EngineError: for the first difference, with the tensor and both values.
    """
    rows = {tensor.name: tensor for tensor in described}
    differing = sorted(rows.keys() ^ present.keys())
    if differing:
        raise EngineError(
            f"{where} and config.json disagree on the inputs and outputs {', '.join(differing)}."
            f" {_ADVICE}"
        )
    for name, tensor in rows.items():
        found = present[name]
        same_rank = len(found.shape) == len(tensor.shape)
        if not same_rank or not all(map(_agree, found.shape, tensor.shape)):
            _disagree(where, name, "shape", list(found.shape), list(tensor.shape))
        if found.direction != tensor.direction:
            _disagree(where, name, "direction", found.direction, tensor.direction)
        if found.dtype != tensor.dtype:
            _disagree(where, name, "type", found.dtype, tensor.dtype)
        if found.aliases is not None and found.aliases != tensor.aliases:
            _disagree(where, name, "alias", found.aliases, tensor.aliases)


def _agree(found: Size, expected: int | str) -> bool:
    """Tell whether two sizes can be the same: a size that varies has no known value."""
    return found is None or found == expected


def _disagree(where: str, name: str, what: str, found: object, expected: object) -> None:
    raise EngineError(
        f"{where}: {name} has the {what} {found}, and config.json says {expected}. {_ADVICE}"
    )
