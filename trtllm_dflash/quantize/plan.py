"""What a quantization checks and decides before its long step: packages, models, shapes, text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from trtllm_dflash.builder.config_models import find_drafter, find_target
from trtllm_dflash.builder.pair_support import published_target, reject_unsupported_pair
from trtllm_dflash.catalog.pairs import Role, pair_of
from trtllm_dflash.checkpoint.loader import Checkpoint, load_drafter, load_target
from trtllm_dflash.checkpoint.locate import find_directory
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.checkpoint.reference_package import missing_in_reference
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.calibration_data import (
    Sample,
    encode_samples,
    read_conversation_samples,
    read_samples,
)
from trtllm_dflash.quantize.provenance import check_output
from trtllm_dflash.quantize.quantized_weights import quantized_weights
from trtllm_dflash.quantize.requirements import (
    require_device,
    require_packages,
    require_reference,
)
from trtllm_dflash.runtime.text.chat_format import ChatFormat
from trtllm_dflash.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class QuantizationPlan:
    """The models and the calibration text of a quantization."""

    config: QuantizeConfig
    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig] | None
    sequences: Sequence[Sequence[int]]

    @property
    def checkpoints(self) -> dict[str, Checkpoint[Any]]:
        """Return the models by role, the target first."""
        models: dict[str, Checkpoint[Any]] = {"target": self.target}
        if self.drafter is not None:
            models["drafter"] = self.drafter
        return models

    @property
    def expected_bytes(self) -> int:
        """Return the approximate bytes of the quantized weights."""
        models = self.checkpoints.values()
        return sum(self._plain_bytes(model) + self._packed_bytes(model) for model in models)

    @property
    def needed_space(self) -> int:
        """Return the bytes needed on disk; packed tensors are stored twice in the end."""
        return self.expected_bytes + sum(map(self._packed_bytes, self.checkpoints.values()))

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as rows of a log table."""
        fmt = self.config.weight_format
        kv_cache = self.config.kv_cache_dtype
        models = self.checkpoints
        original = human_bytes(sum(model.nbytes for model in models.values()))
        expected = human_bytes(self.expected_bytes)
        return [
            *((role, str(model.directory)) for role, model in models.items()),
            ("format", f"{fmt.algo}: {fmt.meaning}" if fmt else "weights as they are"),
            ("KV cache", f"scales for {kv_cache}" if kv_cache else "no scales"),
            ("calibration", self._calibration_row()),
            ("weights", f"{original}, about {expected} quantized"),
            ("output", str(self.config.output_dir)),
        ]

    def calibration_facts(self) -> dict[str, Any]:
        """Return the facts of the calibration text for the record."""
        file = self.config.calibration_text
        return {
            "file": str(file) if file else None,
            "sequences": len(self.sequences),
            "tokens": sum(map(len, self.sequences)),
        }

    def _packed_bytes(self, checkpoint: Checkpoint[Any]) -> int:
        """Return the approximate bytes of a model's quantized weights."""
        fmt = self.config.weight_format
        if fmt is None:
            return 0
        quantized = quantized_weights(checkpoint, fmt)
        num_weights = sum(prod(checkpoint.tensors[name].shape) for name in quantized)
        return round(num_weights * fmt.weight_bits() / 8)

    def _plain_bytes(self, checkpoint: Checkpoint[Any]) -> int:
        """Return the bytes of a model's other tensors, those of other parts included."""
        quantized = quantized_weights(checkpoint, self.config.weight_format)
        nbytes = 0
        for name, info in checkpoint.tensors.items():
            if name not in quantized:
                nbytes += info.nbytes
        for name, kept in checkpoint.ignored.items():
            if checkpoint.config.tensors.ignored_reason(name) is not None:
                nbytes += kept.info.nbytes
        return nbytes

    def _calibration_row(self) -> str:
        """Describe the calibration text in the plan."""
        facts = self.calibration_facts()
        source = facts["file"] or "our own set"
        text = f"{facts['sequences']} sequences, {facts['tokens']} tokens of {source}"
        return text if self.config.reads_activations else f"none needed; compared on {text}"


def plan_quantization(config: QuantizeConfig, *, overwrite: bool = False) -> QuantizationPlan:
    """Load and check the models and the text.

    It reads headers and no weights, and imports neither torch nor ModelOpt.

    Raises:
        DFlashError: for a package, output directory, model or text that cannot work.
    """
    config = replace(config, output_dir=config.output_dir.expanduser().resolve())
    check_output(config.output_dir, overwrite=overwrite)
    samples = _read_samples(config)
    _check_published(config)
    target = load_target(_directory("target", config.target, config))
    _check_target(target, config)
    drafter = None
    if config.drafter is not None:
        drafter = load_drafter(_directory("drafter", config.drafter, config))
        _check_model("drafter", drafter, config)
        _check_reference(check_pair(target, drafter))
    _require(config)
    sequences = _sequences(samples, config, target)
    return QuantizationPlan(config, target, drafter, sequences)


def _read_samples(config: QuantizeConfig) -> list[Sample]:
    if config.messages is not None:
        return read_conversation_samples(config.messages)
    return read_samples(config.calib_file)


