"""A target's decoder layers in transformers, of which one at a time has weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.hardware.memory import return_freed_memory
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import modelopt
from trtllm_dflash.quantize.experts import StackedExperts
from trtllm_dflash.quantize.torch_io import TORCH_DTYPES, read_tensor


class DecoderLayers:
    """The layers of a target, with quantizers.

    `model` has no weights but those of loaded layers.
    """

    def __init__(
        self, checkpoint: Checkpoint[TargetConfig], config: QuantizeConfig, device: str
    ) -> None:
        self._checkpoint = checkpoint
        self._device = device
        # Layers get no mask where attention is causal by itself. Eager attention, which a
        # config.json may name, is not; only that of transformers has sinks.
        self._is_eager = checkpoint.config.sinks
        self.model = _meta_model(checkpoint, "eager" if self._is_eager else "sdpa")
        moe = checkpoint.config.moe
        modelopt.insert_quantizers(
            self.model,
            config.quant,
            config.kv_cache_dtype,
            with_experts=moe is None or not moe.fused,
        )
        self._rotary = type(self.model.model.rotary_emb)(self.model.config).to(device)

    def __len__(self) -> int:
        return len(self.model.model.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of all weights and hidden states."""
        return TORCH_DTYPES[self._checkpoint.dtype]

    def load(self, index: int, scaled: Collection[str]) -> Any:
        """Return a layer with its weights, of which the `scaled` ones need a scale.

        Raises:
            CheckpointError: for one of these that is zero throughout.
        """
        prefix = prefix_of(index)
        # One type for the whole model, although some checkpoints have a few tensors in another.
        experts = StackedExperts.of(self._checkpoint.config, self.dtype, self._device)
        weights = dict(experts.tensors)
        for name, info in self._checkpoint.tensors.items():
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
                weights[inside] = weight.to(self._device, self.dtype)
        layer = self.model.model.layers[index]
        layer.load_state_dict(weights, strict=False, assign=True)
        return layer

    def drop(self, index: int) -> None:
        """Free a layer for good: its quantizers, of which experts have many, are memory too."""
        release(self.model.model.layers[index])
        self.model.model.layers[index] = torch.nn.Identity()

    def run(self, layer: Any, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run layer `index`, or a copy of it, on one sequence, [1, tokens, hidden]."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        window = self._checkpoint.config.windows[index]
        out: torch.Tensor = layer(
            hidden,
            attention_mask=_mask(positions[0], window, hidden.dtype)
            if self._is_eager
            else None,
            position_ids=positions,
            position_embeddings=self._rotary(hidden, positions),
        )
        return out


def prefix_of(index: int) -> str:
    """Return how the names of a layer's tensors begin."""
    return f"model.layers.{index}."


def release(layer: Any) -> None:
    """Free a layer's tensors at once; its reference cycles would wait for the collector."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data = tensor.data.new_empty(0)
    return_freed_memory()


def _mask(positions: torch.Tensor, window: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to scores, [1, 1, tokens, tokens]: the least number where none is seen.

    A token sees itself and what is before it, `window` tokens in all; 0 is everything.
    """
    back = positions[:, None] - positions
    is_seen = (back >= 0) & ((back < window) if window else True)
    return torch.where(is_seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]


def _meta_model(checkpoint: Checkpoint[TargetConfig], attention: str) -> Any:
    """Return the model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(
        checkpoint.directory, local_files_only=True, trust_remote_code=False
    )
    from_config: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = from_config(
            settings, dtype=TORCH_DTYPES[checkpoint.dtype], attn_implementation=attention
        )
    return model.eval()
