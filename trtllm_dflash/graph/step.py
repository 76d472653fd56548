"""The step: one graph for a whole iteration, for prompts and for generation, with or without a
drafter.

input_ids ─ embed ─ target layers ─┬─ gather rows ─ lm_head ─ ADJUST ─ ACCEPT ─┬─ new_ids, num_new,
                                   │                                           │  next_len
                                   └─ features of the tap layers ──┐           └─ bonus
                                                                   ▼               ▼
                                  KV injection ─ drafter block [bonus, mask…] ─ lm_head ─ drafts
                                   the slot's own text ─ LOOKUP: the better drafts of both ─┘
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.engine_dir.io_tensors import (
    ADJUSTS,
    HISTORY,
    LOGITS,
    NOISE_KEY,
    TOKEN_MASK,
    IoTensor,
    fp8_cache_dtype,
    step_io,
)
from trtllm_dflash.engine_dir.ring_cache import ring_flags
from trtllm_dflash.graph.builder import DTYPES, OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.draft_head import DraftHead, padded_tables, target_logits
from trtllm_dflash.graph.drafter import DrafterBuilder
from trtllm_dflash.graph.kv_scales import KvScales, check_kv_scales
from trtllm_dflash.graph.layers import LayerBuilder, Rotary, gather_rows
from trtllm_dflash.graph.moe_layer import ExpertStorage
from trtllm_dflash.graph.next_block import NextBlock
from trtllm_dflash.graph.ops import ACCEPT, ADJUST, OPS
from trtllm_dflash.graph.plugin_nodes import lower_to_plugins
from trtllm_dflash.graph.quantized_linear import emulation_functions
from trtllm_dflash.graph.target import TargetBuilder
from trtllm_dflash.graph.weight_source import WeightSource
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.draft_tables import EMBEDDING
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.row_sampling import CHOICE_INPUTS, PENALTY_INPUTS

IR_VERSION = 11


def build_step(
    target: Checkpoint[TargetConfig],
    drafter: Checkpoint[DrafterConfig] | None,
    *,
    dtype: str,
    cache_len: int,
    block_size: int,
    draft_vocab: np.ndarray | None = None,
    plugins: bool = False,
    fp4: bool = False,
    kv_scales: KvScales | None = None,
    ring_width: int | None = None,
    gather_logits: bool = False,
    row_order: bool = False,
    weight_only: str | None = None,
) -> ir.Model:
    """Build the step of a target with a drafter, or of a target alone (then block_size is 1).

    Weights of type `dtype` are referenced in the checkpoints' files; others are converted when
    read. So are quantized ones where `dtype` is float32 (`graph.quantized_linear`).

    Args:
        draft_vocab: ids (int64) to which drafts are limited, so that drafting reads only their rows
            of the head. A drafter's own list is one. What is committed does not depend on it.

        plugins: our operators have no bodies (`graph.plugin_nodes`).

        fp4: the compiler has 4-bit weights, so quantized experts stay 4-bit without plugins.

        kv_scales: of every target layer that has keys; they make the target's caches FP8.

        ring_width: the widest step; layers with a window then have ring caches.

        gather_logits: the logits that decide tokens are an output too.

        row_order: gated delta nets go row by row, slower: every width gives the same bits.

        weight_only: the precision of weights as integers by block, for ONNX Runtime alone.

    Raises:
        GraphError: for scales that no cache can have, or FP8 caches without our kernels.
    """
    ports = step_io(
        target.config,
        drafter.config if drafter else None,
        dtype=dtype,
        cache_len=cache_len,
        block_size=block_size,
        kv_cache_dtype=_kv_cache_dtype(target, kv_scales, dtype, plugins),
        ring_width=ring_width,
        gather_logits=gather_logits,
    )
    inputs = {port.name: _graph_input(port) for port in ports if port.direction == "input"}
    sizes = (GraphBuilder(), inputs, DTYPES[dtype], cache_len, block_size, draft_vocab)
    step = _Step(*sizes, plugins, fp4, kv_scales, row_order, weight_only)
    results = step.emit(target, drafter)
    written = [port for port in ports if port.direction == "output"]
    outputs = [_graph_output(port, results[port.name]) for port in written]
    return _as_model(step.g, list(inputs.values()), outputs, plugins)


def _kv_cache_dtype(
    target: Checkpoint[TargetConfig], kv_scales: KvScales | None, dtype: str, plugins: bool
) -> str | None:
    """Return the type of FP8 caches, None where the target has no such; check their scales."""
    if kv_scales is None:
        return None
    check_kv_scales(kv_scales, target.config.kv_layers, dtype=dtype, plugins=plugins)
    return fp8_cache_dtype(dtype, plugins=plugins)


def _as_model(
    g: GraphBuilder, inputs: list[ir.Value], outputs: list[ir.Value], plugins: bool
) -> ir.Model:
    """Return the model of all nodes emitted; its operators have bodies, or are plugins' nodes."""
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=g.nodes,
        initializers=list(g.initializers.values()),
        opset_imports={OPS_DOMAIN: 1} | {node.domain: 1 for node in g.nodes} | {"": OPSET},
        name="step",
    )
    functions = emulation_functions(g.nodes)
    if not plugins:
        functions += [function for spec in OPS.values() for function in spec.functions(g.nodes)]
    model = ir.Model(
        graph, ir_version=IR_VERSION, producer_name="dflash-trt", functions=functions
    )
    if plugins:
        lower_to_plugins(model)
    return model


