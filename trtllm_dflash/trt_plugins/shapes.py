"""The declared shapes of an operator, read as rules: what sizes its tensors must have, and from
which of them outputs get theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.ops import OpSpec
from trtllm_dflash.graph.ops.spec import Tensor


def present_inputs(spec: OpSpec, count: int) -> tuple[Tensor, ...]:
    """Return the inputs of a plugin node that has `count` of them.

    Raises:
        EngineError: if the declaration allows no such count.
    """
    inputs = spec.plugin_inputs
    required = sum(not tensor.optional for tensor in inputs)
    if not required <= count <= len(inputs):
        names = ", ".join(tensor.name for tensor in inputs)
        raise EngineError(
            f"{spec.name}: got {count} inputs, expected {required} to {len(inputs)}: {names}"
        )
    return inputs[:count]


def check_shapes(
    spec: OpSpec, dims: Mapping[str, Sequence[int]], sizes: Mapping[str, int]
) -> None:
    """Check dims by tensor name against the declaration; `sizes` by name are those that the kernel
    is compiled for.

    Equal symbols must be equal sizes; a sum binds its only unknown symbol; a negative size is not
    known yet. A packed type's last size counts what it holds.

    Raises:
        EngineError: naming the tensor, its shape, the declared one, and what a symbol was before.
    """
    known = {
        size.symbol: (sizes[size.name], f"the kernel's {size.name}")
        for size in spec.kernel.sizes
    }
    declared = [
        tensor for tensor in (*spec.plugin_inputs, *spec.outputs) if tensor.name in dims
    ]
    for tensor in declared:
        found = tuple(dims[tensor.name])
        if len(found) != len(tensor.axes):
            raise EngineError(
                f"{spec.name}: {tensor.name} is {list(found)}, expected {tensor.shape}"
            )
        sizes_held = (*found[:-1], found[-1] * spec.kernel.packed(tensor.dtype, sizes))
        for axis, size in zip(tensor.axes, sizes_held, strict=True):
            problem = _bind(axis, size, tensor.name, known)
            if problem:
                raise EngineError(
                    f"{spec.name}: {tensor.name} is {list(found)}, expected {tensor.shape}:"
                    f" {problem}"
                )


def _bind(axis: str, size: int, tensor: str, known: dict[str, tuple[int, str]]) -> str | None:
    """Take axis = size as a fact; what contradicts it, if something does."""
    if size < 0:
        return None
    if axis.isdecimal():
        return None if size == int(axis) else f"got {size}"
    symbols = axis.split("+")
    unknown = [symbol for symbol in symbols if symbol not in known]
    total = sum(known[symbol][0] for symbol in symbols if symbol in known)
    if len(unknown) == 1 and size >= total:
        known[unknown[0]] = (size - total, tensor)
        return None
    if not unknown and size == total:
        return None
    facts = ", ".join(
        f"{symbol} is {known[symbol][0]} in {known[symbol][1]}"
        for symbol in symbols
        if symbol in known
    )
    return f"{axis} is {size}, and {facts}"


def output_axes(spec: OpSpec) -> list[list[tuple[int, int] | int]]:
    """Return for each axis of each output: its fixed size, or (input, axis) of an input that has
    the same size.
    """
    places: dict[str, tuple[int, int]] = {}
    for index, tensor in enumerate(spec.plugin_inputs):
        if not tensor.optional:
            for axis, symbol in enumerate(tensor.axes):
                places.setdefault(symbol, (index, axis))

    def place(axis: str) -> tuple[int, int] | int:
        return int(axis) if axis.isdecimal() else places[axis]

    return [[place(axis) for axis in tensor.axes] for tensor in spec.outputs]


def aliased_input(spec: OpSpec, output: int) -> int:
    """Return the index of the input whose memory an output shares; -1 if it has its own."""
    names = [tensor.name for tensor in spec.plugin_inputs]
    alias = spec.outputs[output].aliases
    return -1 if alias is None else names.index(alias)
