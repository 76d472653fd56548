"""The scales of the target's FP8 caches: what a code of a layer's key or value cache is worth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

from trtllm_dflash.checkpoint.dequantize import scalar
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantized_tensors import is_cache_scale
from trtllm_dflash.errors import GraphError
from trtllm_dflash.models.base import TargetConfig

KvScales = Mapping[int, tuple[float, float]]  # by layer: of keys, of values


def read_kv_scales(target: Checkpoint[TargetConfig]) -> KvScales | None:
    """Return the scales of FP8 caches; None if the checkpoint asks for no FP8 caches.

    They are ModelOpt's k_scale and v_scale, the largest magnitude that calibration saw over 448.
    Where it stores none, it saw none: a code is then worth its own number.
    """
    if target.quantization.kv_cache is None:
        return None
    if not stores_kv_scales(target):
        return dict.fromkeys(target.config.kv_layers, (1.0, 1.0))
    scales = {}
    for layer in target.config.kv_layers:
        name = f"model.layers.{layer}.self_attn"
        key = target.tensors[f"{name}.k_proj.k_scale"]
        value = target.tensors[f"{name}.v_proj.v_scale"]
        scales[layer] = (scalar(key), scalar(value))
    return scales


def stores_kv_scales(target: Checkpoint[TargetConfig]) -> bool:
    """Return whether the scales of FP8 caches are in the checkpoint."""
    return any(map(is_cache_scale, target.tensors))


def check_kv_scales(
    scales: KvScales, layers: Collection[int], *, dtype: str, plugins: bool
) -> None:
    """Check that `layers`, all with keys and values, have their scales, each a number that can be
    one, and that something can run such caches.

    Raises:
        GraphError: naming the layer, or what cannot run them.
    """
    if not plugins and dtype != "float32":
        raise GraphError(
            "FP8 caches need our plugins: TensorRT updates only caches of float32, float16 and"
            " bfloat16 in place"
        )
    if scales.keys() != set(layers):
        missing = sorted(set(layers) - scales.keys())
        surplus = sorted(scales.keys() - set(layers))
        raise GraphError(
            "FP8 caches need the scales of every layer with keys and values: missing are"
            f" {missing}, unknown {surplus}"
        )
    for layer, pair in scales.items():
        for role, scale in zip(("key", "value"), pair, strict=True):
            if not 0 < scale < inf:
                raise GraphError(
                    f"the {role} scale of layer {layer}'s FP8 cache is {scale}, expected a finite"
                    " number above 0"
                )
