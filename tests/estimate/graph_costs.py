"""The kernels of a step counted node by node in its ONNX graph: what the formulas must equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import onnx_ir as ir

from trtllm_dflash.estimate.workload import ACTIVATION_BYTES, LOGIT_BYTES, KernelCost
from trtllm_dflash.graph.builder import OPS_DOMAIN

HEADS = ("lm_head", "embed_tokens", "draft_head")
ELEMENTWISE = ("Gather", "GatherND", "DFlashArgmax", "Sigmoid", "RMSNormalization")
Shapes = Mapping[str, tuple[int, ...]]


def counted_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that are kernels of their own; others are fused into their neighbours."""
    return [
        node
        for node in model.graph
        if node.domain == OPS_DOMAIN or node.op_type in ("Gemm", *ELEMENTWISE)
    ]


class GraphCounter:
    """Counts an unquantized graph whose values have these shapes in a run with one sequence."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._projected: set[str] = set()  # inputs that a kernel has read already
        self._in_gated_norm = False  # behind linear attention, whose heads are normed and gated

    def costs(self, model: ir.Model) -> Iterator[KernelCost]:
        """Yield the cost of every kernel in the graph's order."""
        for node in counted_nodes(model):
            part = (node.name or "").split("/")[1]
            if node.op_type == "Gemm":
                yield self._gemm(node, part)
            elif node.op_type in ("DFlashVerifyAttention", "DFlashDraftAttention"):
                yield self._attention(node, part)
            elif node.op_type == "DFlashGatedDelta":
                yield self._linear_attention(node, part)
            elif node.op_type == "DFlashMoE":
                yield self._experts(node, part)
            elif node.op_type == "DFlashAccept":
                (_, rows, vocab), moved = self._shape(node.inputs[0]), LOGIT_BYTES
                yield KernelCost(part, "elementwise", rows, row_bytes=vocab * moved)
            elif node.op_type in ELEMENTWISE:
                yield from self._elementwise(node, part)

    def _shape(self, value: ir.Value | None) -> tuple[int, ...]:
        assert value is not None
        return self._shapes[value.name or ""]

    def _gemm(self, node: ir.Node, part: str) -> KernelCost:
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        (rows, inputs), (_, outputs) = self._shape(x), self._shape(node.outputs[0])
        module = (weight.name or "").removeprefix(f"{part}.").removesuffix(".weight")
        leaf = module.rpartition(".")[2]
        is_head, is_first = leaf in HEADS, (x.name or "") not in self._projected
        self._projected.add(x.name or "")
        written = LOGIT_BYTES if is_head else ACTIVATION_BYTES
        is_summed = leaf in ("o_proj", "out_proj", "down_proj", "fc")
        is_summed = is_summed and "shared_expert" not in module  # with the other experts
        return KernelCost(
            part,
            "head" if is_head else "linear",
            rows,
            weight_bytes=inputs * outputs * 2.0,
            row_bytes=inputs * ACTIVATION_BYTES * is_first + outputs * written,
            row_flops=2 * inputs * outputs,
            reduced_bytes=outputs * ACTIVATION_BYTES * is_summed,
            kernels=int(is_first),
        )

    def _elementwise(self, node: ir.Node, part: str) -> Iterator[KernelCost]:
        shape = self._shape(node.outputs[0])
        if node.op_type == "RMSNormalization" and len(shape) > 2:
            return  # of heads: part of the kernel that rotates them
        if node.op_type == "Sigmoid" and (shape[-1] == 1 or self._in_gated_norm):
            self._in_gated_norm = False
            return  # of a shared expert's gate, and of the norm of heads: part of these
        if node.op_type == "DFlashArgmax":
            vocab = self._shape(node.inputs[0])[-1]
            rows, moved = prod(shape), vocab * LOGIT_BYTES
        else:
            rows, moved = prod(shape[:-1]), 2 * shape[-1] * ACTIVATION_BYTES
        yield KernelCost(part, "elementwise", rows, row_bytes=moved)

    def _attention(self, node: ir.Node, part: str) -> KernelCost:
        _, rows, q_heads, head_dim = self._shape(node.inputs[0])
        kv_heads = self._shape(node.inputs[1])[2]
        window = (
            node.attributes["window_size"].as_int() if "window_size" in node.attributes else 0
        )
        return KernelCost(
            part,
            "attention",
            rows,
            row_bytes=2 * (q_heads + kv_heads) * head_dim * ACTIVATION_BYTES,
            position_bytes=2 * kv_heads * head_dim * 2.0,
            position_flops=4 * rows * q_heads * head_dim,
            window=window,
            kernels=3,
        )

    def _linear_attention(self, node: ir.Node, part: str) -> KernelCost:
        self._in_gated_norm = True
        _, rows, channels = self._shape(node.inputs[0])
        gates, columns = (self._shape(node.inputs[index])[-1] for index in (1, 5))
        _, _, kernel = self._shape(node.inputs[2])
        _, _, kept, _ = self._shape(node.inputs[5])
        _, heads, key_dim, value_dim = self._shape(node.inputs[6])
        values = heads * value_dim
        return KernelCost(
            part,
            "linear attention",
            rows,
            weight_bytes=2.0 * channels * kernel,
            row_bytes=(channels + gates + values) * ACTIVATION_BYTES,
            row_flops=6 * values * key_dim + 2 * channels * kernel,
            state_bytes=values * key_dim * 4 + kept * columns * ACTIVATION_BYTES,
            window_bytes=kept * columns * ACTIVATION_BYTES,
            kernels=2,
        )

    def _experts(self, node: ir.Node, part: str) -> KernelCost:
        rows, hidden = self._shape(node.inputs[0])
        count, gate_up = self._shape(node.inputs[1])[-1], self._shape(node.inputs[2])[1]
        weights = hidden * (gate_up + gate_up // 2)
        return KernelCost(
            part,
            "experts",
            rows,
            weight_bytes=weights * 2.0,
            row_bytes=2 * hidden * ACTIVATION_BYTES,
            row_flops=2 * weights,
            num_experts=count,
            top_k=node.attributes["top_k"].as_int(),
            reduced_bytes=hidden * ACTIVATION_BYTES,
            kernels=5,
        )
