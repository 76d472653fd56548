"""A layer's experts whose weights are integers by block, in ONNX Runtime's operator QMoE.

It computes the chosen experts alone, and reads no other weights. Where a token has several, it adds
them up in an order that depends on the other tokens and on the threads. So a token goes in once
for each of its experts, as a row with one expert, and the graph adds up:

    x ─ Tile ────────────────┐
    router ─ TopK ─ OneHot ─ QMoE (k = 1) ─ Mul shares ─ ReduceSum
                  └ Softmax ───────────────────┘

Rows are those of the first experts of all tokens, then those of the second ones, and so on. A sum
over the first axis adds each number up in the same order, however many tokens there are.

Products are those of `graph.weight_only`. With 4 bits a row alone in its expert would differ on
some processors (`runtime.sessions.integer_rows`), so all rows go in twice. At one token that costs
little: most of the time goes to reading weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.block_integers import (
    BITS,
    BLOCK_LENGTH,
    BlockIntegers,
    copies_of_rows,
)
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.moe_weights import ExpertWeight
from trtllm_dflash.graph.stored_integers import StoredIntegers
from trtllm_dflash.graph.weight_only import INTEGER_PRODUCTS, RUNTIME_DOMAIN
from trtllm_dflash.models.moe import MoEConfig

_EXPERTS = "QMoE"
_GATES_AND_UPS_ALTERNATE = 1  # swiglu_fusion


@dataclass(frozen=True)
class IntegerExperts:
    """Experts of one layer as integers of `precision`, a key of BITS."""

    g: GraphBuilder
    config: MoEConfig
    precision: str

    def __call__(
        self,
        x: ir.Value,
        router_logits: ir.Value,
        weights: tuple[ExpertWeight, ExpertWeight],
        biases: tuple[ir.Value | None, ir.Value | None],
    ) -> ir.Value:
        """Return the weighted sum [N, H] of each token's experts, x [N, H], logits [N, E].

        Weights and biases are those of gate_up and of down. Biases of gates and ups alternate.
        """
        g, c = self.g, self.config
        chosen, index = g.emit("TopK", [router_logits, [c.top_k]], {"axis": -1}, num_outputs=2)
        shares = g.Softmax(chosen, axis=-1)
        if not c.normalize:
            shares = g.GatherElements(g.Softmax(router_logits, axis=-1), index, axis=-1)
        by_rank = g.Reshape(g.Transpose(index, perm=[1, 0]), [-1])
        off_and_on = g.constant(np.array([0, 1], np.float32))
        route = g.OneHot(by_rank, [c.num_experts], off_and_on, axis=-1)
        copies = copies_of_rows(self.precision)
        rows = g.Tile(x, [copies * c.top_k, 1])
        out = self._products(rows, g.Tile(route, [copies, 1]), weights, biases)
        if copies > 1:
            parts = {"axis": 0, "num_outputs": copies}
            out = g.emit("Split", [out], parts, num_outputs=copies)[0]
        out = g.Reshape(out, g.Concat([c.top_k], g.Shape(x), axis=0))
        out = g.Mul(out, g.Unsqueeze(g.Transpose(shares, perm=[1, 0]), [2]))
        return g.ReduceSum(out, [0], keepdims=0)

    def _products(
        self,
        rows: ir.Value,
        route: ir.Value,
        weights: tuple[ExpertWeight, ExpertWeight],
        biases: tuple[ir.Value | None, ir.Value | None],
    ) -> ir.Value:
        """Return down(swiglu(gate_up(row))) of each row's one expert."""
        c = self.config
        gate_up, down = (self._stored(weight) for weight in weights)
        operands: list[ir.Value | None] = [rows, route]
        for stored, bias in zip((gate_up, down), biases, strict=True):
            operands += [stored.packed(), stored.scales(), bias]
        operands += [None, None, None]  # a third product
        operands += [gate_up.zero_points(), down.zero_points()]
        attributes = {
            "k": 1,
            "expert_weight_bits": BITS[self.precision],
            "block_size": BLOCK_LENGTH,
            "accuracy_level": INTEGER_PRODUCTS,
            "normalize_routing_weights": 1,
            "activation_type": "swiglu",
            "swiglu_fusion": _GATES_AND_UPS_ALTERNATE,
            "activation_alpha": c.alpha,
            "activation_beta": c.shift,
        }
        if c.limit:
            attributes["swiglu_limit"] = c.limit
        return self.g.emit(_EXPERTS, operands, attributes, domain=RUNTIME_DOMAIN)[0]

    def _stored(self, weight: ExpertWeight) -> StoredIntegers:
        count, rows, columns = weight.shape
        bits = BITS[self.precision]

        def make() -> BlockIntegers:
            return BlockIntegers.of_parts(weight.alternating(), bits)

        name = f"{weight.name}.weight"
        size = (count * rows, columns)
        return StoredIntegers(self.g, weight.weights, name, size, bits, make, count)
