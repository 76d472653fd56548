"""An operator of ours: declaration, node, reference body and kernel.

The reference body is the ONNX function that gives the operator its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import OPS_DOMAIN, GraphBuilder, function_from_body
from trtllm_dflash.graph.kernel_specs import Kernel


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, element type, shape in symbols, meaning."""

    name: str
    dtype: str
    shape: str
    meaning: str
    optional: bool = False  # an input that may be left out; only the last ones
    body_only: bool = False  # an input that the body needs, and a plugin does without
    aliases: str | None = None  # an output: the input whose memory it is

    @property
    def axes(self) -> tuple[str, ...]:
        """Return the sizes: symbols such as "B", sums of two such as "S+T", and numbers."""
        return tuple(axis.strip() for axis in self.shape[1:-1].split(","))


@dataclass(frozen=True)
class Attribute:
    """A number fixed in the graph; its default's type is its type.

    An optional one may be left out. The body then has no such attribute (`g.has_attribute`), and a
    plugin finds the default, which means the same. A plugin has no field for one that is
    `body_only`.
    """

    name: str
    default: int | float
    meaning: str
    optional: bool = False
    body_only: bool = False

    @property
    def onnx_type(self) -> ir.AttributeType:
        return (
            ir.AttributeType.FLOAT if isinstance(self.default, float) else ir.AttributeType.INT
        )


@dataclass(frozen=True)
class OpSpec:
    """One operator.

    `reference_body(g, *inputs)` writes its meaning in standard ONNX; a plugin may replace it.
    The body gets None for an optional input that is left out.
    """

    name: str
    meaning: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    reference_body: Callable[..., tuple[ir.Value, ...]]
    kernel: Kernel

    @property
    def plugin_inputs(self) -> tuple[Tensor, ...]:
        """Return the plugin's inputs: all but those that only the body needs."""
        return tuple(tensor for tensor in self.inputs if not tensor.body_only)

    @property
    def plugin_fields(self) -> dict[str, type]:
        """Return a plugin's fields by name: attributes, and its kernel's sizes and types."""
        attributes: dict[str, type] = {
            a.name: type(a.default) for a in self.attributes if not a.body_only
        }
        sizes = self.kernel.sizes
        types = self.kernel.types
        return (
            attributes
            | {size.name: int for size in sizes}
            | {kernel_type.name: int for kernel_type in types}
        )

    def __call__(
        self, g: GraphBuilder, *inputs: ir.Value, **attributes: int | float
    ) -> tuple[ir.Value, ...]:
        """Emit one node of this operator; optional inputs may be left out.

        Raises:
            GraphError: if the number of inputs or an attribute's name is not the declaration's.
        """
        unknown = attributes.keys() - {attribute.name for attribute in self.attributes}
        required = sum(not tensor.optional for tensor in self.inputs)
        if not required <= len(inputs) <= len(self.inputs) or unknown:
            raise GraphError(
                f"{self.name} takes {required} to {len(self.inputs)} inputs"
                f" {[t.name for t in self.inputs]} and the attributes"
                f" {[a.name for a in self.attributes]}; got {len(inputs)} inputs and attributes"
                f" {sorted(attributes)}"
            )
        written = [a for a in self.attributes if a.name in attributes or not a.optional]
        resolved = {a.name: type(a.default)(attributes.get(a.name, a.default)) for a in written}
        return g.emit(
            self.name, inputs, resolved, domain=OPS_DOMAIN, num_outputs=len(self.outputs)
        )

    def function(
        self, num_inputs: int | None = None, optional: Collection[str] = ()
    ) -> ir.Function:
        """Return the body as an ONNX function of the first `num_inputs` inputs (default: all) and
        the attributes.

        Of the optional attributes it has those named in `optional`.
        """
        given = self.inputs[:num_inputs]
        absent = len(self.inputs) - len(given)
        present = [a for a in self.attributes if a.name in optional or not a.optional]
        attributes = [ir.Attr(a.name, a.onnx_type, a.default) for a in present]
        names = [tensor.name for tensor in given], [tensor.name for tensor in self.outputs]

        def body(g: GraphBuilder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
            return self.reference_body(g, *inputs, *[None] * absent)

        return function_from_body(self.name, *names, attributes, body)

    def functions(self, nodes: Collection[ir.Node]) -> list[ir.Function]:
        """Return the functions that give these nodes their meaning; none where no node is of this
        operator.

        Raises: GraphError: if some have an optional input and some do not: a model has one function
        of a name.
        """
        ours = [
            node for node in nodes if (node.domain, node.op_type) == (OPS_DOMAIN, self.name)
        ]
        counts = {len(node.inputs) for node in ours}
        if len(counts) > 1:
            raise GraphError(
                f"{self.name} is used with {' and with '.join(map(str, sorted(counts)))} inputs in"
                " one graph; give its optional inputs to all of its nodes or to none"
            )
        names = [a.name for a in self.attributes if a.optional]
        given = {tuple(name for name in names if name in node.attributes) for node in ours}
        if len(given) > 1:
            raise GraphError(
                f"{self.name} is used {' and '.join(_with(some) for some in sorted(given))} in one"
                " graph; give its optional attributes to all of its nodes or to none"
            )
        return [self.function(count, some) for count in counts for some in given]


def _with(attributes: Collection[str]) -> str:
    return (
        f"with {', '.join(attributes)}"
        if attributes
        else "with none of its optional attributes"
    )
