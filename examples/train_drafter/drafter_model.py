"""The DFlash v1 drafter in PyTorch: training form, decoding form, and its checkpoint.

Shapes: S sequences, A anchors (blocks) per sequence, B rows per block, L context positions,
H hidden size. Block row 0 holds the anchor token, rows 1..B-1 hold the mask token; row j predicts
the token at its own position, anchor + j.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from safetensors.torch import load_file, save_file
from target_model import TARGET_LAYER_IDS, apply_rope, rms_norm, rope_table
from torch import nn

MASK_TOKEN_ID = 16
BLOCK_SIZE = 8


@dataclass(frozen=True)
class DrafterShape:
    """Sizes of the drafter; the defaults fit SmolLM2-135M."""

    hidden_size: int = 576
    num_layers: int = 2
    num_q_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 1536
    rope_theta: float = 10000.0
    eps: float = 1e-6
    num_taps: int = len(TARGET_LAYER_IDS)


class Norm(nn.Module):
    """RMSNorm with a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis in FP32."""
        return rms_norm(x.float(), self.weight, self.eps)


def linear(layer: nn.Linear, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Apply a layer in `dtype`; its parameters stay FP32."""
    return F.linear(x.to(dtype), layer.weight.to(dtype))


class Attention(nn.Module):
    """Attention of block rows over injected context K/V and over their own block."""

    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        self.shape = shape
        h, hd = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(h, shape.num_q_heads * hd, bias=False)
        self.k_proj = nn.Linear(h, shape.num_kv_heads * hd, bias=False)
        self.v_proj = nn.Linear(h, shape.num_kv_heads * hd, bias=False)
        self.o_proj = nn.Linear(shape.num_q_heads * hd, h, bias=False)
        self.q_norm = Norm(hd, shape.eps)
        self.k_norm = Norm(hd, shape.eps)

    def keys_values(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project x [..., H] to rotated keys and to values, each [..., kv_heads, head_dim]."""
        heads = (*x.shape[:-1], self.shape.num_kv_heads, self.shape.head_dim)
        k = self.k_norm(linear(self.k_proj, x, dtype).view(heads))
        cos, sin = (t.unsqueeze(-2) for t in rope)
        return apply_rope(k, cos, sin).to(dtype), linear(self.v_proj, x, dtype).view(heads)

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        context: tuple[torch.Tensor, torch.Tensor],
        context_mask: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Attend x [S, A, B, H]; context K/V are [S, kv, L, hd], context_mask is [S, A, L]."""
        s, a, b, _ = x.shape
        nkv, hd = self.shape.num_kv_heads, self.shape.head_dim
        group = self.shape.num_q_heads // nkv
        q = self.q_norm(linear(self.q_proj, x, dtype).view(s, a, b, nkv * group, hd))
        q = apply_rope(q, *(t.unsqueeze(-2) for t in rope)) * hd**-0.5
        # [S, kv, A, group * B, hd]: queries of one KV head side by side.
        q = q.to(dtype).view(s, a, b, nkv, group, hd).permute(0, 3, 1, 4, 2, 5)
        q = q.reshape(s, nkv, a * group * b, hd)
        k, v = self.keys_values(x, rope, dtype)
        k, v = (t.permute(0, 3, 1, 2, 4).reshape(s * nkv * a, b, hd) for t in (k, v))
        length = context[0].shape[2]
        over_context = q @ context[0].transpose(2, 3)
        over_context = over_context.view(s, nkv, a, group * b, length)
        bias = torch.zeros(context_mask.shape, dtype=dtype).masked_fill(~context_mask, -1e9)
        over_context = over_context + bias[:, None, :, None]
        over_block = torch.bmm(q.view(s * nkv * a, group * b, hd), k.transpose(1, 2))
        over_block = over_block.view(s, nkv, a, group * b, b)
        weights = torch.cat([over_context, over_block], dim=-1).float().softmax(-1).to(dtype)
        from_context = weights[..., :length].reshape(s, nkv, -1, length) @ context[1]
        from_block = torch.bmm(weights[..., length:].reshape(s * nkv * a, group * b, b), v)
        out = from_context.view(s, nkv, a, group, b, hd)
        out = out + from_block.view(s, nkv, a, group, b, hd)
        out = out.permute(0, 2, 4, 1, 3, 5).reshape(s, a, b, nkv * group * hd)
        return linear(self.o_proj, out, dtype)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Apply to x [..., H]."""
        x = x.to(dtype)
        gate = F.silu(linear(self.gate_proj, x, dtype))
        return linear(self.down_proj, gate * linear(self.up_proj, x, dtype), dtype)


class Layer(nn.Module):
    """One Qwen3-style decoder layer."""

    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.eps)
        self.mlp = MLP(shape)


class Drafter(nn.Module):
    """DFlash v1: context features enter as K/V, block rows pass through the layers."""

    def __init__(self, shape: DrafterShape | None = None) -> None:
        super().__init__()
        self.shape = shape or DrafterShape()
        self.dtype = torch.float32
        h = self.shape.hidden_size
        self.fc = nn.Linear(self.shape.num_taps * h, h, bias=False)
        self.hidden_norm = Norm(h, self.shape.eps)
        self.layers = nn.ModuleList(Layer(self.shape) for _ in range(self.shape.num_layers))
        self.norm = Norm(h, self.shape.eps)
        cos, sin = rope_table(self.shape.head_dim, self.shape.rope_theta, 4096)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def context(
        self, features: torch.Tensor, start: int = 0
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's K/V [S, kv, L, hd] of features [S, L, taps * H] from `start` on."""
        length = features.shape[1]
        rope = (self.cos[start : start + length], self.sin[start : start + length])
        c = self.hidden_norm(linear(self.fc, features, self.dtype))
        result = []
        for layer in self.layers:
            k, v = layer.self_attn.keys_values(c, rope, self.dtype)
            result.append((k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()))
        return result

    def blocks(
        self,
        embeddings: torch.Tensor,
        anchors: torch.Tensor,
        context: list[tuple[torch.Tensor, torch.Tensor]],
        context_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Run embeddings [S, A, B, H] at positions anchors [S, A] + row; returns normed FP32."""
        positions = anchors.unsqueeze(-1) + torch.arange(embeddings.shape[2])
        rope = (self.cos[positions], self.sin[positions])
        x = embeddings.float()
        for layer, kv in zip(self.layers, context, strict=True):
            x = x + layer.self_attn(
                layer.input_layernorm(x), rope, kv, context_mask, self.dtype
            )
            x = x + layer.mlp(layer.post_attention_layernorm(x), self.dtype)
        return self.norm(x)


class DraftState:
    """Decoding form for one sequence: keeps the context K/V between calls."""

    def __init__(self, drafter: Drafter, embedding: torch.Tensor) -> None:
        self.drafter, self.embedding = drafter, embedding
        self.kv: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.length = 0

    def propose(self, features: torch.Tensor, anchor: int, rows: int = BLOCK_SIZE) -> list[int]:
        """Add features [n, taps * H] of newly committed tokens and draft rows - 1 tokens."""
        new = self.drafter.context(features.unsqueeze(0), self.length)
        if self.kv:
            pairs = zip(self.kv, new, strict=True)
            new = [(torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2)) for a, b in pairs]
        self.kv, self.length = new, self.length + len(features)
        ids = torch.tensor([anchor] + [MASK_TOKEN_ID] * (rows - 1))
        mask = torch.ones(1, 1, self.length, dtype=torch.bool)
        anchors = torch.tensor([[self.length]])
        out = self.drafter.blocks(
            self.embedding[ids].view(1, 1, rows, -1), anchors, self.kv, mask
        )
        return (out[0, 0, 1:] @ self.embedding.T).argmax(-1).tolist()


def drafter_config(shape: DrafterShape, target_config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json in the layout of the published DFlash v1 drafters."""
    return {
        "architectures": ["DFlashDraftModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": BLOCK_SIZE,
        "bos_token_id": target_config["bos_token_id"],
        "dflash_config": {
            "mask_token_id": MASK_TOKEN_ID,
            "target_layer_ids": list(TARGET_LAYER_IDS),
        },
        "dtype": "bfloat16",
        "eos_token_id": target_config["eos_token_id"],
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "is_causal": False,
        "layer_types": ["full_attention"] * shape.num_layers,
        "max_position_embeddings": target_config["max_position_embeddings"],
        "max_window_layers": shape.num_layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.num_q_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "num_target_layers": target_config["num_hidden_layers"],
        "rms_norm_eps": shape.eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": target_config["vocab_size"],
    }


def save_drafter(
    drafter: Drafter, folder: Path, target_config: dict[str, Any], feature_rms: torch.Tensor
) -> None:
    """Write config.json and BF16 model.safetensors; each file is replaced atomically.

    Training divides the features by `feature_rms` [taps * H]; here that division moves into fc.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone() for name, value in drafter.named_parameters()}
    state["fc.weight"] = state["fc.weight"] / feature_rms
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    config = json.dumps(drafter_config(drafter.shape, target_config), indent=2) + "\n"
    temporary = folder / ".model.safetensors.tmp"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")
    temporary = folder / ".config.json.tmp"
    temporary.write_text(config, encoding="utf-8")
    temporary.replace(folder / "config.json")


def load_drafter(folder: Path) -> Drafter:
    """Read a saved drafter, in FP32, for inference."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = DrafterShape(
        num_layers=config["num_hidden_layers"], rope_theta=config["rope_theta"]
    )
    drafter = Drafter(shape)
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    drafter.load_state_dict(weights)
    return drafter.eval().requires_grad_(False)
