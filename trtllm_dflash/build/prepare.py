"""All that a build decides before its long step, with nothing written yet: models checked, sizes and costs known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_dflash.build.backends import BACKENDS
from trtllm_dflash.build.formats import require_arithmetic
from trtllm_dflash.checkpoint.draft_vocab import read_draft_vocab
from trtllm_dflash.checkpoint.loader import Checkpoint, check_pair, load_drafter, load_target
from trtllm_dflash.checkpoint.quantized import CODES
from trtllm_dflash.config.build import ARCHS, DTYPE_BYTES, BuildConfig, ResolvedBuild
from trtllm_dflash.config.drafter import DrafterConfig, DraftLayerConfig
from trtllm_dflash.config.quantization import algos_of
from trtllm_dflash.config.target import TargetConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.graph.io import Port, fp8_cache_dtype, step_ports
from trtllm_dflash.graph.kv_scales import KvScales
from trtllm_dflash.graph.ops.attention import KERNEL as ATTENTION_KERNEL
from trtllm_dflash.log import human_bytes

# What the kernel of DFlashMoE takes.
_PLAIN_EXPERTS, _QUANTIZED_EXPERTS, _MAX_TOP_K = 8, 32, 32

_STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Prepared:
    """A build's models and sizes; all that `--dry-run` shows."""

    config: BuildConfig
    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig] | None
    resolved: ResolvedBuild
    draft_vocab: np.ndarray | None = None  # int64, the token ids that may be drafted; None: all
    kv_scales: KvScales | None = None  # makes the target's caches FP8

    @property
    def checkpoints(self) -> dict[str, Checkpoint[Any]]:
        """The models by role, the target first."""
        return {"target": self.target} | ({"drafter": self.drafter} if self.drafter else {})

    @property
    def ports(self) -> tuple[Port, ...]:
        """The step's inputs and outputs."""
        config, sizes = self.drafter.config if self.drafter else None, self.resolved
        return step_ports(
            self.target.config, config, dtype=sizes.dtype, cache_len=sizes.cache_len, block_size=sizes.block_size,
            plugins=sizes.plugins, kv_cache_dtype=self._kv_cache_dtype,
        )  # fmt: skip

    @property
    def _kv_cache_dtype(self) -> str | None:
        sizes = self.resolved
        return None if self.kv_scales is None else fp8_cache_dtype(sizes.dtype, plugins=sizes.plugins)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the engine: in its dtype, and on a GPU quantized ones as they are."""
        size = DTYPE_BYTES[self.resolved.dtype]
        models = self.checkpoints.values()
        weights = sum(model.weight_bytes(size, keeps_codes=self._keeps_codes(model)) for model in models)
        draft_head = 0 if self.draft_vocab is None else len(self.draft_vocab) * self.target.config.hidden_size
        return weights + draft_head * size

    def _keeps_codes(self, model: Checkpoint[Any]) -> bool:
        """Whether quantized weights stay as they are; an engine for the CPU has their numbers.

        So has one of MXFP4 experts for a GPU without FP4, unless it has our kernels.
        """
        arch = ARCHS[self.resolved.arch]
        return arch.is_gpu and (not model.quantization.mxfp4 or self.resolved.plugins or arch.has_fp4)

    @property
    def cache_bytes_per_slot(self) -> int:
        """Bytes of all caches of one slot."""
        caches = (port for port in self.ports if port.cache and port.direction == "input")
        return sum(prod(size for size in port.shape if isinstance(size, int)) * port.item_bytes for port in caches)

    def rows(self) -> list[tuple[str, str]]:
        """The resolved configuration, for people."""
        sizes, arch = self.resolved, ARCHS[self.resolved.arch]
        return [
            ("target", _describe(self.target)),
            *self._layers_rows(),
            *self._drafter_rows(),
            ("arch", f"{arch.name} ({arch.hardware}), built by {BACKENDS[arch.backend].title}"),
            *([("kernels", "ours, as plugins" if sizes.plugins else "the compiler's own")] if arch.is_gpu else []),
            ("dtype", sizes.dtype),
            ("slots", str(sizes.max_batch_size)),
            ("prompt", f"up to {sizes.max_input_len} tokens, in steps of up to {sizes.max_num_tokens}"),
            ("sequence", f"up to {sizes.max_seq_len} tokens, in caches of {sizes.cache_len} rows"),
            ("weights", self._weights_row()),
            ("caches", self._caches_row()),
            ("output", str(self.config.output_dir)),
        ]

    def _layers_rows(self) -> list[tuple[str, str]]:
        """What is not alike in all targets: windows, sinks, experts."""
        config, rows = self.target.config, []
        if any(config.windows):
            sliding = [window for window in config.windows if window]
            sizes = ", ".join(map(str, sorted(set(sliding))))
            sinks = ", with sinks" if config.sinks else ""
            rows.append(("windows", f"{len(sliding)} of {config.num_layers} layers see {sizes} tokens{sinks}"))
        if config.moe:
            moe = config.moe
            stored = algos_of(row for name, row in self.target.formats.items() if ".experts." in name)
            weights = f"{stored}, their activations as they are" if stored else "not quantized"
            rows.append(("experts", f"{moe.num_experts} a layer, {moe.top_k} a token; {weights}"))
        return rows

    def _drafter_rows(self) -> list[tuple[str, str]]:
        if self.drafter is None:
            return [("drafter", "none: a plain engine, one token a step")]
        config, block = self.drafter.config, self.resolved.block_size
        taps = ", ".join(map(str, config.target_layer_ids))
        return [
            ("drafter", _describe(self.drafter)),
            ("masks", describe_masks(config.layers)),
            ("taps", f"outputs of target layers {taps}"),
            (
                "block",
                f"{block} tokens (trained with {config.block_size}); run verifies {self.resolved.draft_len} drafts",
            ),
            ("drafted", self._drafted_row()),
        ]

    def _drafted_row(self) -> str:
        size = self.target.config.vocab_size
        return f"all {size} tokens" if self.draft_vocab is None else f"{len(self.draft_vocab)} of {size} tokens"

    def _caches_row(self) -> str:
        size = f"{human_bytes(self.cache_bytes_per_slot)} a slot"
        if not any(model.quantization.kv_cache for model in self.checkpoints.values()):
            return size
        return f"{size}, in {self.resolved.dtype}: the checkpoint's scales for FP8 caches are not used yet"

    def _weights_row(self) -> str:
        infos = [info for checkpoint in self.checkpoints.values() for info in checkpoint.tensors.values()]
        stored, kind = [_STORED_DTYPES[self.resolved.dtype]], self.resolved.dtype
        formats = algos_of(row for checkpoint in self.checkpoints.values() for row in checkpoint.formats.values())
        if formats and all(map(self._keeps_codes, self.checkpoints.values())):
            stored, kind = [*stored, *CODES], f"{formats} and {kind}"
        converted = sum(info.dtype not in stored for info in infos)
        return f"{len(infos)} tensors, {human_bytes(self.weight_bytes)} as {kind}; {converted} converted"


def prepare(config: BuildConfig) -> Prepared:
    """Load and check the models, and resolve every size; reads headers, no weights.

    Raises:
        DFlashError: for a model or a size that cannot be built.
    """
    target = load_target(config.target)
    drafter = load_drafter(config.drafter) if config.drafter else None
    if drafter is not None:
        check_pair(target, drafter)
    models: dict[str, Checkpoint[Any]] = {"target": target} | ({"drafter": drafter} if drafter else {})
    require_arithmetic(models, ARCHS[config.arch])
    resolved = config.resolve(target.config, drafter.config if drafter else None)
    if resolved.plugins:
        _check_kernels(models)
    vocab = read_draft_vocab(Path(config.draft_vocab), target.config.vocab_size) if config.draft_vocab else None
    return Prepared(config, target, drafter, resolved, vocab)


def check_fp8_kv(resolved: ResolvedBuild) -> None:
    """Check that an engine of these sizes can have FP8 caches.

    Raises:
        UsageError: saying what can.
    """
    arch = ARCHS[resolved.arch]
    if not arch.has_fp8:
        able = ", ".join(name for name, other in ARCHS.items() if other.has_fp8)
        raise UsageError(f"FP8 KV caches cannot be built for --arch {arch.name}, which has no FP8; {able} have it")
    if arch.is_gpu and not resolved.plugins:
        raise UsageError(
            f"FP8 KV caches need our kernels: {BACKENDS[arch.backend].title} by itself updates only caches of float32, "
            f"float16 and bfloat16 in place; leave --no-plugins out"
        )


def _check_kernels(models: Mapping[str, Checkpoint[Any]]) -> None:
    (head_dim,) = ATTENTION_KERNEL.sizes
    for role, checkpoint in models.items():
        if checkpoint.config.head_dim not in head_dim.values:
            raise UsageError(
                f"there is no attention kernel for the {role}'s head_dim {checkpoint.config.head_dim}, only for "
                f"{', '.join(map(str, head_dim.values))}; give --no-plugins, and the compiler makes its own"
            )
    _check_expert_kernel(models["target"])


def _check_expert_kernel(target: Checkpoint[TargetConfig]) -> None:
    moe = target.config.moe
    if moe is None:
        return
    multiple = _QUANTIZED_EXPERTS if any(".experts." in name for name in target.formats) else _PLAIN_EXPERTS
    sizes = {"hidden_size": target.config.hidden_size, "the experts' intermediate_size": moe.intermediate_size}
    problems = [f"{name} is {size}, no multiple of {multiple}" for name, size in sizes.items() if size % multiple]
    problems += [f"a token has {moe.top_k} experts, more than {_MAX_TOP_K}"] if moe.top_k > _MAX_TOP_K else []
    if problems:
        raise UsageError(
            f"there is no kernel for the target's experts: {'; '.join(problems)}; give --no-plugins, and the compiler "
            f"makes its own"
        )


def describe_masks(layers: Sequence[DraftLayerConfig]) -> str:
    """Each run of equal drafter layers: "layers 0-3 bidirectional, layer 4 causal within 128"."""
    runs = []
    for mask, group in groupby(enumerate(layers), key=lambda item: item[1]):
        indices = [index for index, _ in group]
        span = f"layer {indices[0]}" if len(indices) == 1 else f"layers {indices[0]}-{indices[-1]}"
        window = f" within {mask.window}" if mask.window else ""
        runs.append(f"{span} {'causal' if mask.causal else 'bidirectional'}{window}")
    return ", ".join(runs)


def _describe(checkpoint: Checkpoint[Any]) -> str:
    config = checkpoint.config
    architecture = getattr(config, "architecture", "DFlash")
    return (
        f"{checkpoint.directory} ({architecture}, {config.num_layers} layers, hidden size {config.hidden_size}, "
        f"{checkpoint.num_parameters / 1e6:.1f} M parameters, {checkpoint.stored_as})"
    )
