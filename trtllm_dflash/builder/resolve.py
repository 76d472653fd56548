"""What a build decides before its long step: models checked, sizes and costs known.

Nothing is written yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trtllm_dflash.builder.config_models import find_drafter, find_target
from trtllm_dflash.builder.format_support import (
    check_format_support,
    check_fp8_kv,
    check_heads,
    check_kernels,
    check_weight_only,
)
from trtllm_dflash.builder.integer_weights import integer_weight_bytes
from trtllm_dflash.builder.pair_support import (
    published_drafter,
    published_target,
    reject_handed_over,
    reject_unsupported_pair,
)
from trtllm_dflash.builder.selector_memory import SelectorMemory
from trtllm_dflash.builder.what_if import UNQUANTIZED, as_if_quantized, supposition
from trtllm_dflash.catalog.pairs import Role, drafter_licence, pair_of
from trtllm_dflash.checkpoint.draft_vocab import read_draft_vocab
from trtllm_dflash.checkpoint.formats import Holds
from trtllm_dflash.checkpoint.loader import (
    Checkpoint,
    load_drafter,
    load_target,
    warn_of_unmet_settings,
)
from trtllm_dflash.checkpoint.locate import find_directory
from trtllm_dflash.checkpoint.model_card import stated_licence
from trtllm_dflash.checkpoint.pair_checks import check_pair, draft_ids
from trtllm_dflash.engine_dir.config_writer import EngineContents
from trtllm_dflash.engine_dir.io_tensors import IoTensor, fp8_cache_dtype, step_io
from trtllm_dflash.engine_dir.slot_memory import SlotMemory
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.graph.kv_scales import KvScales, read_kv_scales
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.build import DTYPE_BYTES, FP8_CACHE, BuildConfig
from trtllm_dflash.options.resolved_build import ResolvedBuild

Model = TypeVar("Model")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class ResolvedModels:
    """The models of a build, checked, and the sizes that it resolves to."""

    config: BuildConfig
    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig] | None
    resolved: ResolvedBuild
    draft_vocab: np.ndarray | None = None  # int64, the token ids that may be drafted; None: all
    kv_scales: KvScales | None = None  # makes the target's caches FP8
    supposed: str = ""  # what a dry run supposes that is not so, for people
    stored_target: Checkpoint[TargetConfig] | None = None  # as it is, where another is supposed

    @property
    def checkpoints(self) -> dict[str, Checkpoint[Any]]:
        """Return the models by role, the target first."""
        return _by_role(self.target, self.drafter)

    @property
    def draft_vocab_size(self) -> int:
        """Return the number of tokens that may be drafted."""
        if self.draft_vocab is not None:
            return len(self.draft_vocab)
        own = None if self.drafter is None else self.drafter.config.draft_vocab_size
        return self.target.config.vocab_size if own is None else own

    @property
    def drafter_licence(self) -> str:
        """Return the drafter's licence and who states it, on one line; "" without a drafter."""
        name = self.config.drafter
        if self.drafter is None or name is None:
            return ""
        if Path(name).is_dir() or pair_of(name, "drafter") is None:
            stated = stated_licence(self.drafter.directory)
            if stated is not None:
                return f"{stated} (its README.md)"
        return drafter_licence(name)

    @property
    def engine_contents(self) -> EngineContents:
        """Return what the engine's config.json says."""
        return EngineContents(
            target=self.target,
            drafter=self.drafter,
            sizes=self.resolved,
            io=self.io,
            draft_vocab_size=self.draft_vocab_size,
            fp8_kv=self.kv_scales is not None,
        )

    @property
    def io(self) -> tuple[IoTensor, ...]:
        """Return the step's inputs and outputs."""
        sizes = self.resolved
        return step_io(
            self.target.config,
            self.drafter.config if self.drafter else None,
            dtype=sizes.dtype,
            cache_len=sizes.cache_len,
            block_size=sizes.block_size,
            plugins=sizes.plugins,
            kv_cache_dtype=self._kv_cache_dtype,
            ring_width=sizes.ring_width,
            gather_logits=sizes.gather_generation_logits,
        )

    @property
    def _kv_cache_dtype(self) -> str | None:
        if self.kv_scales is None:
            return None
        return fp8_cache_dtype(self.resolved.dtype, plugins=self.resolved.plugins)

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of all weights in the engine.

        They have the engine's dtype, except those that stay quantized (`holds`).
        """
        size = DTYPE_BYTES[self.resolved.dtype]
        selector = self.selector_memory
        copied = 0 if selector is None else selector.copied_bytes(size)
        if self.resolved.weight_only_precision is not None:
            return sum(self._integer_bytes.values()) + copied
        weights = copied
        for model in self.checkpoints.values():
            weights += model.weight_bytes(size, self.holds(model))
        row = self.target.config.hidden_size * size
        weights += row * len(self.padded_tables)
        if self.config.draft_vocab:  # its rows of the head again
            weights += row * self.draft_vocab_size
        return weights

    @property
    def _integer_bytes(self) -> dict[str, int]:
        """Return the bytes of weights by format, where some are integers by block."""
        return integer_weight_bytes(
            self.checkpoints,
            str(self.resolved.weight_only_precision),
            bytes_per_weight=DTYPE_BYTES[self.resolved.dtype],
            draft_rows=self.draft_vocab_size if self.config.draft_vocab else 0,
        )

    @property
    def padded_tables(self) -> tuple[str, ...]:
        """Return the target's tables of which the engine has one row more."""
        is_gpu = ARCHS[self.resolved.gpu_arch].is_gpu
        return self.target.config.odd_tied_tables if is_gpu else ()

    @property
    def selector_memory(self) -> SelectorMemory | None:
        """Return what the drafter's candidate selector takes, None without one."""
        drafter = None if self.drafter is None else self.drafter.config
        listed = None if self.draft_vocab is None else len(self.draft_vocab)
        return SelectorMemory.of(drafter, self.target.config.vocab_size, listed)

    @property
    def bytes_by_format(self) -> dict[str, int]:
        """Return `weight_bytes` by the names of the formats, the largest first."""
        size = DTYPE_BYTES[self.resolved.dtype]
        plain = STORED_DTYPES[self.resolved.dtype]
        found = Counter[str]()
        if self.resolved.weight_only_precision is not None:
            found.update({name or plain: size for name, size in self._integer_bytes.items()})
            return dict(found.most_common())
        for model in self.checkpoints.values():
            sizes = model.bytes_by_format(size, self.holds(model))
            found.update({name or plain: count for name, count in sizes.items()})
        found[plain] += (
            self.weight_bytes - found.total()
        )  # the draft vocabulary's rows of the head
        return dict(found.most_common())

    def holds(self, model: Checkpoint[Any]) -> Holds:
        """Return which quantized weights the engine has as they are stored.

        An engine for the CPU has them dequantized. So has one for a GPU without FP4 of MXFP4
        experts, unless it has our kernels.
        """
        arch = ARCHS[self.resolved.gpu_arch]
        if not arch.is_gpu:
            return Holds.NOTHING
        if self.resolved.plugins:
            return Holds.KERNELS
        return Holds.COMPILED if arch.has_fp4 or not model.quantization.mxfp4 else Holds.NOTHING

    @property
    def cache_bytes_per_slot(self) -> int:
        """Return the bytes of all caches of one slot."""
        return self.cache_bytes_by_role().total()

    def cache_bytes_by_role(self) -> Counter[str]:
        """Return the bytes of one slot's caches, by model."""
        found = Counter[str]()
        for tensor in self.io:
            if tensor.cache and tensor.direction == "input":
                found[tensor.cache] += tensor.slot_bytes
        return found

    @property
    def slot_memory(self) -> SlotMemory:
        """Return the bytes of one slot's caches, by what they hold."""
        return SlotMemory.of(self.io, cache_len=self.resolved.cache_len)


