"""The layers of a decoder as functions of values: what target and drafter have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.quantized_linear import QuantizedLinears
from trtllm_dflash.graph.weight_only import WeightOnlyLinears
from trtllm_dflash.graph.weight_source import WeightSource
from trtllm_dflash.models.rope import RopeConfig


@dataclass(frozen=True)
class LayerBuilder:
    """A builder with the weights of one of the two models, under that model's name."""

    g: GraphBuilder
    weights: WeightSource
    dtype: ir.DataType
    norm_eps: float
    norm_offset: float = 0.0  # added to the weights of norms
    plugins: bool = False  # whether the graph is one of plugins
    weight_only: str | None = None  # the precision of integers by block; None: no weight is one

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        """x / rms(x) · (weight + norm_offset) over the last axis; computed in float32."""
        g = self.g
        if not self.norm_offset:
            return self._rms_norm(x, self.weights.value(g, f"{name}.weight"))
        weight = self.weights.wide(g, f"{name}.weight", self.norm_offset)
        return self.narrow(self._rms_norm(self.wide(x), weight))

    def gated_norm(self, x: ir.Value, gate: ir.Value, name: str) -> ir.Value:
        """x / rms(x) · weight · silu(gate) over the last axis; computed in float32."""
        g = self.g
        normed = self._rms_norm(self.wide(x), self.weights.wide(g, f"{name}.weight"))
        gate = self.wide(gate)
        return self.narrow(g.Mul(normed, g.Mul(gate, g.Sigmoid(gate))))

    def _rms_norm(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        return self.g.RMSNormalization(x, weight, axis=-1, epsilon=self.norm_eps, stash_type=1)

    def wide(self, x: ir.Value) -> ir.Value:
        """Return x as float32."""
        return x if self.dtype == ir.DataType.FLOAT else self.g.cast(x, ir.DataType.FLOAT)

    def narrow(self, x: ir.Value) -> ir.Value:
        """Return float32 x in the model's type."""
        return x if self.dtype == ir.DataType.FLOAT else self.g.cast(x, self.dtype)

    @cached_property
    def _quantized(self) -> QuantizedLinears:
        return QuantizedLinears(self.g, self.weights, self.dtype, self.plugins)

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """x [N, in] · weightᵀ (+ bias): the checkpoint's [out, in] layout is Gemm's transB, so
        nothing is moved.

        A weight that the checkpoint has quantized is multiplied in its own format
        (`graph.quantized`).
        """
        with self.g.scope(name.rsplit(".", 1)[-1]):
            bias = []
            if f"{name}.bias" in self.weights:
                bias = [self.weights.value(self.g, f"{name}.bias")]
            if self._is_integer(name):
                return self._integers.product(x, name, *bias)
            if self._quantized.has_plugin(name):
                return self._quantized.by_plugin(x, name, *bias)
            return self.g.Gemm(*self._operands(x, name), *bias, transB=1)

    def linear_rows(self, x: ir.Value, name: str, rows: np.ndarray, alias: str) -> ir.Value:
        """Columns `rows` (int64) of `linear` without a bias; reads only these rows of the weight,
        kept as `alias`.
        """
        if self._is_integer(name):
            return self._integers.product(x, name, rows=rows, alias=alias)
        return self.g.Gemm(*self._operands(x, name, rows, alias), transB=1)

    def table_rows(self, ids: ir.Value, name: str) -> ir.Value:
        """Return the rows [B, N, columns] of an embedding at ids [B, N]."""
        if self._is_integer(name):
            return self._integers.rows(ids, name)
        return self.g.Gather(self.weights.value(self.g, f"{name}.weight"), ids)

    def _is_integer(self, name: str) -> bool:
        return self.weight_only is not None and self._integers.has(name)

    @cached_property
    def _integers(self) -> WeightOnlyLinears:
        return WeightOnlyLinears(self.g, self.weights, self.weight_only or "")

    def _operands(
        self, x: ir.Value, name: str, rows: np.ndarray | None = None, alias: str = ""
    ) -> tuple[ir.Value, ir.Value]:
        if name in self.weights.formats:
            return self._quantized.operands(x, name, rows, alias)
        return x, self.weights.value(self.g, f"{name}.weight", rows, alias)

    def swiglu(self, x: ir.Value, name: str) -> ir.Value:
        """down(silu(gate(x)) · up(x)), x [N, hidden]."""
        with self.g.scope("mlp"):
            gate = self.linear(x, f"{name}.gate_proj")
            up = self.linear(x, f"{name}.up_proj")
            return self.linear(
                self.g.Mul(self.g.Mul(gate, self.g.Sigmoid(gate)), up), f"{name}.down_proj"
            )


@dataclass(frozen=True)
class Rotary:
    """RoPE over fixed tables, rotate-half convention, applied in float32 whatever the model's
    type.

    Of each head only the first `dim` dimensions are rotated; 0: all. `angles` keeps the rows of
    the tables at some positions, for all layers.
    """

    g: GraphBuilder
    cos: ir.Value
    sin: ir.Value
    dtype: ir.DataType
    dim: int = 0
    angles: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    @classmethod
    def from_config(
        cls,
        g: GraphBuilder,
        rope: RopeConfig,
        name: str,
        num_positions: int,
        dtype: ir.DataType,
    ) -> Rotary:
        """Tables for positions 0 … num_positions-1; `name` keeps the two models' tables apart."""
        cos, sin = rope.cos_sin(num_positions)
        cos_table = g.initializer(f"{name}.rotary_cos", lambda: ir.Tensor(cos))
        sin_table = g.initializer(f"{name}.rotary_sin", lambda: ir.Tensor(sin))
        dim = rope.rotary_dim if rope.rotary_dim < rope.head_dim else 0
        return cls(g, cos_table, sin_table, dtype, dim)

    def __call__(
        self,
        x: ir.Value,
        positions: ir.Value,
        batch_and_rows: ir.Value,
        heads_and_dim: tuple[int, int],
    ) -> ir.Value:
        """Rotate x, B·N rows of heads·D numbers, to `positions` [B, N]: [B, N, heads, D]."""
        g = self.g
        (heads, head_dim) = heads_and_dim
        by_head = g.Concat(batch_and_rows, [heads, head_dim], axis=0)
        if self.dtype != ir.DataType.FLOAT:
            return self._rotate_halves(g.Reshape(x, by_head), positions)
        part = {"rotary_embedding_dim": self.dim} if self.dim else {}
        x = g.Reshape(x, g.Concat(batch_and_rows, [heads * head_dim], axis=0))
        rotated = g.RotaryEmbedding(x, self.cos, self.sin, positions, num_heads=heads, **part)
        return g.Reshape(rotated, by_head)

    def _rotate_halves(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """Rotate the halves of each head of x [B, N, heads, D], and round them before they are
        joined.

        TensorRT-RTX rounds the result of RotaryEmbedding in two more kernels a layer, one for
        queries and one for keys, where the batch is not fixed.
        """
        g = self.g
        half = int(self.cos.shape[1])  # type: ignore[index, arg-type]
        cos, sin = self._angles_at(positions)
        first, second = (
            g.cast(g.Slice(x, [start], [start + half], [3]), ir.DataType.FLOAT)
            for start in (0, half)
        )
        rotated = [
            g.cast(g.Sub(g.Mul(first, cos), g.Mul(second, sin)), self.dtype),
            g.cast(g.Add(g.Mul(second, cos), g.Mul(first, sin)), self.dtype),
        ]
        rest = [g.Slice(x, [self.dim], [2**31 - 1], [3])] if self.dim else []
        return g.Concat(*rotated, *rest, axis=3)

    def beside(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """Return values x [B, N, heads, D] as they are, from the kernel that rotates their keys.

        TensorRT-RTX multiplies by the weights of queries, keys and values at once. A kernel of its
        own then copies the values out of the product. What reads a cosine joins RoPE's kernel.
        No cosine is above infinity, so the values are chosen.
        """
        if self.dtype == ir.DataType.FLOAT:
            return x
        g = self.g
        (cos, _) = self._angles_at(positions)
        never = g.Greater(g.Slice(cos, [0], [1], [3]), float("inf"))
        return g.Where(never, g.Neg(x), x)

    def _angles_at(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return cosines and sines at positions [B, N], both float32 [B, N, 1, D / 2]."""
        if positions not in self.angles:
            cos, sin = (self.g.Gather(table, positions) for table in (self.cos, self.sin))
            self.angles[positions] = self.g.Unsqueeze(cos, [2]), self.g.Unsqueeze(sin, [2])
        return self.angles[positions]


def project_heads(
    m: LayerBuilder,
    x: ir.Value,
    name: str,
    heads_and_dim: tuple[int, int],
    batch_and_rows: ir.Value,
    *,
    rotary: Rotary,
    positions: ir.Value,
    is_value: bool,
    norm: bool,
) -> ir.Value:
    """x [B·N, hidden] through `<name>_proj`, `<name>_norm` (per head) and RoPE, as [B, N, heads,
    D]; values are not rotated.
    """
    x = m.linear(x, f"{name}_proj")
    if is_value:
        by_head = m.g.Concat(batch_and_rows, heads_and_dim, axis=0)
        return rotary.beside(m.g.Reshape(x, by_head), positions)
    return shape_heads(
        m,
        x,
        heads_and_dim,
        batch_and_rows,
        rotary=rotary,
        positions=positions,
        norm=f"{name}_norm" if norm else None,
    )


def shape_heads(
    m: LayerBuilder,
    x: ir.Value,
    heads_and_dim: tuple[int, int],
    batch_and_rows: ir.Value,
    *,
    rotary: Rotary,
    positions: ir.Value,
    norm: str | None,
) -> ir.Value:
    """x [B·N, heads·D] through the norm of that name (per head) and RoPE, as [B, N, heads, D]."""
    if norm is not None:
        x = m.rms_norm(m.g.Reshape(x, [-1, *heads_and_dim]), norm)
    return rotary(x, positions, batch_and_rows, heads_and_dim)


def gather_rows(g: GraphBuilder, x: ir.Value, index: ir.Value) -> ir.Value:
    """Rows `index` [B, R] of x [B, N, …], as [B, R, …]."""
    return g.GatherND(x, g.Unsqueeze(index, [2]), batch_dims=1)
