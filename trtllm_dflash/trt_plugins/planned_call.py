"""A plugin's launches at given shapes, with the addresses left open.

Grids and parameters are made once for a shape and for all layers of one kind. A call of the same
shape then only puts its addresses into copies of the parameters. Prompts need that, as they are not
captured: their chunks mostly have one of a few widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_void_p
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins.call import Call
from trtllm_dflash.trt_plugins.launch_config import Operation
from trtllm_dflash.trt_plugins.shapes import check_shapes, present_inputs

Shape = tuple[int, ...]

# Plans are made at addresses that stand for the tensors: tensor i is at (i + 1) · _PLACE, behind
# all of them the workspace. No tensor has as many bytes.
_PLACE = 1 << 48
# The alignment that launches check. At other addresses a call is planned by itself.
_ALIGNMENT = 16
_MAX_PLANS = 1 << 14  # a few KB each


class Operator(NamedTuple):
    """What plugins have in common whose calls of one shape are planned once."""

    name: str
    operation: Operation
    fields: tuple[tuple[str, int | float], ...]


@dataclass(frozen=True)
class _Params:
    """Parameters of one or more launches, and their pointers: a name, a tensor, bytes into it."""

    image: Structure
    pointers: tuple[tuple[str, int, int], ...]

    def at(self, addresses: Sequence[int]) -> Structure:
        """Return the parameters of a call whose tensors are at these addresses."""
        made = type(self.image).from_buffer_copy(self.image)
        for name, tensor, offset in self.pointers:
            setattr(made, name, addresses[tensor] + offset)
        return made


@dataclass(frozen=True)
class PlannedCall:
    """The launches of a plugin's call, but for the addresses."""

    call: Call
    operation: Operation
    in_place: tuple[tuple[int, int, str], ...]  # an output, its input, the error's text
    own: tuple[int, ...]  # outputs with memory of their own
    params: tuple[_Params, ...]
    planned: tuple[tuple[Launch, int], ...]  # with the number of its parameters

    def launches(
        self, read: Sequence[int], written: Sequence[int], workspace: int
    ) -> list[Launch]:
        """Return the launches of a call with these addresses of inputs and outputs.

        Raises:
            EngineError: if an output is not where its input is, or an address is not aligned.
        """
        for output, source, problem in self.in_place:
            if written[output] != read[source]:
                raise EngineError(problem)
        addresses = [*read, *(written[output] for output in self.own), workspace]
        if any(address % _ALIGNMENT for address in addresses):
            by_name = dict(zip(self.call.addresses, addresses, strict=False))
            call = replace(self.call, addresses=by_name, workspace=workspace)
            return self.operation.launches(call)
        made = [params.at(addresses) for params in self.params]
        return [
            Launch(one.kernel, one.grid, one.threads, one.shared_bytes, made[number])
            for one, number in self.planned
        ]


@lru_cache(_MAX_PLANS)
def planned_call(
    operator: Operator,
    shapes: tuple[Shape, ...],
    num_inputs: int,
    processors: int,
    processor_shared_bytes: int,
) -> PlannedCall:
    """Return the plan of a call; `shapes` are those of the inputs, then of the outputs.

    Raises:
        EngineError: for shapes that the operator does not take.
    """
    spec, fields = OPS[operator.name], dict(operator.fields)
    inputs = present_inputs(spec, num_inputs)
    tensors = (*inputs, *spec.outputs)
    dims = {tensor.name: shape for tensor, shape in zip(tensors, shapes, strict=True)}
    sizes = {name: value for name, value in fields.items() if isinstance(value, int)}
    check_shapes(spec, dims, sizes)
    names = [tensor.name for tensor in inputs]
    in_place = tuple(
        (
            index,
            names.index(tensor.aliases),
            f"{spec.name}: {tensor.name} is not at the address of {tensor.aliases}, which it is"
            " written into; bind both to the same memory",
        )
        for index, tensor in enumerate(spec.outputs)
        if tensor.aliases
    )
    own = tuple(index for index, tensor in enumerate(spec.outputs) if not tensor.aliases)
    names += [spec.outputs[index].name for index in own]
    places = {name: (index + 1) * _PLACE for index, name in enumerate(names)}
    workspace = (len(names) + 1) * _PLACE
    call = Call(dims, places, fields, workspace, processors, processor_shared_bytes)
    launches = operator.operation.launches(call)
    distinct = {id(launch.params): launch.params for launch in launches}
    order = {key: number for number, key in enumerate(distinct)}
    return PlannedCall(
        call,
        operator.operation,
        in_place,
        own,
        tuple(_Params(params, _pointers(params)) for params in distinct.values()),
        tuple((launch, order[id(launch.params)]) for launch in launches),
    )


def _pointers(params: Structure) -> tuple[tuple[str, int, int], ...]:
    """Return the pointers of parameters that were made at places; others are null."""
    found = []
    for name, field_type, *_ in params._fields_:
        value = getattr(params, name) if field_type is c_void_p else None
        if value is not None:
            number, offset = divmod(value, _PLACE)
            found.append((name, number - 1, offset))
    return tuple(found)
