"""The target, layer by layer: read, calibrate, round, pack and release each.

Never is more than one layer in memory. Calibration reads unrounded activations, as in ModelOpt's
own pass over a whole model, so the scales are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.hardware.memory import return_freed_memory
from trtllm_dflash.log import Progress
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import modelopt
from trtllm_dflash.quantize.agreement import count_agreement, count_sequences
from trtllm_dflash.quantize.coverage import ExpertCoverage
from trtllm_dflash.quantize.experts import ExpertWatch, StackedExperts
from trtllm_dflash.quantize.quantized_weights import quantized_weights
from trtllm_dflash.quantize.torch_io import TORCH_DTYPES, read_rows, read_tensor
from trtllm_dflash.quantize.writer import SpillFolder

PHASE = "quantizing the target"


@dataclass
class QuantizedTarget:
    """The places of packed tensors, ModelOpt's two descriptions, and figures of the pass.

    `features[s]`: outputs of the tap layers for sequence s, concatenated, [1, tokens, taps ·
    hidden]. `agreed` of `compared` positions have the same most likely next token after rounding.
    `coverage` is of experts whose inputs are calibrated.
    """

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    hf_quant_config: dict[str, Any] = field(default_factory=dict)
    quantization_config: dict[str, Any] = field(default_factory=dict)
    features: list[torch.Tensor] = field(default_factory=list)
    agreed: int = 0
    compared: int = 0
    coverage: ExpertCoverage | None = None


class _CalibrationStates:
    """Hidden states between two layers, of all sequences.

    `rounded` are those of the first few sequences after layers with rounded weights.
    """

    def __init__(self, hidden: list[torch.Tensor], compared: int) -> None:
        self.exact = hidden
        self.rounded = hidden[:compared]


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
    """Quantize every linear of the decoder layers.

    Of the first `tapped` sequences, keep the outputs of layers `taps`.

    Raises:
        DFlashError: naming a tensor that is zero throughout, or a part without a scale.
    """
    model = _meta_model(checkpoint, config)
    result = QuantizedTarget()
    result.hf_quant_config, result.quantization_config = modelopt.quant_config_json(model)
    rotary = type(model.model.rotary_emb)(model.config).to(device)
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    dtype = TORCH_DTYPES[checkpoint.dtype]
    hidden = [read_rows(embedding, ids)[None].to(device, dtype) for ids in sequences]
    states = _CalibrationStates(hidden, count_sequences(sequences))
    tapped_outputs: list[list[torch.Tensor]] = [[] for _ in hidden[:tapped]] if taps else []
    done = 0
    total = len(model.model.layers) * (len(sequences) + len(states.rounded) + 1)

    def advance() -> None:
        nonlocal done
        done += 1
        progress(PHASE, done, total)

    scaled = quantized_weights(checkpoint) if config.weight_format else frozenset()
    watch = ExpertWatch(
        checkpoint.config.moe if config.quantizes_inputs else None,
        with_all=config.calib_all_experts,
    )
    for index in range(len(model.model.layers)):
        layer = model.model.layers[index]
        prefix = f"model.layers.{index}."
        _load(layer, checkpoint, prefix, scaled, device)
        _pass_layer(layer, prefix, states, rotary, config, watch, advance)
        result.tensors |= spill.add(modelopt.pack_weights(layer, prefix))
        _release(layer)
        if index in taps:
            for outputs, exact in zip(tapped_outputs, states.exact, strict=False):
                outputs.append(exact)
        advance()
    result.features = [
        torch.cat(_in_order(outputs, taps), dim=-1) for outputs in tapped_outputs
    ]
    result.coverage = watch.coverage
    compared = states.exact[: len(states.rounded)]
    result.agreed, result.compared = count_agreement(
        checkpoint, model.model.norm, compared, states.rounded
    )
    return result


def _meta_model(checkpoint: Checkpoint[TargetConfig], config: QuantizeConfig) -> Any:
    """Return the model without weights, with quantizers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(
        checkpoint.directory, local_files_only=True, trust_remote_code=False
    )
    from_config: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        # Layers get no mask here. Eager attention, which a config.json may name, would then not be
        # causal.
        model = from_config(
            settings, dtype=TORCH_DTYPES[checkpoint.dtype], attn_implementation="sdpa"
        ).eval()
    modelopt.insert_quantizers(model, config.quant, config.kv_cache_dtype)
    return model


def _load(
    layer: Any,
    checkpoint: Checkpoint[TargetConfig],
    prefix: str,
    scaled: Collection[str],
    device: str,
) -> None:
    """Read a layer's weights, or raise CheckpointError for one that needs a scale and is zero."""
    # One type for the whole model, although some checkpoints have a few tensors in another.
    dtype = TORCH_DTYPES[checkpoint.dtype]
    experts = StackedExperts.of(checkpoint.config, dtype, device)
    weights = dict(experts.tensors)
    for name, info in checkpoint.tensors.items():
        if not name.startswith(prefix):
            continue
        weight = read_tensor(info)
        if name in scaled and not weight.any():
            raise CheckpointError(
                f"{info.path}: tensor {name} is zero throughout, so it has no scale, and"
                " ModelOpt would write NaN. Get an intact copy of the checkpoint."
            )
        inside = name.removeprefix(prefix)
        if inside in experts.parts:
            experts.parts[inside].copy_(weight)
        else:
            weights[inside] = weight.to(device, dtype)
    layer.load_state_dict(weights, strict=False, assign=True)


def _pass_layer(
    layer: Any,
    prefix: str,
    states: _CalibrationStates,
    rotary: Any,
    config: QuantizeConfig,
    watch: ExpertWatch,
    advance: Callable[[], None],
) -> None:
    """Calibrate the layer, and advance both groups of states through it."""
    outputs = []

    def forward() -> None:
        for hidden in states.exact:
            outputs.append(_run(layer, hidden, rotary))
            advance()

    with watch.on(layer, prefix):
        modelopt.calibrate(layer, forward, prefix)
    if config.group_size is not None:
        modelopt.share_scales(layer)  # ModelOpt's export does it for NVFP4, and not for FP8
    rounded = modelopt.with_rounded_weights(layer)
    states.exact = outputs
    for index, hidden in enumerate(states.rounded):
        states.rounded[index] = _run(rounded, hidden, rotary)
        advance()
    _release(rounded)


def _release(layer: Any) -> None:
    """Free a layer's tensors at once; its reference cycles would wait for the collector."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data = tensor.data.new_empty(0)
    return_freed_memory()


def _run(layer: Any, hidden: torch.Tensor, rotary: Any) -> torch.Tensor:
    """Run a decoder layer on one sequence, [1, tokens, hidden]; without a mask it is causal."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    out: torch.Tensor = layer(
        hidden,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=rotary(hidden, positions),
    )
    return out


def _in_order(outputs: list[torch.Tensor], taps: Sequence[int]) -> list[torch.Tensor]:
    """Sort outputs, which are by layer, as `taps`: `fc` was trained on that order."""
    by_layer = dict(zip(sorted(taps), outputs, strict=True))
    return [by_layer[tap] for tap in taps]
