"""The arrays of one use of an operator in a memory, each between guards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.plugins.library import Memory, Placed, poisoned
from trtllm_dflash.graph.ops import OpSpec


def place(
    spec: OpSpec, arrays: Mapping[str, np.ndarray], memory: Memory
) -> tuple[dict[str, Placed], list[tuple[int, ...]]]:
    """Return inputs and outputs by name in memory, and the shapes of the outputs.

    Outputs are poisoned; one that is written in place is its input.
    """
    kept = [tensor for tensor in spec.plugin_inputs if tensor.name in arrays]
    axes: dict[str, int] = {"1": 1}
    # The first that has a size says it: x, where weights are packed.
    for tensor in reversed(kept):
        axes |= dict(zip(tensor.axes, arrays[tensor.name].shape, strict=True))
    dtypes = {tensor.dtype: arrays[tensor.name].dtype for tensor in kept}
    placed = {tensor.name: Placed(memory, arrays[tensor.name]) for tensor in kept}
    shapes = [tuple(axes[axis] for axis in tensor.axes) for tensor in spec.outputs]
    for tensor, shape in zip(spec.outputs, shapes, strict=True):
        dtype = dtypes.get(tensor.dtype) or np.dtype(tensor.dtype)
        placed[tensor.name] = (
            placed[tensor.aliases] if tensor.aliases else Placed(memory, poisoned(shape, dtype))
        )
    return placed, shapes


def fetch_outputs(spec: OpSpec, placed: Mapping[str, Placed]) -> dict[str, np.ndarray]:
    """Return the outputs; AssertionError if a guard, or an input only read, has changed."""
    aliased = {tensor.aliases for tensor in spec.outputs}
    written = {tensor.name for tensor in spec.outputs} | aliased
    found = {key: array.fetch(key, written=key in written) for key, array in placed.items()}
    return {tensor.name: found[tensor.name] for tensor in spec.outputs}
