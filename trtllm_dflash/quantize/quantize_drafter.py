"""The drafter under the same quantizers, calibrated on blocks drafted from the target's features.

`fc` is not quantized. Features reach values that 8 bits cannot represent, and every draft depends
on them. Nor are the convolutions and the selector of DFlash 2. The scales of q, k and v are shared,
and so are those of gate and up, so that a runtime may fuse them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantization_checks import NEVER_QUANTIZED
from trtllm_dflash.checkpoint.reference_package import reference_class
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.log import Progress
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.dflash2 import SELECTOR
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import modelopt
from trtllm_dflash.quantize.torch_io import TORCH_DTYPES, read_rows
from trtllm_dflash.quantize.writer import SpillFolder

PHASE = "quantizing the drafter"
SEQUENCES = (
    32  # of the calibration text; their features stay in memory until the target is done
)
# `fc`, and what DFlash 2 adds: small, and nothing of it is a linear that may be quantized.
_EXCLUDED = (*NEVER_QUANTIZED, "*.attention_conv", "*.mlp_conv", SELECTOR)
_BLOCKS = 4  # drafted in each sequence, at growing lengths of context


@dataclass
class QuantizedDrafter:
    """The places of packed tensors, and ModelOpt's two descriptions."""

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    hf_quant_config: dict[str, Any] = field(default_factory=dict)
    quantization_config: dict[str, Any] = field(default_factory=dict)


def quantize_drafter(
    checkpoint: Checkpoint[DrafterConfig],
    target: Checkpoint[TargetConfig],
    config: QuantizeConfig,
    sequences: Sequence[Sequence[int]],
    features: Sequence[torch.Tensor],
    *,
    spill: SpillFolder,
    device: str,
    progress: Progress,
) -> QuantizedDrafter:
    """Quantize the linears of the layers; `features[s]` are the target's for sequence s."""
    model = _load(checkpoint, device)
    modelopt.insert_quantizers(model, config.quant, None, excluded=_EXCLUDED)
    result = QuantizedDrafter()
    result.hf_quant_config, result.quantization_config = modelopt.quant_config_json(model)
    blocks = list(_blocks(sequences, features)) if config.quantizes_inputs else []

    def forward() -> None:
        for done, (ids, context) in enumerate(blocks, start=1):
            _draft(model, checkpoint, target, ids, context)
            progress(PHASE, done, len(blocks))

    modelopt.calibrate(model, forward, "drafter ")
    for layer in model.layers:
        modelopt.share_scales(layer)
    result.tensors = spill.add(modelopt.pack_weights(model, ""))
    progress(PHASE, 1, 1)
    return result


def _load(checkpoint: Checkpoint[DrafterConfig], device: str) -> Any:
    """Load the reference package's model, with the attention masks of the checkpoint's config."""
    import dflash.model

    draft_model = getattr(dflash.model, reference_class(checkpoint))
    with modelopt.silence_modelopt():
        model = draft_model.from_pretrained(
            checkpoint.directory,
            dtype=TORCH_DTYPES[checkpoint.dtype],
            attn_implementation="sdpa",
            local_files_only=True,
        )
    model = model.eval().to(device)
    for layer, mask in zip(model.layers, checkpoint.config.layers, strict=True):
        layer.self_attn.is_causal = mask.causal
        layer.self_attn.sliding_window = mask.window or None
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight") and not parameter.any():
            raise CheckpointError(
                f"{checkpoint.directory}: tensor {name} is zero throughout, so it has no scale, and"
                " ModelOpt would write NaN. Get an intact copy of the drafter."
            )
    return model


def _blocks(
    sequences: Sequence[Sequence[int]], features: Sequence[torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (anchor, the features before it) at a few positions of each sequence."""
    for ids, context in zip(sequences, features, strict=False):
        ends = {max(1, len(ids) * part // _BLOCKS) for part in range(1, _BLOCKS + 1)}
        for position in sorted(ends):
            if position < len(ids):
                yield ids[position], context[:, :position]


def _draft(
    model: Any,
    checkpoint: Checkpoint[DrafterConfig],
    target: Checkpoint[TargetConfig],
    anchor: int,
    context: torch.Tensor,
) -> None:
    """Run one pass over [anchor, mask, …], with keys and values from `context`.

    `context` are features, [1, n, taps · hidden].
    """
    sizes = checkpoint.config
    block = [anchor] + [sizes.mask_token_id] * (sizes.rows_of(sizes.block_size) - 1)
    embedded = read_rows(target.tensors["model.embed_tokens.weight"], block)[None]
    embedded = embedded * sizes.embedding_scale
    positions = torch.arange(context.shape[1] + len(block), device=context.device)[None]
    weight = model.fc.weight
    model(
        target_hidden=context.to(weight.dtype),
        noise_embedding=embedded.to(weight.device, weight.dtype),
        position_ids=positions,
    )
