"""A lean SmolLM2 (Llama) forward pass with a preallocated KV cache and feature taps.

Used to generate the training data (BF16, many rows) and to evaluate (FP32, one row). The residual
stream is kept in FP32 in both cases, so that BF16 answers stay close to the FP32 greedy ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from safetensors.torch import load_file

TARGET_LAYER_IDS = (1, 8, 14, 20, 27)


def rope_table(head_dim: int, theta: float, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, each [length, head_dim], for the rotate-half convention."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [..., head_dim] by broadcastable cos and sin."""
    half = x.shape[-1] // 2
    rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + rotated * sin


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis, in the dtype of x."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


@dataclass
class KVCache:
    """Keys and values per layer, each [rows, kv_heads, columns, head_dim]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def columns(self) -> int:
        """Allocated length."""
        return self.keys[0].shape[2]

    def resize(self, rows: torch.Tensor, used: int, columns: int) -> None:
        """Keep `rows` and the first `used` columns, in a new allocation of `columns` columns."""
        for store in (self.keys, self.values):
            for i, old in enumerate(store):
                new = old.new_zeros((len(rows), old.shape[1], columns, old.shape[3]))
                new[:, :, :used] = old[rows, :, :used]
                store[i] = new


class Target:
    """The target model, read from a Hugging Face directory."""

    def __init__(self, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        weights = load_file(directory / "model.safetensors")
        self.dtype = dtype
        self.hidden_size: int = config["hidden_size"]
        self.num_layers: int = config["num_hidden_layers"]
        self.num_q_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config["num_key_value_heads"]
        self.head_dim: int = config["head_dim"]
        self.eps: float = config["rms_norm_eps"]
        self.eos_token_id: int = config["eos_token_id"]
        self.vocab_size: int = config["vocab_size"]
        self.embedding = weights["model.embed_tokens.weight"].to(dtype)
        self.embedding_fp32 = weights["model.embed_tokens.weight"].float()
        self.final_norm = weights["model.norm.weight"].float()
        self.layers = [self._layer(weights, i) for i in range(self.num_layers)]
        self.cos, self.sin = rope_table(self.head_dim, config["rope_theta"], 2048)

    def _layer(self, weights: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
        def get(*names: str) -> torch.Tensor:
            prefix = f"model.layers.{index}."
            parts = [weights[f"{prefix}{name}.weight"] for name in names]
            return torch.cat(parts).to(self.dtype)

        return {
            "input_norm": get("input_layernorm").float(),
            "qkv": get("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "o": get("self_attn.o_proj"),
            "post_norm": get("post_attention_layernorm").float(),
            "gate_up": get("mlp.gate_proj", "mlp.up_proj"),
            "down": get("mlp.down_proj"),
        }

    def new_cache(self, rows: int, columns: int) -> KVCache:
        """Allocate an empty cache."""
        shape = (rows, self.num_kv_heads, columns, self.head_dim)
        keys = [torch.zeros(shape, dtype=self.dtype) for _ in range(self.num_layers)]
        return KVCache(keys, [torch.zeros_like(k) for k in keys])

    def _attention(
        self,
        qkv: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        column: int,
        mask: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Attend qkv [b, t, (q + 2 kv) heads * head_dim] over the cache, which it extends."""
        b, t, _ = qkv.shape
        nq, nkv, hd = self.num_q_heads, self.num_kv_heads, self.head_dim
        heads = qkv.view(b, t, nq + 2 * nkv, hd)
        rotated = apply_rope(heads[:, :, : nq + nkv].float(), *rope).to(self.dtype)
        keys, values = cache
        end = column + t
        keys[:, :, column:end] = rotated[:, :, nq:].transpose(1, 2)
        values[:, :, column:end] = heads[:, :, nq + nkv :].transpose(1, 2)
        q = rotated[:, :, :nq].transpose(1, 2)
        if t == 1:
            # One query per row: fold each KV group's queries into the query axis (no repeat).
            # A mask as long as the cache keeps both products contiguous, which is several times
            # faster than slicing (oneDNN copies strided batches).
            length = mask.shape[-1]
            q = q.reshape(b * nkv, nq // nkv, hd)
            keys = keys[:, :, :length].reshape(b * nkv, length, hd)
            values = values[:, :, :length].reshape(b * nkv, length, hd)
            scores = torch.bmm(q, keys.transpose(1, 2)).float().view(b, nkv, -1, length)
            scores = (scores * hd**-0.5).masked_fill(~mask, float("-inf")).softmax(-1)
            out = torch.bmm(scores.to(self.dtype).view(b * nkv, -1, length), values)
            return out.reshape(b, 1, nq * hd)
        out = F.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(b, t, nq * hd)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        column: int,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run tokens [b, t] at cache columns column..column+t.

        Positions are [b, t]. The mask is boolean, true where a query may look, and broadcastable to
        [b, heads, t, column + t]. For t == 1 it may be longer, up to the cache's length. Returns
        the final-normed hidden states and the tapped residual streams, FP32 [b, t, hidden] each.
        Layer id i taps the stream after layer i.
        """
        rope = (self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2))
        x = self.embedding[tokens].float()
        taps: list[torch.Tensor] = []
        for i, w in enumerate(self.layers):
            h = rms_norm(x, w["input_norm"], self.eps).to(self.dtype)
            qkv = F.linear(h, w["qkv"])
            attended = self._attention(
                qkv, (cache.keys[i], cache.values[i]), column, mask, rope
            )
            x = x + F.linear(attended, w["o"])
            h = rms_norm(x, w["post_norm"], self.eps).to(self.dtype)
            gate, up = F.linear(h, w["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, w["down"])
            if i in TARGET_LAYER_IDS:
                taps.append(x)
        return rms_norm(x, self.final_norm, self.eps), taps

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits over the whole vocabulary for hidden [n, hidden_size]."""
        return F.linear(hidden.to(self.dtype), self.embedding)

    def greedy(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the argmax token of each row of hidden [n, hidden_size].

        BF16 logits are too coarse to break near ties, so the candidates near the maximum are
        scored again in FP32.
        """
        logits = self.logits(hidden)
        if self.dtype == torch.float32:
            return logits.argmax(-1)
        top = logits.amax(-1, keepdim=True)
        rows, ids = (logits >= top - 0.3).nonzero(as_tuple=True)
        scores = (hidden[rows] * self.embedding_fp32[ids]).sum(-1)
        order = scores.argsort()
        best = torch.empty(len(hidden), dtype=torch.long)
        # Later writes win; rows are visited in ascending score.
        best[rows[order]] = ids[order]
        return best