@dataclass(frozen=True)
class _Step:
    g: GraphBuilder
    inputs: dict[str, ir.Value]
    dtype: ir.DataType
    cache_len: int
    block_size: int
    draft_vocab: np.ndarray | None
    plugins: bool
    fp4: bool
    kv_scales: KvScales | None
    row_order: bool
    weight_only: str | None

    def emit(
        self, target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig] | None
    ) -> dict[str, ir.Value]:
        """Return the outputs by port name."""
        g = self.g
        config = target.config
        weights = WeightSource(
            "target",
            target.tensors,
            self.dtype,
            target.formats,
            padded_tables(config, self.dtype),
        )
        verifier = LayerBuilder(
            g,
            weights,
            self.dtype,
            config.rms_norm_eps,
            config.norm_offset,
            plugins=self.plugins,
            weight_only=self.weight_only,
        )
        with g.scope("target"):
            tap_ids = drafter.config.target_layer_ids if drafter else ()
            hidden, features, written = self._target(verifier, target.config, tap_ids)
            logits = self._decided_logits(verifier, target.config, hidden)
        with g.scope("adjust"):
            adjusted, history = self._adjust(logits)
        with g.scope("accept"):
            before = [self.inputs[name] for name in ("input_ids", "num_known", "past_len")]
            behind = [self.inputs[NOISE_KEY], adjusted, self.inputs[ADJUSTS]]
            new_ids, num_new, next_len, bonus = ACCEPT(
                g, logits, *before, *self._settings, *behind
            )
        results = {
            LOGITS: logits,
            "new_ids": new_ids,
            "num_new": num_new,
            "next_len": next_len,
            "next_ids": bonus,
        }
        written |= {HISTORY: history}
        if drafter is not None:
            next_block = NextBlock(g, self.inputs, self.block_size)
            with g.scope("drafter"):
                drafts, draft_written = self._drafts(
                    next_block, verifier, target.config, drafter, features, bonus, next_len
                )
            with g.scope("lookup"):
                drafts, tally = next_block.lookup(history, bonus, drafts, next_len)
            written |= draft_written
            results |= {"next_ids": g.Concat(bonus, drafts, axis=1), "next_tally": tally}
        if config.has_linear_layers:
            # The known rows are in the states, the accepted drafts not yet.
            known = self.inputs["num_known"]
            results["next_state_len"] = g.Add(self.inputs["past_len"], known)
        return results | {f"{name}.out": value for name, value in written.items()}

    def _target(
        self, m: LayerBuilder, config: TargetConfig, tap_ids: tuple[int, ...]
    ) -> tuple[ir.Value, list[ir.Value], dict[str, ir.Value]]:
        """Return all target layers: the residual stream [B·S, hidden], the tap layers' outputs in
        order, the caches.
        """
        g = self.g
        ids = self.inputs["input_ids"]
        past = self.inputs["past_len"]
        names = ("past_len", "state_len", "num_known") if config.has_linear_layers else ()
        context = TargetBuilder(
            model=m,
            config=config,
            rotary=Rotary.from_config(g, config.rope, "target", self.cache_len, self.dtype),
            batch_and_width=g.Shape(ids),
            positions=self._positions(past, g.size(ids, 1)),
            kv_positions=self.inputs["kv_positions"],
            caches=self.inputs,
            lengths=tuple(self.inputs[name] for name in names),
            experts_as=self._experts_as,
            kv_scales=self.kv_scales,
            rings=self._rings("target_key", config.num_layers),
            row_order=self.row_order,
        )
        x = _embed(m, ids, config.hidden_size)
        outputs = []
        for index in range(config.num_layers):
            x = config.family.layer(context, x, index)
            outputs.append(x)
        return x, [outputs[index] for index in tap_ids], context.written

    @property
    def _experts_as(self) -> ExpertStorage:
        if self.dtype == ir.DataType.FLOAT or not (self.plugins or self.fp4):
            return ExpertStorage.DEQUANTIZED
        return ExpertStorage.PACKED if self.plugins else ExpertStorage.FP4_QDQ

    def _decided_logits(
        self, m: LayerBuilder, config: TargetConfig, hidden: ir.Value
    ) -> ir.Value:
        """float32 [B, R, V] for the R rows from num_known-1 on: only they decide anything."""
        g = self.g
        ids = self.inputs["input_ids"]
        first = g.Sub(g.cast(self.inputs["num_known"], ir.DataType.INT64), 1)
        row = g.Add(g.Unsqueeze(first, [1]), self.inputs["decided"])
        # The last index as an element, not as a size: that TensorRT would copy from the host in
        # every step.
        row = g.Min(row, g.Slice(g.arange(g.size(ids, 1)), [-1], [2**31 - 1], [0]))
        rows = gather_rows(
            g, g.Reshape(hidden, g.Concat(g.Shape(ids), [config.hidden_size], axis=0)), row
        )
        logits = target_logits(
            m, config, m.rms_norm(g.Reshape(rows, [-1, config.hidden_size]), "model.norm")
        )
        return g.Reshape(logits, g.Concat(g.Shape(row), [config.vocab_size], axis=0))

    def _drafts(
        self,
        next_block: NextBlock,
        verifier: LayerBuilder,
        target: TargetConfig,
        drafter: Checkpoint[DrafterConfig],
        features: list[ir.Value],
        bonus: ir.Value,
        next_len: ir.Value,
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        """Return the next block's drafts int64 [B, T-1], and the drafter's caches."""
        g = self.g
        config = drafter.config
        past = self.inputs["past_len"]
        weights = WeightSource("drafter", drafter.tensors, self.dtype, drafter.formats)
        batch = g.size(bonus, 0)
        width = g.size(self.inputs["input_ids"], 1)
        rows = config.rows_of(self.block_size)
        block_rows, block = next_block.rows(rows)
        start = g.Unsqueeze(g.cast(next_len, ir.DataType.INT64), [1])
        block_positions = g.Add(start, block_rows)
        model = LayerBuilder(
            g,
            weights,
            self.dtype,
            config.rms_norm_eps,
            plugins=self.plugins,
            weight_only=self.weight_only,
        )
        context = DrafterBuilder(
            model=model,
            config=config,
            rotary=Rotary.from_config(g, config.rope, "drafter", self.cache_len, self.dtype),
            batch_and_block=g.Concat(batch, [-1 if next_block.may_skip else rows], axis=0),
            batch_and_rows=g.Concat(batch, g.Add(width, block), axis=0),
            block_positions=block_positions,
            row_positions=g.Concat(self._positions(past, width), block_positions, axis=1),
            block_rows=block_rows,
            kv_positions=self.inputs["kv_positions"],
            caches=self.inputs,
            rings=self._rings("draft_key", config.num_layers),
        )
        masks = g.Expand(config.mask_token_id, g.Concat(batch, [rows - 1], axis=0))
        ids = g.Concat(bonus, masks, axis=1)
        if next_block.may_skip:
            ids = g.Slice(ids, [0], block, [1])
        x = _embed_block(verifier, model, config, ids)
        hidden = context.forward(g.Concat(*features, axis=-1), x)
        head = DraftHead(verifier, target, drafter=model, config=config, vocab=self.draft_vocab)
        noise = (*self._settings, self.inputs[NOISE_KEY], next_len)
        drafts = head.drafts(hidden, bonus, self.block_size, noise)
        return next_block.filled(drafts, bonus), context.written

    @property
    def _settings(self) -> list[ir.Value]:
        """Return the inputs of the sampling table by which a token is chosen."""
        return [self.inputs[row.name] for row in CHOICE_INPUTS]

    def _adjust(self, logits: ir.Value) -> tuple[ir.Value, ...]:
        """Return what counts instead of the logits, and the history with the step's tokens."""
        names = [HISTORY, "input_ids", "num_known", "past_len", ADJUSTS, "prompt_len"]
        names += [row.name for row in PENALTY_INPUTS]
        names += ["bias_ids", "bias_values", "bad_words", TOKEN_MASK, "kv_positions"]
        is_for_trt = self.dtype != ir.DataType.FLOAT and not self.plugins
        pairwise = {"pairwise": 1} if is_for_trt else {}
        return ADJUST(self.g, logits, *(self.inputs[name] for name in names), **pairwise)

    def _rings(self, name: str, num_layers: int) -> tuple[int, ...]:
        """Return which layers' caches are rings, by the rows of their inputs.

        A layer without keys has none, as one whose caches have all rows.
        """
        rows = []
        for layer in range(num_layers):
            cache = self.inputs.get(f"{name}.{layer}")
            count = None if cache is None or cache.shape is None else cache.shape[2]
            rows.append(count if isinstance(count, int) else self.cache_len)
        return ring_flags(rows, self.cache_len)

    def _positions(self, start: ir.Value, count: ir.Value | list[int]) -> ir.Value:
        """start [B] + 0 … count-1, int64 [B, count]."""
        g = self.g
        return g.Add(
            g.Unsqueeze(g.cast(start, ir.DataType.INT64), [1]), g.arange(g.as_value(count))
        )


def _embed_block(
    verifier: LayerBuilder, drafter: LayerBuilder, config: DrafterConfig, ids: ir.Value
) -> ir.Value:
    """Embedding rows [B·R, hidden] of a block's ids [B, R], scaled.

    They are the target's, unless the drafter has a table of its own.
    """
    if EMBEDDING in drafter.weights:
        table = EMBEDDING.removesuffix(".weight")
        rows = _embed(drafter, ids, config.hidden_size, table)
    else:
        rows = _embed(verifier, ids, config.hidden_size)
    if config.embedding_scale == 1.0:
        return rows
    return drafter.narrow(drafter.g.Mul(drafter.wide(rows), config.embedding_scale))


def _embed(
    m: LayerBuilder, ids: ir.Value, hidden_size: int, table: str = "model.embed_tokens"
) -> ir.Value:
    """Embedding rows [B·N, hidden] of ids [B, N]."""
    return m.g.Reshape(m.table_rows(ids, table), [-1, hidden_size])


def _graph_input(port: IoTensor) -> ir.Value:
    return ir.Value(
        name=port.name, shape=ir.Shape(port.shape), type=ir.TensorType(DTYPES[port.dtype])
    )


def _graph_output(port: IoTensor, value: ir.Value) -> ir.Value:
    value.name = port.name
    value.shape = ir.Shape(port.shape)
    value.type = ir.TensorType(DTYPES[port.dtype])
    return value
