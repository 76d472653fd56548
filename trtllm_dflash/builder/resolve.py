"""All that a build decides before its long step, with nothing written yet: models checked, sizes
and costs known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trtllm_dflash.builder.format_support import check_format_support, check_fp8_kv, check_kernels
from trtllm_dflash.builder.pair_support import (
    published_drafter,
    published_target,
    reject_unsupported_pair,
)
from trtllm_dflash.catalog.pairs import Role
from trtllm_dflash.checkpoint.draft_vocab import read_draft_vocab
from trtllm_dflash.checkpoint.formats import algos_of
from trtllm_dflash.checkpoint.loader import Checkpoint, check_pair, load_drafter, load_target
from trtllm_dflash.checkpoint.locate import find_directory
from trtllm_dflash.checkpoint.quantized_tensors import PACKED_DTYPES
from trtllm_dflash.engine_dir.config_writer import EngineContents
from trtllm_dflash.engine_dir.inspection import describe_masks
from trtllm_dflash.engine_dir.io_tensors import IoTensor, fp8_cache_dtype, step_io
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.graph.kv_scales import KvScales, read_kv_scales, stores_kv_scales
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.log import human_bytes
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.build import DTYPE_BYTES, FP8_CACHE, BuildConfig
from trtllm_dflash.options.resolved_build import ResolvedBuild

Model = TypeVar("Model")
_STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class ResolvedModels:
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
    def engine_contents(self) -> EngineContents:
        """The contents of the engine's config.json."""
        vocab = self.draft_vocab
        return EngineContents(
            target=self.target,
            drafter=self.drafter,
            sizes=self.resolved,
            io=self.ports,
            draft_vocab_size=self.target.config.vocab_size if vocab is None else len(vocab),
            fp8_kv=self.kv_scales is not None,
        )

    @property
    def ports(self) -> tuple[IoTensor, ...]:
        """The step's inputs and outputs."""
        config, sizes = self.drafter.config if self.drafter else None, self.resolved
        return step_io(
            self.target.config, config, dtype=sizes.dtype, cache_len=sizes.cache_len, block_size=sizes.block_size,
            plugins=sizes.plugins, kv_cache_dtype=self._kv_cache_dtype, ring_width=sizes.ring_width,
        )  # fmt: skip

    @property
    def _kv_cache_dtype(self) -> str | None:
        sizes = self.resolved
        return (
            None if self.kv_scales is None else fp8_cache_dtype(sizes.dtype, plugins=sizes.plugins)
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the engine: in its dtype, and on a GPU quantized ones as they
        are.
        """
        size = DTYPE_BYTES[self.resolved.dtype]
        models = self.checkpoints.values()
        weights = sum(
            model.weight_bytes(size, keeps_packed=self._keeps_packed(model)) for model in models
        )
        draft_head = (
            0
            if self.draft_vocab is None
            else len(self.draft_vocab) * self.target.config.hidden_size
        )
        return weights + draft_head * size

    @property
    def bytes_by_format(self) -> dict[str, int]:
        """`weight_bytes` by the names of the formats, the largest first."""
        size, plain = DTYPE_BYTES[self.resolved.dtype], _STORED_DTYPES[self.resolved.dtype]
        found = Counter[str]()
        for model in self.checkpoints.values():
            sizes = model.bytes_by_format(size, keeps_packed=self._keeps_packed(model))
            found.update({name or plain: count for name, count in sizes.items()})
        found[plain] += self.weight_bytes - found.total()  # the draft vocabulary's rows of the head
        return dict(found.most_common())

    def _keeps_packed(self, model: Checkpoint[Any]) -> bool:
        """Whether quantized weights stay as they are; an engine for the CPU has their numbers.

        So has one of MXFP4 experts for a GPU without FP4, unless it has our kernels.
        """
        arch = ARCHS[self.resolved.gpu_arch]
        return arch.is_gpu and (
            not model.quantization.mxfp4 or self.resolved.plugins or arch.has_fp4
        )

    @property
    def cache_bytes_per_slot(self) -> int:
        """Bytes of all caches of one slot."""
        caches = (port for port in self.ports if port.cache and port.direction == "input")
        return sum(
            prod(size for size in port.shape if isinstance(size, int)) * port.item_bytes
            for port in caches
        )

    def rows(self) -> list[tuple[str, str]]:
        """The resolved configuration, for people."""
        sizes, arch = self.resolved, ARCHS[self.resolved.gpu_arch]
        return [
            ("target", _describe(self.target)),
            *self._layers_rows(),
            *self._drafter_rows(),
            ("arch", f"{arch.name} ({arch.hardware}), built by {BACKENDS[arch.backend].title}"),
            *(
                [("kernels", "ours, as plugins" if sizes.plugins else "the compiler's own")]
                if arch.is_gpu
                else []
            ),
            ("dtype", sizes.dtype),
            ("slots", str(sizes.max_batch_size)),
            (
                "prompt",
                f"up to {sizes.max_input_len} tokens, in steps of up to {sizes.max_num_tokens}",
            ),
            ("sequence", f"up to {sizes.max_seq_len} tokens, in caches of {sizes.cache_len} rows"),
            ("weights", self._weights_row()),
            ("caches", self._caches_row()),
            *self._rings_row(),
            ("output", str(self.config.output_dir)),
        ]

    def _layers_rows(self) -> list[tuple[str, str]]:
        """What is not alike in all targets: windows, sinks, experts."""
        config, rows = self.target.config, []
        if any(config.windows):
            sliding = [window for window in config.windows if window]
            sizes = ", ".join(map(str, sorted(set(sliding))))
            sinks = ", with sinks" if config.sinks else ""
            rows.append(
                (
                    "windows",
                    f"{len(sliding)} of {config.num_layers} layers see {sizes} tokens{sinks}",
                )
            )
        if config.moe:
            moe = config.moe
            stored = algos_of(
                row for name, row in self.target.formats.items() if ".experts." in name
            )
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
                (
                    f"{block} tokens (trained with {config.block_size}); run verifies"
                    f" {self.resolved.draft_len} drafts"
                ),
            ),
            ("drafted", self._drafted_row()),
        ]

    def _drafted_row(self) -> str:
        size = self.target.config.vocab_size
        return (
            f"all {size} tokens"
            if self.draft_vocab is None
            else f"{len(self.draft_vocab)} of {size} tokens"
        )

    def _caches_row(self) -> str:
        size = f"{human_bytes(self.cache_bytes_per_slot)} a slot"
        if self.kv_scales is None:
            return size
        target = (
            "FP8"
            if ARCHS[self.resolved.gpu_arch].is_gpu
            else f"FP8 numbers, held in {self.resolved.dtype}"
        )
        scale = (
            ""
            if stores_kv_scales(self.target)
            else " with scale 1, since the checkpoint has no scales for them"
        )
        return f"{size}, the target's in {target}{scale}"

    def _rings_row(self) -> list[tuple[str, str]]:
        """How many layers with a window keep only what it sees, if there are such layers."""
        windows = [
            window
            for model in self.checkpoints.values()
            for window in model.config.windows
            if window
        ]
        if not windows:
            return []
        if self.resolved.ring_width is None:
            why = (
                "the compiler by itself updates none in place; our kernels do, so leave"
                " --no-plugins out"
            )
            return [("rings", f"none for the {len(windows)} layers with a window: {why}")]
        lengths = [
            port.shape[2]
            for port in self.ports
            if port.direction == "input" and "_key." in port.name
        ]
        counts = Counter(length for length in lengths if length != self.resolved.cache_len)
        text = ", ".join(f"{count} layers of {rows} rows" for rows, count in counts.items())
        return [
            (
                "rings",
                text or "none: with the widest step a window takes as many rows as a sequence",
            )
        ]

    def _weights_row(self) -> str:
        infos = [
            info for checkpoint in self.checkpoints.values() for info in checkpoint.tensors.values()
        ]
        stored, kind = [_STORED_DTYPES[self.resolved.dtype]], self.resolved.dtype
        formats = algos_of(
            row for checkpoint in self.checkpoints.values() for row in checkpoint.formats.values()
        )
        if formats and all(map(self._keeps_packed, self.checkpoints.values())):
            stored, kind = [*stored, *PACKED_DTYPES], f"{formats} and {kind}"
        converted = sum(info.dtype not in stored for info in infos)
        return (
            f"{len(infos)} tensors, {human_bytes(self.weight_bytes)} as {kind}; {converted}"
            " converted"
        )


def resolve_models(config: BuildConfig, *, fetch: bool = True) -> ResolvedModels:
    """Load and check the models, and resolve every size; reads headers, no weights.

    `fetch`: whether a model that is not on this machine is fetched from the hub; without, one of
    the registry is taken as it is published.

    Raises:
        DFlashError: for a model or a size that cannot be built.
    """
    reject_unsupported_pair(config.target, config.drafter)
    target = _load("target", config.target, load_target, published_target, fetch=fetch)
    drafter = (
        _load("drafter", config.drafter, load_drafter, published_drafter, fetch=fetch)
        if config.drafter
        else None
    )
    if drafter is not None:
        check_pair(target, drafter)
    models: dict[str, Checkpoint[Any]] = {"target": target} | (
        {"drafter": drafter} if drafter else {}
    )
    check_format_support(models, ARCHS[config.arch])
    resolved = config.resolve(target.config, drafter.config if drafter else None)
    if resolved.plugins:
        check_kernels(
            {role: model.config for role, model in models.items()},
            quantized_experts=_has_codes(target),
        )
    vocab = (
        read_draft_vocab(Path(config.draft_vocab), target.config.vocab_size)
        if config.draft_vocab
        else None
    )
    kv_scales = _kv_scales(config, target)
    if kv_scales is not None:
        check_fp8_kv(resolved)
    return ResolvedModels(config, target, drafter, resolved, vocab, kv_scales)


def _load(
    role: Role,
    name: str,
    load: Callable[[Path], Model],
    published: Callable[[str], Model | None],
    *,
    fetch: bool,
) -> Model:
    """A model from its files, or where none may be fetched and none are here, from what is
    published of its sizes.
    """
    try:
        directory = find_directory(name, role=role, fetch=fetch)
    except CheckpointError:
        known = None if fetch else published(name)
        if known is None:
            raise
        return known
    return load(directory)


def _has_codes(target: Checkpoint[TargetConfig]) -> bool:
    """Whether its experts are quantized."""
    return any(".experts." in name for name in target.formats)


def _kv_scales(config: BuildConfig, target: Checkpoint[TargetConfig]) -> KvScales | None:
    """The scales of the caches that the build is to have, None where they are not FP8."""
    if config.kv_cache_dtype not in ("auto", FP8_CACHE):
        return None
    scales = read_kv_scales(target)
    if scales is None and config.kv_cache_dtype == FP8_CACHE:
        raise UsageError(
            f"--kv-cache-dtype fp8 needs scales for the caches, and {target.directory} has none;"
            " make them with `dflash-trt quantize --kv-cache-dtype fp8`"
        )
    return scales


def _describe(checkpoint: Checkpoint[Any]) -> str:
    config = checkpoint.config
    model_type = getattr(config, "model_type", "DFlash")
    source = (
        ""
        if checkpoint.directory.is_dir()
        else "; no file of it is here: as its config.json is published"
    )
    return (
        f"{checkpoint.directory} ({model_type}, {config.num_layers} layers, hidden size"
        f" {config.hidden_size}, {checkpoint.num_parameters / 1e6:.1f} M parameters,"
        f" {checkpoint.stored_as}{source})"
    )
