"""The memory of the device that an engine needs: the engine itself, its steps, its caches.

Weights and caches are counted exactly. The engine's kernels and the intermediate results of its
steps are formulas, fitted to what TensorRT-RTX 1.7.1 reported of engines for sm120. Tests compare
them with real engines: an engine's file is within 3 % of its plan. Intermediate results are never
more than planned, and of narrow models little more than half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trtllm_dflash.builder.delta_memory import DeltaMemory
from trtllm_dflash.builder.expert_scratch import expert_scratch
from trtllm_dflash.builder.optimization_profiles import num_profiles
from trtllm_dflash.builder.resolve import ResolvedModels
from trtllm_dflash.checkpoint.formats import Holds
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.engine_dir.spare_states import SpareStates
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.build import DTYPE_BYTES
from trtllm_dflash.trt_plugins.attention_plans import attention_workspace
from trtllm_dflash.trt_plugins.params import accept_plan, adjust_plan

_ROWS = 64  # by which caches grow
_ANGLE_BYTES = 4  # of a cosine or sine in the tables of RoPE
# Code of one profile of an engine for a GPU: a part for each model, and one for each layer. With
# our kernels, and with the compiler's own.
_KERNEL_BYTES = {True: (1_150_000, 500_000), False: (4_700_000, 300_000)}
# More of a layer with norms of its heads, or with experts.
_MORE_KERNEL_BYTES = {True: 300_000, False: 250_000}
# Likewise of a layer's experts, and of those in 4 bits; of a layer's quantized linears.
_EXPERT_CODE = {True: 0, False: 600_000}
_FOUR_BIT_CODE = {True: 0, False: 400_000}
_FP8_CODE = {True: 400_000, False: 400_000}
_FP4_CODE = {True: 1_300_000, False: 700_000}
# Of adjusting logits and choosing tokens; of a drafter, and how it chooses: by noise or a selector.
_CHOICE_CODE = {True: 0, False: 5_600_000}
_DRAFTER_CODE = {True: 650_000, False: 1_500_000}
_NOISE_CODE = {True: 0, False: 7_500_000}
_SELECTOR_CODE = {True: 800_000, False: 600_000}
_SCRATCH_BYTES = 8_800_000  # TensorRT-RTX's of a step, however small
_SMALL_TENSORS = 1_000_000  # all others of a step for a GPU, and the gaps between them
_CHOICE_BYTES = 6  # of a logit: as the head writes it, and in float32
_LOOKUP_BYTES = 64  # a position, of lookup by the operator's body: the text, matches, lengths
_ONNXRUNTIME_COPIES = 4  # of scores at a time
_MANY_SCORES = 1 << 31  # from here on TensorRT-RTX keeps their softmax beside them


@dataclass(frozen=True)
class _StepShape:
    """The largest shape of one optimization profile: slots, and rows of each."""

    slots: int
    rows: int


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine of resolved models takes on its device, in bytes.

    `weight_bytes` are of all weights, `slot_bytes` of the caches of one slot, `spare_states` of
    what a GPU session holds beside the slots. They are counted once, since that takes a while.
    """

    models: ResolvedModels
    weight_bytes: int
    slot_bytes: int
    spare_states: SpareStates

    @classmethod
    def of(cls, models: ResolvedModels) -> MemoryPlan:
        """Return the plan of resolved models."""
        is_gpu = ARCHS[models.resolved.gpu_arch].is_gpu
        spare = SpareStates.of(models.io if is_gpu else ())
        return cls(models, models.weight_bytes, models.cache_bytes_per_slot, spare)

    @property
    def _dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.models.resolved.dtype]

    @property
    def _is_gpu(self) -> bool:
        return ARCHS[self.models.resolved.gpu_arch].is_gpu

    @property
    def _has_kernels(self) -> bool:
        return self._is_gpu and self.models.resolved.plugins

    @property
    def _delta(self) -> DeltaMemory | None:
        """Return what the target's gated delta nets take; None if it has none."""
        return DeltaMemory.of(self.models.target.config, self.models.resolved.block_size)

    @property
    def _configs(self) -> tuple[TargetConfig | DrafterConfig, ...]:
        return tuple(model.config for model in self.models.checkpoints.values())

    def engine_parts(self) -> dict[str, int]:
        """Return the bytes of the engine by part: weights, tables of positions, and kernels."""
        parts = {
            "weights": self.weight_bytes,
            "positions": self._table_bytes,
            "kernels": self._kernel_bytes,
        }
        return {name: size for name, size in parts.items() if size}

    @property
    def engine_bytes(self) -> int:
        """Return about the bytes of the engine's file, or of both files of a CPU engine."""
        return sum(self.engine_parts().values())

    @property
    def _table_bytes(self) -> int:
        """Return the bytes of RoPE's tables: half a head of cosines and of sines a position."""
        positions = self.models.resolved.cache_len
        return sum(positions * config.head_dim * _ANGLE_BYTES for config in self._configs)

    @property
    def _kernel_bytes(self) -> int:
        if not self._is_gpu:
            return 0
        plugins = self.models.resolved.plugins
        common, each = _KERNEL_BYTES[plugins]
        code = 0
        for model in self.models.checkpoints.values():
            config = model.config
            has_more = True
            if isinstance(config, TargetConfig):
                has_more = config.qk_norm or config.moe is not None
            more = _MORE_KERNEL_BYTES[plugins] if has_more else 0
            more += self._quantized_code(model)
            code += common + config.num_layers * (each + more)
        code += self._delta.code_bytes(plugins=plugins) if self._delta else 0
        return num_profiles(self.models.resolved) * (code + self._special_code_bytes)

    @property
    def _special_code_bytes(self) -> int:
        """Return the code of one profile for choices, experts, drafting and a selector."""
        plugins, target = self.models.resolved.plugins, self.models.target
        code = _CHOICE_CODE[plugins]
        if target.config.moe is not None:
            each = _EXPERT_CODE[plugins]
            each += _FOUR_BIT_CODE[plugins] if self._dequantized_bytes else 0
            code += target.config.num_layers * each
        if self.models.drafter is not None:
            chooses = _NOISE_CODE if self.models.selector_memory is None else _SELECTOR_CODE
            code += _DRAFTER_CODE[plugins] + chooses[plugins]
        return code

    def _quantized_code(self, model: Checkpoint[Any]) -> int:
        """Return the code of a layer for linears that the compiler multiplies in their format."""
        holds, plugins = self.models.holds(model), self.models.resolved.plugins
        found = [0]
        for name, fmt in model.formats.items():
            if ".experts" not in name and fmt.stays_packed(holds, experts=False):
                found.append((_FP8_CODE if fmt.group_size is None else _FP4_CODE)[plugins])
        return max(found)

    def cache_bytes_per_token(self) -> dict[str, int]:
        """Return the bytes that one more token takes in a slot's caches, by model."""
        sizes = self.models.resolved
        longer = replace(sizes, max_seq_len=sizes.max_seq_len + _ROWS)
        now = self.models.cache_bytes_by_role()
        then = replace(self.models, resolved=longer).cache_bytes_by_role()
        return {role: (then[role] - size) // _ROWS for role, size in now.items()}

    def step_bytes(self) -> int:
        """Return about the bytes of intermediate results of the widest steps.

        A step of a prompt and a step of all slots share them.
        """
        sizes = self.models.resolved
        slots = sizes.max_batch_size
        prompt = _StepShape(1, sizes.max_num_tokens)
        decode = _StepShape(slots, sizes.block_size)
        if not self._is_gpu:  # there a step takes any prompts together with any slots
            return self._shape_bytes(prompt, slots) + self._shape_bytes(decode, slots)
        return max(self._shape_bytes(prompt, 1), self._shape_bytes(decode, slots))

    def _shape_bytes(self, shape: _StepShape, slots: int) -> int:
        if self._has_kernels:
            scratch = self._workspace_bytes(shape, slots)
        elif self._is_gpu:
            scratch = self._compilers_bytes(shape)
        else:
            scratch = max(self._attention_bytes(shape), self._expert_bytes(shape))
            scratch += self._inner_bytes(shape)
        if not self._has_kernels:
            scratch += self._delta_bytes(shape)
            if self.models.drafter is not None:  # looking drafts up, by the operator's body
                scratch += shape.slots * self.models.resolved.cache_len * _LOOKUP_BYTES
            selector = self.models.selector_memory
            if selector is not None:
                drafted = self.models.resolved.block_size - 1
                scratch += selector.body_scratch(slots, drafted, self._dtype_bytes)
        scratch += self._stream_bytes(shape) + self._logits_bytes(slots)
        return scratch + (_SMALL_TENSORS if self._is_gpu else 0)

    def _workspace_bytes(self, shape: _StepShape, slots: int) -> int:
        """Return the scratch of our kernels, or of the products around them if that is more."""
        found = [self._attention_bytes(shape), self._expert_bytes(shape)]
        found.append(self._choice_scratch(slots))
        if self._delta is not None:
            found.append(self._delta.kernel_scratch(shape.slots, shape.rows))
        selector = self.models.selector_memory
        if selector is not None:
            drafted = self.models.resolved.block_size - 1
            found.append(selector.kernel_scratch(slots, drafted))
        drafting = 1 if self.models.drafter else 0  # the drafter's products have their own, too
        products = (self._num_scratches + drafting) * _SCRATCH_BYTES
        return max(max(found) + self._mixed_bytes(shape), products + self._inner_bytes(shape))

    def _compilers_bytes(self, shape: _StepShape) -> int:
        """Return the scratch of the compiler's own kernels.

        Attention, experts and MLP come one after another. 4-bit experts are dequantized for
        products, and TensorRT-RTX may do so for all layers before the first.
        """
        largest = max(
            self._attention_bytes(shape) + self._mixed_bytes(shape),
            self._expert_bytes(shape),
            self._inner_bytes(shape),
        )
        return largest + self._num_scratches * _SCRATCH_BYTES + self._dequantized_bytes

    @property
    def _dequantized_bytes(self) -> int:
        target = self.models.target
        moe = target.config.moe
        is_4_bit = any(fmt.group_size is not None for fmt in target.expert_formats)
        if moe is None or not is_4_bit or self.models.holds(target) is not Holds.COMPILED:
            return 0
        weights = 3 * moe.intermediate_size * target.config.hidden_size * moe.num_experts
        return target.config.num_layers * weights * self._dtype_bytes

    @property
    def _num_scratches(self) -> int:
        """Return how many times TensorRT-RTX takes its least scratch.

        Products of quantized linears have their own; so have experts without our kernels.
        """
        models = self.models.checkpoints.values()
        has_experts = self.models.target.config.moe is not None and not self._has_kernels
        return 2 if has_experts or any(map(self._quantized_code, models)) else 1

    def _stream_bytes(self, shape: _StepShape) -> int:
        """Return the bytes of the rows between layers, and of the taps."""
        taps = self.models.drafter.config.num_taps if self.models.drafter else 0
        row = (4 + taps) * self.models.target.config.hidden_size
        return shape.slots * shape.rows * row * self._dtype_bytes

    def _inner_bytes(self, shape: _StepShape) -> int:
        """Return the bytes of the rows inside a layer, between its products."""
        target = self.models.target.config
        shared = target.moe.shared_intermediate_size if target.moe else 0
        row = 3 * max(target.intermediate_size, shared)
        mlp = shape.slots * shape.rows * row * self._dtype_bytes
        return mlp + self._mixed_bytes(shape)

    def _mixed_bytes(self, shape: _StepShape) -> int:
        """Return the bytes of the rows that attention, or a gated delta net, reads and writes."""
        target = self.models.target.config
        gates = target.num_q_heads * target.gated_attention
        heads = 2 * target.num_q_heads + 2 * target.num_kv_heads + gates
        mixed = heads * target.head_dim
        if target.linear_attention is not None:
            linear = target.linear_attention
            mixed = max(mixed, linear.window_columns + 3 * linear.value_size)
        return shape.slots * shape.rows * mixed * self._dtype_bytes

    def _logits_bytes(self, slots: int) -> int:
        """Return the bytes of the logits of the verified and the drafted rows."""
        block = self.models.resolved.block_size
        verified = block * self.models.target.config.vocab_size
        # In float32, and the mask's bits. Tokens are chosen from them before there are drafts.
        adjusted = verified * 33 // 8
        drafted = (block - 1) * self.models.draft_vocab_size * _CHOICE_BYTES
        logits = slots * (verified * _CHOICE_BYTES + max(adjusted, drafted))
        if self.models.resolved.gather_generation_logits:  # once more, as the step's output
            logits += slots * verified * DTYPE_BYTES["float32"]
        return logits

    def _choice_scratch(self, slots: int) -> int:
        rows, vocab = self.models.resolved.block_size, self.models.target.config.vocab_size
        plans = accept_plan(batch=slots, rows=rows, vocab=vocab), adjust_plan(slots, vocab)
        return max(plan.workspace_bytes for plan in plans)

    def _attention_bytes(self, shape: _StepShape) -> int:
        """Return the scratch of the attention that needs most; layers come one by one."""
        found = [0]
        for config in self._configs:
            rows = shape.rows
            if isinstance(config, DrafterConfig):
                rows = config.rows_of(self.models.resolved.block_size)
            of_model = self._kernel_scratch if self._has_kernels else self._score_bytes
            found.append(of_model(config, _StepShape(shape.slots, rows)))
        return max(found)

    def _kernel_scratch(self, config: TargetConfig | DrafterConfig, shape: _StepShape) -> int:
        return attention_workspace(
            batch=shape.slots,
            rows=shape.rows,
            q_heads=config.num_q_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            cache_len=self.models.resolved.cache_len,
            window=0,  # layers without one need most
        )

    def _score_bytes(self, config: TargetConfig | DrafterConfig, shape: _StepShape) -> int:
        """Return the bytes of attention by the operator's body.

        They are the scores of every row with every position of the caches, in float32, a mask, and
        copies of the keys and values.
        """
        positions = self.models.resolved.cache_len
        pairs = shape.slots * shape.rows * positions
        scores = pairs * config.num_q_heads
        keys = shape.slots * positions * config.num_kv_heads * config.head_dim
        if not self._is_gpu:
            copies = _ONNXRUNTIME_COPIES * scores + keys
            return copies * DTYPE_BYTES["float32"] + pairs
        score_bytes = 6 if scores > _MANY_SCORES else 4
        is_grouped = config.num_kv_heads < config.num_q_heads
        copies = 4 if is_grouped and shape.slots > 1 else 2
        return scores * score_bytes + pairs + copies * keys * self._dtype_bytes

    def _delta_bytes(self, shape: _StepShape) -> int:
        """Return the scratch of gated delta nets by the operator's body."""
        delta = self._delta
        if delta is None or self._has_kernels:
            return 0
        return delta.body_scratch(shape.slots, shape.rows, layers_share=not self._is_gpu)

    def _expert_bytes(self, shape: _StepShape) -> int:
        rows = shape.slots * shape.rows
        return expert_scratch(self.models, rows, self._dtype_bytes, kernels=self._has_kernels)

    def total_bytes(self) -> int:
        """Return the bytes of engine, steps and caches for all slots, and of spare states."""
        slots = self.models.resolved.max_batch_size
        caches = slots * self.slot_bytes + self.spare_states.nbytes(slots)
        return self.engine_bytes + self.step_bytes() + caches

    def fits(self, memory: int) -> bool:
        """Return whether `memory` bytes hold this engine, its steps and its caches."""
        return self.total_bytes() <= memory

    def most_slots(self, memory: int) -> int:
        """Return the most slots that fit into `memory` bytes, 0 if not even one does."""
        if not self.with_slots(1).fits(memory):
            return 0
        low, high = 1, 2
        while self.with_slots(high).fits(memory):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (middle, high) if self.with_slots(middle).fits(memory) else (low, middle)
            )
        return low

    def with_slots(self, slots: int) -> MemoryPlan:
        """Return the plan of the same engine for so many sequences."""
        resolved = replace(self.models.resolved, max_batch_size=slots)
        return replace(self, models=replace(self.models, resolved=resolved))

    def with_length(self, tokens: int) -> MemoryPlan:
        """Return the plan of the same engine for sequences of `tokens` tokens."""
        sizes = self.models.resolved
        resolved = replace(
            sizes,
            max_seq_len=tokens,
            max_num_tokens=max(min(sizes.max_num_tokens, tokens), sizes.block_size),
        )
        models = replace(self.models, resolved=resolved)
        return replace(self, models=models, slot_bytes=models.cache_bytes_per_slot)
