"""Damage to fine-grained FP8 experts of a layer in one tensor, as transformers has them."""

from __future__ import annotations

import numpy as np

from tests.bad_checkpoints.expert_cases import _QWEN3_MOE, COUNT, EXPERTS, HIDDEN, LAYER
from tests.bad_checkpoints.expert_cases import _attention as attention
from tests.bad_checkpoints.make_bad import GOOD, VOCAB, BadCheckpoint, bad, pack_bytes
from tests.bad_checkpoints.quantized_cases import _poke, _repack

SIZE = 128  # blocks must not cross from gate to up
FUSED = "fused fp8 experts target"
UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"


def good_fused_fp8_experts() -> BadCheckpoint:
    """Return a one-layer Qwen3-MoE whose experts are codes and scales of blocks, two of each."""
    shapes = attention(biases=False) | {
        f"{LAYER}self_attn.{name}_norm.weight": [8] for name in "qk"
    }
    shapes |= {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN]}
    shapes |= {"lm_head.weight": [VOCAB, HIDDEN], f"{LAYER}mlp.gate.weight": [COUNT, HIDDEN]}
    tensors = {}
    for name, shape in shapes.items():
        values = (np.arange(np.prod(shape)) * 37 % 101 - 50) / 64
        tensors[name] = ("F32", shape, values.astype(np.float32).tobytes())
    for name, shape in ((UP, [COUNT, 2 * SIZE, HIDDEN]), (DOWN, [COUNT, HIDDEN, SIZE])):
        packed = (np.arange(np.prod(shape)) * 37 % 126).astype(np.uint8)
        blocks = [COUNT, -(-shape[1] // 128), -(-shape[2] // 128)]
        scales = np.linspace(1 / 128, 1 / 64, int(np.prod(blocks)), dtype=np.float32)
        tensors[name] = ("F8_E4M3", shape, packed.tobytes())
        tensors[f"{name}_scale_inv"] = ("F32", blocks, scales.tobytes())
    kept = ["lm_head", "mlp.gate", "self_attn"]
    kept += [f"{LAYER}self_attn.{name}_proj" for name in "qkvo"]
    config = _QWEN3_MOE | {"moe_intermediate_size": SIZE}
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": kept}
    return BadCheckpoint(dict(config), pack_bytes(tensors))


GOOD[FUSED] = good_fused_fp8_experts


@bad(r"experts.0.up_proj.weight_scale has nan at index \[0, 0\]. A scale", base=FUSED)
def scale_of_an_expert_nan(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}_scale_inv", float("nan"), 1)


@bad(r"experts.2.down_proj.weight_scale has -2.0 at index \[0, 0\]", base=FUSED)
def scale_of_an_expert_negative(model: BadCheckpoint) -> None:
    _poke(model, f"{DOWN}_scale_inv", -2.0, 2)


@bad(r"gate_up_proj .*experts in one tensor of another shape", base=FUSED)
def scales_of_other_blocks(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}_scale_inv": ("F32", [COUNT, 4, 1])})


@bad(r"gate_up_proj .*experts in one tensor of another shape", base=FUSED)
def scales_that_are_missing(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}_scale_inv": None})
