"""The timed attention of a block over a context: ours, PyTorch's and the expected result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from kernels import Tensors
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)


@dataclass(frozen=True)
class Shape:
    """The attention shape of a model's layer."""

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    sinks: bool = False

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


SHAPES = (
    Shape("Qwen3-8B", 32, 8, 128),
    Shape("gpt-oss", 64, 8, 64, sinks=True),
    Shape("gpt-oss, window", 64, 8, 64, window=128, sinks=True),
)


@dataclass(frozen=True)
class Work:
    """A block of `rows` behind `context` keys, in each of `batch` slots."""

    shape: Shape
    rows: int
    batch: int
    context: int

    @property
    def first_key(self) -> int:
        """Return the first key that any row sees."""
        return max(0, self.context - self.shape.window + 1) if self.shape.window else 0

    @property
    def bytes(self) -> int:
        """Return the least bytes to move.

        These are the visible keys and values, the block's keys and values twice, q and out.
        """
        seen = self.context + self.rows - self.first_key
        row = 2 * self.shape.kv_heads * self.shape.head_dim
        q_and_out = 2 * self.rows * self.shape.q_heads * self.shape.head_dim
        return 2 * self.batch * (row * (seen + self.rows) + q_and_out)

    @property
    def set_bytes(self) -> int:
        """Return the bytes of one set of tensors."""
        head_rows = self.batch * self.shape.kv_heads * (self.context + self.rows)
        return 4 * head_rows * self.shape.head_dim + self.bytes

    def tensors(self, device: str, seed: int) -> Tensors:
        """Make random inputs; the result is full of NaN."""
        generator = torch.Generator(device=device).manual_seed(seed)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(size, dtype=torch.bfloat16, device=device, generator=generator)

        s, length = self.shape, self.context + self.rows
        positions = self.context + torch.arange(self.rows, device=device)
        made = {
            "q": random(self.batch, self.rows, s.q_heads, s.head_dim),
            "k": random(self.batch, self.rows, s.kv_heads, s.head_dim),
            "v": random(self.batch, self.rows, s.kv_heads, s.head_dim),
            "key_cache": random(self.batch, s.kv_heads, length, s.head_dim),
            "value_cache": random(self.batch, s.kv_heads, length, s.head_dim),
            "positions": positions.expand(self.batch, -1).contiguous(),
            "out": torch.full_like(
                random(self.batch, self.rows, s.q_heads, s.head_dim), math.nan
            ),
        }
        return {**made, "sinks": random(s.q_heads)} if s.sinks else made

    def mask(self, device: str) -> torch.Tensor:
        """Return a mask [rows, keys from first_key on], True where a row sees a key."""
        keys = torch.arange(self.first_key, self.context + self.rows, device=device)
        distance = (self.context + torch.arange(self.rows, device=device))[:, None] - keys
        return (distance >= 0) & (distance < (self.shape.window or math.inf))


def write_caches(work: Work, t: Tensors) -> None:
    """Write the block's keys and values into the caches with PyTorch; the host knows the length."""
    for cache, rows in (("key_cache", "k"), ("value_cache", "v")):
        t[cache][:, :, work.context :].copy_(t[rows].transpose(1, 2))


Attention = Callable[[Tensors], torch.Tensor]


def torch_candidates(work: Work, device: str) -> Iterator[tuple[str, Attention]]:
    """Yield ways to use scaled_dot_product_attention; each returns [B, Hq, T, D].

    A way that a backend cannot do raises RuntimeError. PyTorch gets exactly the visible keys, which
    a graph of constant shapes could not give it. It has no sinks, so that it then does less work.
    """
    s, group = work.shape, work.shape.q_heads // work.shape.kv_heads
    mask = work.mask(device)
    packed_mask = mask.repeat(
        group, 1
    )  # a key head's query heads stacked as rows, head by head
    lower_right = causal_lower_right(work.rows, work.context + work.rows)

    def seen(t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        return t["key_cache"][:, :, work.first_key :], t["value_cache"][:, :, work.first_key :]

    def grouped(t: Tensors, bias: torch.Tensor) -> torch.Tensor:
        q = t["q"].transpose(1, 2)
        return scaled_dot_product_attention(
            q, *seen(t), attn_mask=bias, scale=s.scale, enable_gqa=True
        )

    def expanded(t: Tensors, bias: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(group, 1) for x in seen(t))
        return scaled_dot_product_attention(
            t["q"].transpose(1, 2), k, v, attn_mask=bias, scale=s.scale
        )

    def packed(t: Tensors) -> torch.Tensor:
        q = t["q"].unflatten(2, (s.kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = scaled_dot_product_attention(q, *seen(t), attn_mask=packed_mask, scale=s.scale)
        return out.unflatten(2, (group, work.rows)).flatten(1, 2)

    for backend in BACKENDS:
        ways = {
            "packed": packed,
            "gqa": lambda t: grouped(t, mask),
            "expanded": lambda t: expanded(t, mask),
        }
        if not s.window:
            ways["gqa, lower right"] = lambda t: grouped(t, lower_right)
            ways["expanded, lower right"] = lambda t: expanded(t, lower_right)
        for name, way in ways.items():
            yield (
                f"{backend.name.lower().removesuffix('_attention')}: {name}",
                _on_backend(backend, way),
            )


def _on_backend(backend: SDPBackend, way: Attention) -> Attention:
    def attend(t: Tensors) -> torch.Tensor:
        with warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # why a backend refuses: it raises besides
            return way(t)

    return attend


def expected(work: Work, t: Tensors, slot: int, dtype: torch.dtype) -> torch.Tensor:
    """Compute one slot's attention with plain operations in `dtype`: [T, Hq, D] in float64.

    The caches already hold the block's keys and values.
    """
    s, group = work.shape, work.shape.q_heads // work.shape.kv_heads
    q = t["q"][slot].to(dtype).unflatten(1, (s.kv_heads, group)).permute(1, 2, 0, 3)
    k, v = (
        t[name][slot, :, work.first_key :].to(dtype) for name in ("key_cache", "value_cache")
    )
    # Eager models compute the softmax in float32.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scores = (q @ k[:, None].transpose(2, 3)).to(wide) * s.scale
    scores = scores.masked_fill(~work.mask(str(q.device)), -math.inf)
    if "sinks" in t:
        column = t["sinks"].to(wide).view(s.kv_heads, group, 1, 1).expand(-1, -1, work.rows, 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : k.shape[1]].to(dtype)
    return (weights @ v[:, None]).double().permute(2, 0, 1, 3).flatten(1, 2)


def check(work: Work, t: Tensors, slot: int) -> None:
    """Raise SystemExit if a head row of out is too far from float64's.

    The bound is twice the error of eager bfloat16, plus the rounding of the result. Its reasons are
    in tests/plugins/attention_reference.py.
    """
    exact, eager = (expected(work, t, slot, dtype) for dtype in (torch.float64, torch.bfloat16))
    error = (t["out"][slot].double() - exact).norm(dim=-1)
    allowed = 2 * (eager - exact).norm(dim=-1) + 2.0**-8 * exact.norm(dim=-1)
    if not bool((error <= allowed).all()):
        worst = (error / allowed).nan_to_num(math.inf).argmax()
        raise SystemExit(
            f"WRONG RESULT: {work}, slot {slot}: a head row is off by {error.flatten()[worst]:.3g},"
            f" allowed {allowed.flatten()[worst]:.3g}"
        )