def resolve_models(
    config: BuildConfig, *, fetch: bool = True, quant: str = UNQUANTIZED
) -> ResolvedModels:
    """Load and check the models, and resolve every size; reads headers, no weights.

    With `fetch`, a model that is not on this machine is fetched from the hub. Without, the
    published sizes of a model in the catalog, or its config.json alone, stand for its files. Then
    the target may be supposed to be quantized to `quant`, and to have scales of FP8 caches.

    Raises:
        DFlashError: for a model or a size that cannot be built.
    """
    reject_unsupported_pair(config.target, config.drafter)
    if fetch:
        reject_handed_over(config.target)
    target = _load("target", config.target, load_target, published_target, fetch=fetch)
    warn_of_unmet_settings(target)
    stored_target, target = target, as_if_quantized(target, quant)
    drafter = None
    if config.drafter:
        drafter = _load("drafter", config.drafter, load_drafter, published_drafter, fetch=fetch)
        drafter = check_pair(target, drafter)
    models = _by_role(target, drafter)
    check_format_support(models, ARCHS[config.arch], quant=quant)
    if config.weight_only_precision is not None:
        check_weight_only(models, config.weight_only_precision)
    resolved = config.resolve(target.config, drafter.config if drafter else None)
    configs = {role: model.config for role, model in models.items()}
    if ARCHS[config.arch].is_gpu:
        check_heads(configs)
    kv_scales = _kv_scales(config, target, must_exist=fetch)
    if resolved.plugins:
        check_kernels(
            configs,
            expert_formats=target.expert_formats,
            block_size=resolved.block_size,
            fp8_caches=kv_scales is not None,
        )
    vocab = _draft_vocab(config, target.config, drafter)
    if kv_scales is not None:
        check_fp8_kv(resolved)
    found = ResolvedModels(config, target, drafter, resolved, vocab, kv_scales)
    fp8_caches = kv_scales is not None and stored_target.quantization.kv_cache is None
    if quant == UNQUANTIZED and not fp8_caches:
        return found
    moe = target.config.moe
    fused_experts = moe is not None and moe.fused
    supposed = supposition(quant, fp8_caches=fp8_caches, fused_experts=fused_experts)
    return replace(found, supposed=supposed, stored_target=stored_target)


