"""What an operator of ours is: its declaration, the node it emits, and the ONNX function that gives it its meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import OPS_DOMAIN, GraphBuilder, function_from_body


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, element type, shape in symbols, meaning."""

    name: str
    dtype: str
    shape: str
    meaning: str


@dataclass(frozen=True)
class Attribute:
    """A number fixed in the graph; its default's type is its type."""

    name: str
    default: int | float
    meaning: str

    @property
    def kind(self) -> ir.AttributeType:
        return ir.AttributeType.FLOAT if isinstance(self.default, float) else ir.AttributeType.INT


@dataclass(frozen=True)
class OpSpec:
    """One operator. `body(g, *inputs)` writes its meaning in standard ONNX; a plugin of that name may replace it."""

    name: str
    meaning: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    body: Callable[..., tuple[ir.Value, ...]]

    def __call__(self, g: GraphBuilder, *inputs: ir.Value, **attributes: int | float) -> tuple[ir.Value, ...]:
        """Emit one node of this operator.

        Raises:
            GraphError: if the number of inputs or an attribute's name is not the declaration's.
        """
        unknown = attributes.keys() - {attribute.name for attribute in self.attributes}
        if len(inputs) != len(self.inputs) or unknown:
            raise GraphError(
                f"{self.name} takes {len(self.inputs)} inputs {[t.name for t in self.inputs]} and the attributes "
                f"{[a.name for a in self.attributes]}; got {len(inputs)} inputs and attributes {sorted(attributes)}"
            )
        resolved = {a.name: type(a.default)(attributes.get(a.name, a.default)) for a in self.attributes}
        return g.emit(self.name, inputs, resolved, domain=OPS_DOMAIN, num_outputs=len(self.outputs))

    def function(self) -> ir.Function:
        """The operator's body as an ONNX function."""
        attributes = [ir.Attr(a.name, a.kind, a.default) for a in self.attributes]
        names = [tensor.name for tensor in self.inputs], [tensor.name for tensor in self.outputs]
        return function_from_body(self.name, *names, attributes, self.body)
