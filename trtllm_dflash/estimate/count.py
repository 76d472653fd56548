"""What a step reads and computes, node by node of its graph.

Elementwise nodes are taken as fused into their neighbours, projections of one input as one kernel;
how many kernels remain is counted too. Everything is for one sequence; `clock` multiplies by the
batch what grows with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from trtllm_dflash.checkpoint.quantized_tensors import NEVER_QUANTIZED
from trtllm_dflash.estimate.experts import Experts
from trtllm_dflash.estimate.precision import NUMBERS, Number, Precision
from trtllm_dflash.estimate.sizes import Sizes
from trtllm_dflash.graph.builder import OPS_DOMAIN

ACTIVATION_BYTES, LOGIT_BYTES = 2, 4  # BF16 between kernels; logits in float32
_HEADS = ("lm_head", "embed_tokens", "draft_head")
_ROUTERS = ("router", "gate")  # which no format quantizes
_ROW_PARALLEL = ("o_proj", "down_proj", "fc")  # their outputs are sums over all GPUs


@dataclass(frozen=True)
class Work:
    """A node's cost for one sequence.

    part              "target", "accept" or "drafter".
    kind              "linear", "experts", "head", "attention" or "other".
    number            how it multiplies.
    rows              rows that go through it.
    weight_bytes      its weights, read once whatever the batch; of experts: of one of them.
    row_bytes         activations that a row reads and writes.
    row_flops         of one row, of one expert; an attention's grow with the context instead.
    position_bytes    keys and values of one position.
    position_flops    of all rows against one position.
    window            positions that an attention looks back at most; 0: all.
    experts           of a mixture of experts.
    reduced_bytes     of a row, that all GPUs sum up.
    kernels           launches.
    """

    part: str
    kind: str
    number: Number
    rows: int
    weight_bytes: float = 0.0
    row_bytes: float = 0.0
    row_flops: float = 0.0
    position_bytes: float = 0.0
    position_flops: float = 0.0
    window: int = 0
    experts: Experts | None = None
    reduced_bytes: float = 0.0
    kernels: int = 1


def count(
    model: ir.Model,
    *,
    width: int,
    rows: int,
    precision: Precision,
) -> list[Work]:
    """All work of a step that takes `width` tokens of a sequence and decides `rows`."""
    sizes = Sizes(model, {"batch": 1, "width": width, "rows": rows, "context": 1})
    counter = _Counter(sizes, precision)
    return [work for node in model.graph for work in counter.of(node)]


class _Counter:
    def __init__(self, sizes: Sizes, precision: Precision) -> None:
        self._sizes, self._precision = sizes, precision
        self._read: set[str] = set()  # inputs that a kernel has projected already

    def of(self, node: ir.Node) -> Iterator[Work]:
        part = (node.name or "").split("/")[1]
        if node.op_type == "Gemm":
            yield from self._gemm(node, part)
        elif node.domain == OPS_DOMAIN:
            yield from _OURS[node.op_type](self, node, part)
        elif node.op_type in ("Gather", "GatherND", "ArgMax", "Sigmoid", "RMSNormalization"):
            yield from self._other(node, part)

    def _gemm(self, node: ir.Node, part: str) -> Iterator[Work]:
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        (rows, columns), (_, outputs) = self._sizes[x], self._sizes[node.outputs[0]]
        module = (weight.name or "").removeprefix(f"{part}.").removesuffix(".weight")
        leaf = module.rsplit(".", 1)[-1]
        kind = "head" if leaf in _HEADS else "linear"
        plain = leaf in NEVER_QUANTIZED or leaf in _ROUTERS
        number = NUMBERS["bf16"] if plain else self._precision.of(part, kind, module)
        first = (x.name or "") not in self._read
        self._read.add(x.name or "")
        written = LOGIT_BYTES if kind == "head" else ACTIVATION_BYTES
        yield Work(
            part,
            kind,
            number,
            rows,
            weight_bytes=columns * outputs * number.bits / 8,
            row_bytes=columns * ACTIVATION_BYTES * first + outputs * written,
            row_flops=2 * columns * outputs,
            reduced_bytes=outputs * ACTIVATION_BYTES if leaf in _ROW_PARALLEL else 0.0,
            kernels=int(first),
        )

    def _other(self, node: ir.Node, part: str) -> Iterator[Work]:
        size = self._sizes[node.outputs[0]]
        if node.op_type == "RMSNormalization" and len(size) > 2:
            return  # of heads: part of the kernel that rotates them
        read = node.inputs[0]
        assert read is not None
        rows = prod(size[:-1]) if node.op_type != "ArgMax" else prod(size)
        moved = (
            self._sizes[read][-1] * LOGIT_BYTES
            if node.op_type == "ArgMax"
            else 2 * size[-1] * ACTIVATION_BYTES
        )
        yield Work(part, "other", self._precision.of(part, "other"), rows, row_bytes=moved)

    def _attention(self, node: ir.Node, part: str) -> Iterator[Work]:
        q, k = node.inputs[0], node.inputs[1]
        assert q is not None
        assert k is not None
        (_, rows, q_heads, head_dim), (_, _, kv_heads, _) = self._sizes[q], self._sizes[k]
        number = self._precision.of(part, "cache")
        yield Work(
            part,
            "attention",
            number,
            rows,
            row_bytes=2 * (q_heads + kv_heads) * head_dim * ACTIVATION_BYTES,
            position_bytes=2 * kv_heads * head_dim * number.bits / 8,
            position_flops=4 * rows * q_heads * head_dim,
            window=(
                node.attributes["window_size"].as_int() if "window_size" in node.attributes else 0
            ),
            kernels=3,  # rotate and write; attend; add up the parts of the context
        )

    def _experts(self, node: ir.Node, part: str) -> Iterator[Work]:
        x, logits, gate_up, _, down, *_ = node.inputs
        assert x is not None
        assert logits is not None
        assert gate_up is not None
        assert down is not None
        rows, hidden = self._sizes[x]
        chosen = Experts(self._sizes[logits][-1], node.attributes["top_k"].as_int())
        module = (gate_up.name or "").removeprefix(f"{part}.").rpartition(".")[0]
        number = self._precision.of(part, "experts", module)
        weights = hidden * (self._sizes[gate_up][1] + self._sizes[gate_up][1] // 2)
        yield Work(
            part,
            "experts",
            number,
            rows,
            weight_bytes=weights * number.bits / 8,
            row_bytes=2 * hidden * ACTIVATION_BYTES,
            row_flops=2 * weights,
            experts=chosen,
            reduced_bytes=hidden * ACTIVATION_BYTES,
            kernels=5,
        )

    def _accept(self, node: ir.Node, part: str) -> Iterator[Work]:
        logits = node.inputs[0]
        assert logits is not None
        _, rows, vocab = self._sizes[logits]
        yield Work(
            part, "other", self._precision.of(part, "other"), rows, row_bytes=vocab * LOGIT_BYTES
        )


_OURS = {
    "DFlashVerifyAttention": _Counter._attention,
    "DFlashDraftAttention": _Counter._attention,
    "DFlashAccept": _Counter._accept,
    "DFlashMoE": _Counter._experts,
}