def _draft_vocab(
    config: BuildConfig, target: TargetConfig, drafter: Checkpoint[DrafterConfig] | None
) -> np.ndarray | None:
    """Return the token ids that may be drafted: those asked for, or the drafter's own list.

    Raises:
        UsageError: for a list beside the drafter's own.
    """
    own = None if drafter is None else drafter.config.draft_vocab_size
    if not config.draft_vocab:
        return None if drafter is None else draft_ids(drafter)
    if own is not None:
        raise UsageError(
            f"--draft-vocab {config.draft_vocab}: the drafter has a head over {own} tokens of its"
            " own choice, and no rows for others; leave the option out"
        )
    return read_draft_vocab(Path(config.draft_vocab), target.vocab_size)


def _by_role(
    target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig] | None
) -> dict[str, Checkpoint[Any]]:
    models: dict[str, Checkpoint[Any]] = {"target": target}
    if drafter is not None:
        models["drafter"] = drafter
    return models


def _load(
    role: Role,
    name: str,
    load: Callable[[Path], Model],
    published: Callable[[str], Model | None],
    *,
    fetch: bool,
) -> Model:
    """Return a model from its files.

    If there are none here and none may be fetched, its published sizes stand for them.
    """
    by_config: Callable[..., Any] = find_target if role == "target" else find_drafter
    check = partial(by_config, has_weights=True)
    try:
        directory = find_directory(
            name, role=role, fetch=fetch, check=lambda path: check(str(path))
        )
    except CheckpointError:
        known = None if fetch else published(name)
        if known is None:
            raise
        return known
    if not fetch and not _has_weights(directory):
        planned: Model = by_config(str(directory))
        return planned
    return load(directory)


def _has_weights(directory: Path) -> bool:
    return any(path.suffix in _WEIGHT_SUFFIXES for path in directory.iterdir())


def _kv_scales(
    config: BuildConfig, target: Checkpoint[TargetConfig], *, must_exist: bool
) -> KvScales | None:
    """Return the scales of the target's caches, None where they are not FP8.

    Where they need not exist, scales of 1 stand for those that are asked for and missing.
    """
    if config.kv_cache_dtype not in ("auto", FP8_CACHE):
        return None
    scales = read_kv_scales(target)
    if scales is None and config.kv_cache_dtype == FP8_CACHE:
        if not must_exist:
            return dict.fromkeys(target.config.kv_layers, (1.0, 1.0))
        raise UsageError(
            f"--kv-cache-dtype fp8 needs scales for the caches, and {target.directory} has none;"
            " make them with `dflash-trt quantize --kv-cache-dtype fp8`"
        )
    return scales
