"""What a quantization checks and decides before its long step: packages, models, shapes, text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from trtllm_dflash.checkpoint.loader import Checkpoint, load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.calibration_data import (
    encode_samples,
    read_conversation_samples,
    read_samples,
)
from trtllm_dflash.quantize.provenance import check_output
from trtllm_dflash.quantize.requirements import require_packages, require_reference
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
        """Return the approximate bytes of a model's quantized linears."""
        fmt = self.config.weight_format
        if fmt is None:
            return 0
        num_weights = 0
        for name, info in checkpoint.tensors.items():
            if _is_quantized(name):
                num_weights += prod(info.shape)
        return round(num_weights * fmt.weight_bits() / 8)

    def _plain_bytes(self, checkpoint: Checkpoint[Any]) -> int:
        """Return the bytes of a model's other tensors."""
        keeps_linears = self.config.weight_format is None
        nbytes = 0
        for name, info in checkpoint.tensors.items():
            if keeps_linears or not _is_quantized(name):
                nbytes += info.nbytes
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
    require_packages()
    config = replace(config, output_dir=config.output_dir.expanduser().resolve())
    check_output(config.output_dir, overwrite=overwrite)
    target = load_target(config.target)
    _check_dense(target)
    _check_cache_scales(target, config)
    drafter = load_drafter(config.drafter) if config.drafter else None
    if drafter is not None:
        require_reference()
        check_pair(target, drafter)
    plan = QuantizationPlan(config, target, drafter, ())
    for role, checkpoint in plan.checkpoints.items():
        _check_unquantized(role, checkpoint)
        _check_shapes(role, checkpoint, config)
    return replace(plan, sequences=_sequences(config, target))


def _sequences(config: QuantizeConfig, target: Checkpoint[TargetConfig]) -> list[list[int]]:
    """Return the calibration text as token ids; [] where none is needed and none can be read."""
    tokenizer = Tokenizer.find(target.directory)
    if tokenizer is None and config.calibration_text is None and not config.reads_activations:
        return []  # weights alone need no text; there is only nothing to compare on
    limit = min(config.calib_seq_len, target.config.longest_context)
    samples = (
        read_samples(config.calib_file)
        if config.messages is None
        else read_conversation_samples(config.messages)
    )
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


def _check_dense(target: Checkpoint[TargetConfig]) -> None:
    """Raise CheckpointError for a target with experts."""
    if target.config.moe is not None:
        raise CheckpointError(
            f"target {target.directory}: it has experts, and this command quantizes dense models."
            " `build` takes gpt-oss in MXFP4, as it is published, and a Qwen3-MoE whose experts"
            " ModelOpt has exported in NVFP4."
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
    """Raise CheckpointError for linears whose inputs do not fill groups."""
    size = config.group_size
    if size is None:
        return
    wrong = [
        f"{name.removesuffix('.weight')} has {info.shape[1]}"
        for name, info in checkpoint.tensors.items()
        if _is_quantized(name) and info.shape[1] % size
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise CheckpointError(
            f"{role} {checkpoint.directory}: --quant {config.quant} has a scale for every {size}"
            f" inputs of a linear, so their number must be a multiple of {size}:"
            f" {', '.join(wrong[:4])}{more}. Use --quant fp8."
        )


def _is_quantized(name: str) -> bool:
    """Return whether a tensor is the weight of a linear in a decoder layer.

    Heads, embeddings and the drafter's `fc` are not quantized.
    """
    return name.endswith("_proj.weight")