def _check_published(config: QuantizeConfig) -> None:
    """Refuse listed models by what is published of them, before anything is fetched."""
    reject_unsupported_pair(config.target, config.drafter)
    pair = None if Path(config.target).is_dir() else pair_of(config.target)
    if pair is None:
        return
    repository = pair.target.repository
    known = published_target(repository)
    if known is not None:
        _check_target(known, config)


def _directory(role: Role, name: str, config: QuantizeConfig) -> Path:
    """Return a model's directory; a hub's config.json is fetched and checked first, alone."""

    def check(directory: Path) -> None:
        if role == "target":
            _check_target(find_target(str(directory)), config)
        else:
            _check_model(role, find_drafter(str(directory)), config)
        _require(config)

    return find_directory(name, role=role, check=check)


def _require(config: QuantizeConfig) -> None:
    """Raise QuantizeError for a package or device that is missing."""
    require_packages()
    require_device(config.device)
    if config.drafter is not None:
        require_reference()


def _check_target(target: Checkpoint[TargetConfig], config: QuantizeConfig) -> None:
    """Raise DFlashError for a target that cannot be quantized so."""
    _check_experts(target, config)
    _check_cache_scales(target, config)
    _check_model("target", target, config)


def _check_model(role: Role, checkpoint: Checkpoint[Any], config: QuantizeConfig) -> None:
    """Raise CheckpointError for a model that is quantized, or whose linears cannot be."""
    _check_unquantized(role, checkpoint)
    _check_shapes(role, checkpoint, config)


def _check_reference(drafter: Checkpoint[DrafterConfig]) -> None:
    """Raise CheckpointError for a drafter that the reference package does not read as it is."""
    reason = missing_in_reference(drafter, decodes=False)
    if reason is not None:
        raise CheckpointError(
            f"drafter {drafter.directory}: the package dflash 0.1.0, which calibrates drafters,"
            f" {reason}, as this one needs. Leave --quantize-drafter out: a BF16 drafter goes with"
            " a quantized target."
        )


def _sequences(
    samples: Sequence[Sample], config: QuantizeConfig, target: Checkpoint[TargetConfig]
) -> list[list[int]]:
    """Return the calibration text as token ids; [] where none is needed and none can be read."""
    tokenizer = Tokenizer.find(target.directory)
    if tokenizer is None and config.calibration_text is None and not config.reads_activations:
        return []  # weights alone need no text; there is only nothing to compare on
    limit = min(config.calib_seq_len, target.config.longest_context)
    return encode_samples(
        samples,
        tokenizer,
        ChatFormat.from_options(config),
        vocab_size=target.config.vocab_size,
        seq_len=limit,
        limit=config.calib_size,
    )


def _check_unquantized(role: str, checkpoint: Checkpoint[Any]) -> None:
    """Raise CheckpointError for a model that is quantized already."""
    if checkpoint.formats or checkpoint.quantization.is_quantized:
        raise CheckpointError(
            f"{role} {checkpoint.directory}: it is already quantized ({checkpoint.stored_as}), and"
            " the lost precision cannot be restored. Give the unquantized original."
        )


def _check_experts(target: Checkpoint[TargetConfig], config: QuantizeConfig) -> None:
    """Raise DFlashError for options that do not fit the experts of a target, or their absence."""
    moe = target.config.moe
    if config.calib_all_experts and moe is None:
        raise UsageError(
            f"--calib-all-experts: target {target.directory} has no experts; leave it out"
        )
    if config.weight_format is None:
        return
    is_gpt_oss = moe is not None and moe.fused
    if config.quantizes_fused_experts and not is_gpt_oss:
        raise CheckpointError(
            f"target {target.directory}: --quant {config.quant} is of gpt-oss's experts, and it has"
            " none of these. Use --quant nvfp4, which takes linears and Qwen's experts."
        )
    if is_gpt_oss and not config.quantizes_fused_experts and not target.formats:
        raise CheckpointError(
            f"target {target.directory}: of gpt-oss only the experts are quantized, to the format"
            " that they were trained in. Use --quant mxfp4."
        )


def _check_cache_scales(target: Checkpoint[TargetConfig], config: QuantizeConfig) -> None:
    """Raise CheckpointError where scales of KV caches would be lost."""
    if target.quantization.kv_cache is not None and config.kv_cache_dtype is None:
        raise CheckpointError(
            f"target {target.directory}: its KV caches are {target.quantization.kv_cache.upper()},"
            " and those of the output would not be. Add --kv-cache-dtype"
            f" {target.quantization.kv_cache}, which calibrates them again, or give the original."
        )


def _check_shapes(role: str, checkpoint: Checkpoint[Any], config: QuantizeConfig) -> None:
    """Raise CheckpointError for weights whose inputs do not fill groups."""
    size = config.group_size
    if size is None:
        return
    # A linear is [out, in], and experts in one tensor are [experts, in, out].
    quantized = quantized_weights(checkpoint, config.weight_format)
    wrong = [
        f"{name.removesuffix('.weight')} has {info.shape[1]}"
        for name, info in checkpoint.tensors.items()
        if name in quantized and info.shape[1] % size
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        way_out = (
            "build takes it as it is" if config.quantizes_fused_experts else "Use --quant fp8"
        )
        raise CheckpointError(
            f"{role} {checkpoint.directory}: --quant {config.quant} has a scale for every {size}"
            f" inputs of a linear, so their number must be a multiple of {size}:"
            f" {', '.join(wrong[:4])}{more}. {way_out}."
        )
