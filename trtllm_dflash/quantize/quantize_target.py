"""The target, layer by layer: read, calibrate, round, pack and release each.

Never is more than one layer in memory, and a copy of it with rounded weights. Calibration reads
unrounded activations, as in ModelOpt's own pass over a whole model, so the scales are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.log import Progress
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import modelopt, mxfp4
from trtllm_dflash.quantize.agreement import count_agreement, count_sequences
from trtllm_dflash.quantize.coverage import ExpertCoverage
from trtllm_dflash.quantize.decoder_layers import DecoderLayers, prefix_of, release
from trtllm_dflash.quantize.experts import ExpertWatch
from trtllm_dflash.quantize.quantized_weights import quantized_weights
from trtllm_dflash.quantize.torch_io import read_rows
from trtllm_dflash.quantize.writer import SpillFolder

PHASE = "quantizing the target"


@dataclass
class QuantizedTarget:
    """The places of packed tensors, the two descriptions of them, and figures of the pass.

    `features[s]`: outputs of the tap layers for sequence s, concatenated, [1, tokens, taps ·
    hidden]. `agreed` of `compared` positions have the same most likely next token after rounding.
    `coverage` is of experts whose inputs are calibrated. An empty `hf_quant_config` is not written.
    """

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    hf_quant_config: dict[str, Any] = field(default_factory=dict)
    quantization_config: dict[str, Any] = field(default_factory=dict)
    features: list[torch.Tensor] = field(default_factory=list)
    agreed: int = 0
    compared: int = 0
    coverage: ExpertCoverage | None = None


def quantize_target(
    checkpoint: Checkpoint[TargetConfig],
    config: QuantizeConfig,
    sequences: Sequence[Sequence[int]],
    *,
    spill: SpillFolder,
    device: str,
    progress: Progress,
    taps: Sequence[int] = (),
    tapped: int = 0,
) -> QuantizedTarget:
    """Quantize every linear of the decoder layers, or the experts of gpt-oss.

    Of the first `tapped` sequences, keep the outputs of layers `taps`.

    Raises:
        DFlashError: naming a tensor that is zero throughout, or a part without a scale.
    """
    layers = DecoderLayers(checkpoint, config, device)
    run = _TargetPass(checkpoint, config, layers, sequences, device, progress)
    result = QuantizedTarget()
    result.hf_quant_config, result.quantization_config = _describe(layers.model, config)
    tapped_outputs: list[list[torch.Tensor]] = [[] for _ in sequences[:tapped]] if taps else []
    for index in range(len(layers)):
        result.tensors |= spill.add(run.pass_layer(index))
        if index in taps:
            for outputs, exact in zip(tapped_outputs, run.exact, strict=False):
                outputs.append(exact)
    result.features = [
        torch.cat(_in_order(outputs, taps), dim=-1) for outputs in tapped_outputs
    ]
    result.coverage = run.watch.coverage
    compared = run.exact[: len(run.rounded)]
    result.agreed, result.compared = count_agreement(
        checkpoint, layers.model.model.norm, compared, run.rounded
    )
    return result


class _TargetPass:
    """Hidden states between two layers, of all sequences, and what takes them through the next.

    `exact` come from the original's layers, `rounded` from those with rounded weights, of the first
    few sequences alone.
    """

    def __init__(
        self,
        checkpoint: Checkpoint[TargetConfig],
        config: QuantizeConfig,
        layers: DecoderLayers,
        sequences: Sequence[Sequence[int]],
        device: str,
        progress: Progress,
    ) -> None:
        self._config = config
        self._layers = layers
        embedding = checkpoint.tensors["model.embed_tokens.weight"]
        self.exact = [
            read_rows(embedding, ids)[None].to(device, layers.dtype) for ids in sequences
        ]
        self.rounded = self.exact[: count_sequences(sequences)]
        self.watch = ExpertWatch(
            checkpoint.config.moe if config.quantizes_inputs else None,
            with_all=config.calib_all_experts,
        )
        # Zeros have no scale in ModelOpt's formats, and any in MXFP4.
        self._scaled = frozenset[str]()
        if not config.quantizes_fused_experts:
            self._scaled = quantized_weights(checkpoint, config.weight_format)
        self._progress = progress
        self._done = 0
        self._total = len(layers) * (len(sequences) + len(self.rounded) + 1)

    def pass_layer(self, index: int) -> dict[str, torch.Tensor]:
        """Calibrate a layer, advance all states through it, and return its packed tensors."""
        layer = self._layers.load(index, self._scaled)
        prefix = prefix_of(index)
        outputs = []

        def forward() -> None:
            for hidden in self.exact:
                outputs.append(self._layers.run(layer, index, hidden))
                self._advance()

        with self.watch.on(layer, prefix):
            modelopt.calibrate(layer, forward, prefix)
        self.exact = outputs
        if self._config.group_size is not None:
            modelopt.share_scales(layer)  # ModelOpt's export does so for NVFP4, not for FP8
        rounded = modelopt.with_rounded_weights(layer)
        packed = {}
        if self._config.quantizes_fused_experts:
            packed = mxfp4.pack_experts(layer, prefix)
            mxfp4.round_experts(rounded, packed, prefix)
        self._pass_rounded(rounded, index)
        packed |= modelopt.pack_weights(layer, prefix)
        self._layers.drop(index)
        self._advance()
        return packed

    def _pass_rounded(self, rounded: Any, index: int) -> None:
        """Advance the rounded states through a layer with rounded weights, and release it."""
        for sequence, hidden in enumerate(self.rounded):
            self.rounded[sequence] = self._layers.run(rounded, index, hidden)
            self._advance()
        release(rounded)

    def _advance(self) -> None:
        self._done += 1
        self._progress(PHASE, self._done, self._total)


def _describe(model: Any, config: QuantizeConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return hf_quant_config.json of a quantized target, and its `quantization_config`."""
    if not config.quantizes_fused_experts:
        return modelopt.quant_config_json(model)
    described = modelopt.quant_config_json(model)[0] if config.kv_cache_dtype else {}
    return described, mxfp4.describe()


def _in_order(outputs: list[torch.Tensor], taps: Sequence[int]) -> list[torch.Tensor]:
    """Sort outputs, which are by layer, as `taps`: `fc` was trained on that order."""
    by_layer = dict(zip(sorted(taps), outputs, strict=True))
    return [by_layer[tap] for tap in taps]
