"""A layer's experts: the router, and DFlashMoE with the weights in the engine's storage.

| engine | storage of quantized experts |
|---|---|
| for the CPU (float32) | dequantized when the engine is written |
| for the CPU, `weight_only` | unquantized ones as integers by block (`graph.integer_experts`) |
| for a GPU, with our plugins | packed, with the checkpoint's scales |
| for a GPU that has FP4, without | 4 bits packed under DequantizeLinear; FP8 dequantized |
| for a GPU that has not, without | dequantized |

MXFP4's groups of 32 are compiled as NVFP4's of 16. Their scales can be the same powers of two, so
no value changes (`checkpoint.mxfp4`). If a storage cannot hold exactly the checkpoint's values, the
engine has them dequantized. Experts' activations are never quantized.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.block_integers import experts_are_rounded
from trtllm_dflash.checkpoint.formats import NVFP4_GROUP_SIZE
from trtllm_dflash.graph.integer_experts import IntegerExperts
from trtllm_dflash.graph.kernel_specs import FP8_FORMAT
from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.graph.moe_weights import ExpertWeight, FusedExperts, PerExpertLinears
from trtllm_dflash.graph.ops import MOE
from trtllm_dflash.models.moe import MoEConfig

_LOG = logging.getLogger(__name__)


class ExpertStorage(Enum):
    """How an engine stores quantized experts."""

    DEQUANTIZED = "dequantized to the step's type"
    FP4_QDQ = "packed FP4, dequantized by the compiler's own kernels"
    PACKED = "packed, for our plugin"


@dataclass(frozen=True)
class Experts:
    """The experts of one layer, `name` as in "model.layers.0.mlp"."""

    model: LayerBuilder
    config: MoEConfig
    hidden_size: int
    quantized_as: ExpertStorage
    name: str

    def __call__(self, x: ir.Value) -> ir.Value:
        """Return the weighted sum of each token's experts, x [N, hidden] (normed)."""
        m, c = self.model, self.config
        logits = m.g.cast(
            m.linear(x, f"{self.name}.{'router' if c.fused else 'gate'}"), ir.DataType.FLOAT
        )
        weights = (
            self._weight(
                "gate_up_proj",
                ("gate_proj", "up_proj"),
                2 * c.intermediate_size,
                self.hidden_size,
            ),
            self._weight("down_proj", ("down_proj",), self.hidden_size, c.intermediate_size),
        )
        integers = self._integers
        if integers is not None:
            return integers(x, logits, weights, self._own_biases(weights))
        return self._by_operator(x, logits, weights)

    def _by_operator(
        self, x: ir.Value, logits: ir.Value, weights: Sequence[ExpertWeight]
    ) -> ir.Value:
        g, c = self.model.g, self.config
        form = self._form(weights)
        (gate_up, *up_scales), (down, *down_scales) = (
            self._operands(weight, form) for weight in weights
        )
        biases = [self._bias(weight) for weight in weights]
        scales = [scale for pair in zip(up_scales, down_scales, strict=True) for scale in pair]
        (out,) = MOE(
            g,
            x,
            logits,
            gate_up,
            biases[0],
            down,
            biases[1],
            *scales,
            top_k=c.top_k,
            normalize=int(c.normalize),
            interleaved=int(c.fused),
            limit=c.limit,
            alpha=c.alpha,
            shift=c.shift,
            weight_format=weights[0].weight_format if form is ExpertStorage.PACKED else 0,
            block_rows=weights[0].block_rows if form is ExpertStorage.PACKED else 0,
        )
        return out

    def _weight(
        self, part: str, parts: tuple[str, ...], rows: int, columns: int
    ) -> ExpertWeight:
        source = self.model.weights
        name = f"{self.name}.experts"
        shape = (self.config.num_experts, rows, columns)
        if self.config.fused:
            return FusedExperts(source, f"{name}.{part}", shape)
        linears = tuple(tuple(f"{name}.{j}.{part}" for part in parts) for j in range(shape[0]))
        return PerExpertLinears(source, f"{name}.{part}", shape, linears)

    @cached_property
    def _integers(self) -> IntegerExperts | None:
        """Return what has the weights as integers by block; None where none has."""
        m, c = self.model, self.config
        if m.weight_only is None or not experts_are_rounded(
            self.hidden_size, c.intermediate_size
        ):
            return None
        return IntegerExperts(m.g, c, m.weight_only)

    def _form(self, weights: Sequence[ExpertWeight]) -> ExpertStorage:
        """Return the storage of both weights: dequantized if one of them must be."""
        formats = {(weight.weight_format, weight.block_rows) for weight in weights}
        is_for_plugin = self.quantized_as is ExpertStorage.PACKED
        is_fp8 = any(weight.weight_format == FP8_FORMAT for weight in weights)
        is_plain = formats == {(0, 0)} or (is_fp8 and not is_for_plugin)
        if self.quantized_as is ExpertStorage.DEQUANTIZED or is_plain:
            return ExpertStorage.DEQUANTIZED
        if len(formats) > 1:
            _LOG.warning(
                "%s.experts: gate_up_proj and down_proj are stored in two formats; the engine"
                " holds this layer's experts as %s",
                self.name,
                self.model.dtype.name,
            )
            return ExpertStorage.DEQUANTIZED
        for weight in weights:
            reason = weight.unpackable_reason() if is_for_plugin else weight.no_fp4_reason()
            if reason is not None:
                _LOG.warning(
                    "%s; the engine holds this layer's experts as %s",
                    reason,
                    self.model.dtype.name,
                )
                return ExpertStorage.DEQUANTIZED
        return self.quantized_as

    def _operands(self, weight: ExpertWeight, form: ExpertStorage) -> tuple[ir.Value, ...]:
        """Return the operator's inputs for a weight: itself, then its scales if it has any."""
        m = self.model
        g = self.model.g
        if form is ExpertStorage.PACKED:
            return weight.packed(g)
        if form is ExpertStorage.DEQUANTIZED:
            return (weight.dequantized(g, m.dtype),)
        packed, scales = weight.fp4(g)
        return (
            g.cast(
                g.DequantizeLinear(packed, scales, axis=-1, block_size=NVFP4_GROUP_SIZE),
                m.dtype,
            ),
        )

    def _own_biases(
        self, weights: tuple[ExpertWeight, ExpertWeight]
    ) -> tuple[ir.Value | None, ir.Value | None]:
        gate_up, down = weights
        return (self._bias(gate_up), self._bias(down)) if self.config.fused else (None, None)

    def _bias(self, weight: ExpertWeight) -> ir.Value:
        m = self.model
        if isinstance(weight, FusedExperts):
            return m.weights.value(m.g, f"{weight.name}_bias")
        part = weight.shape[1]
        zeros = np.zeros(weight.shape[:2], m.dtype.numpy())
        return m.g.initializer(
            f"target.no_bias_of_{part}", lambda: ir.Tensor(zeros)
        )  # one for all layers
