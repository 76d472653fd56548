"""A node that takes the columns of joined linears apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def split_node(
    graph: ir.Graph, product: ir.Value, columns: Sequence[int], name: str
) -> ir.Node:
    """Return a Split of a product [N, sum of `columns`], whose sizes are an initializer of `graph`.

    The caller puts the node in its place.
    """
    sizes = ir.Value(name=f"{name}.sizes", const_value=ir.tensor(np.array(columns), name=name))
    graph.register_initializer(sizes)
    return ir.node("Split", [product, sizes], {"axis": 1}, num_outputs=len(columns), name=name)
