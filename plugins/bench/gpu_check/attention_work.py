"""The timed attention of a block behind its keys, the expected result, and PyTorch's ways."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from plugins.bench.gpu_check.torch_operators import Launch, Tensors, check_rows

Attend = Callable[..., torch.Tensor]
Bias = Callable[[Any, int, str], Any]
BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
FP8 = torch.float8_e4m3fn
CACHE_SCALES = (0.0113, 0.0125)  # of keys and values in FP8: the largest are 5.1 and 5.6
_CHECKED_ROWS = 8  # at both ends of a block


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
    def group(self) -> int:
        return self.q_heads // self.kv_heads

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


QWEN3_8B = Shape("Qwen3-8B", 32, 8, 128)
GPT_OSS = Shape("gpt-oss", 64, 8, 64, sinks=True)
GPT_OSS_WINDOW = Shape("gpt-oss, window", 64, 8, 64, window=128, sinks=True)


@dataclass(frozen=True)
class Work:
    """A block of `rows` behind `contexts` keys, by slot.

    The last `context_rows` of those keys are a drafter's new ones: the launch writes them too.
    """

    shape: Shape
    rows: int
    contexts: tuple[int, ...]
    context_rows: int = 0
    causal: bool = True
    fp8: bool = False

    def __str__(self) -> str:
        counts = [(length, len(list(same))) for length, same in groupby(self.contexts)]
        keys = " + ".join(f"{count} × {length}" for length, count in counts)
        parts = ["draft" * (self.context_rows > 0), "FP8 caches" * self.fp8]
        return ", ".join(
            [self.shape.name, f"{self.rows} rows behind {keys} keys", *filter(None, parts)]
        )

    @property
    def operator(self) -> str:
        return "DFlashDraftAttention" if self.context_rows else "DFlashVerifyAttention"

    @property
    def fields(self) -> dict[str, int | float]:
        """Return the fields of its plugin."""
        shape = self.shape
        made: dict[str, int | float] = {"scale": shape.scale, "window_size": shape.window}
        made |= {"ring": 0, "head_dim": shape.head_dim}
        if self.context_rows:
            return made | {"causal": int(self.causal)}
        scales = CACHE_SCALES if self.fp8 else (0.0, 0.0)
        return made | {
            "fp8_cache": int(self.fp8),
            "key_scale": scales[0],
            "value_scale": scales[1],
        }

    @property
    def slots(self) -> list[tuple[slice, int]]:
        """Return neighbours of one length, and that length."""
        found, start = [], 0
        for length, same in groupby(self.contexts):
            count = len(list(same))
            found.append((slice(start, start + count), length))
            start += count
        return found

    def first_key(self, context: int) -> int:
        """Return the first key that any row sees."""
        return max(0, context - self.shape.window + 1) if self.shape.window else 0

    @property
    def bytes(self) -> int:
        """Return the least bytes to move.

        These are the visible keys and values, those of the step read and written, q and out.
        """
        element, step = 1 if self.fp8 else 2, self.context_rows + self.rows
        row = 2 * self.shape.kv_heads * self.shape.head_dim
        seen = sum(length + self.rows - self.first_key(length) for length in self.contexts)
        q_and_out = 2 * 2 * self.rows * self.shape.q_heads * self.shape.head_dim
        return element * row * seen + len(self.contexts) * (
            (2 + element) * row * step + q_and_out
        )

    @property
    def operations(self) -> int:
        """Return the multiplications and additions of both products, of what is visible."""
        pairs = 0
        for length in self.contexts:
            pairs += self.rows * (length - self.first_key(length))
            pairs += self.rows * (self.rows + 1) // 2 if self.causal else self.rows**2
        return 4 * pairs * self.shape.q_heads * self.shape.head_dim

    @property
    def set_bytes(self) -> int:
        """Return the bytes of one set of tensors."""
        rows = len(self.contexts) * (max(self.contexts) + self.rows)
        return (2 if self.fp8 else 4) * rows * self.shape.kv_heads * self.shape.head_dim

    def tensors(self, device: str, seed: int) -> Tensors:
        """Make random inputs; the result is full of NaN."""
        generator = torch.Generator(device=device).manual_seed(seed)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(size, dtype=torch.bfloat16, device=device, generator=generator)

        s, batch, step = self.shape, len(self.contexts), self.context_rows + self.rows
        length = max(self.contexts) + self.rows
        past = torch.tensor(self.contexts, device=device) - self.context_rows
        made = {
            "q": random(batch, self.rows, s.q_heads, s.head_dim),
            "k": random(batch, step, s.kv_heads, s.head_dim),
            "v": random(batch, step, s.kv_heads, s.head_dim),
            "key_cache": random(batch, s.kv_heads, length, s.head_dim),
            "value_cache": random(batch, s.kv_heads, length, s.head_dim),
            "positions": past[:, None] + torch.arange(step, device=device),
        }
        if self.fp8:
            for name, scale in zip(("key_cache", "value_cache"), CACHE_SCALES, strict=True):
                made[name] = in_fp8(made[name], scale)
        made["out"] = torch.full_like(made["q"], math.nan)
        return {**made, "sinks": random(s.q_heads)} if s.sinks else made

    def mask(self, context: int, device: str) -> torch.Tensor:
        """Return a mask [rows, keys from first_key on], True where a row sees a key."""
        keys = torch.arange(self.first_key(context), context + self.rows, device=device)
        distance = (context + torch.arange(self.rows, device=device))[:, None] - keys
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        return seen & (distance.abs() < (self.shape.window or math.inf))


def in_fp8(numbers: torch.Tensor, scale: float) -> torch.Tensor:
    """Return numbers / scale in FP8, saturated."""
    return (numbers.float() / scale).clamp(-448, 448).to(FP8)


def write_caches(work: Work, t: Tensors) -> None:
    """Write the step's keys and values with PyTorch; the host knows the lengths."""
    pairs = (("key_cache", "k"), ("value_cache", "v"))
    for (cache, rows), scale in zip(pairs, CACHE_SCALES, strict=True):
        new = in_fp8(t[rows], scale) if work.fp8 else t[rows]
        for slots, context in work.slots:
            into = t[cache][slots, :, context - work.context_rows : context + work.rows]
            into.copy_(new[slots].transpose(1, 2))


def _mask(work: Work, context: int, device: str) -> torch.Tensor | None:
    """Return what SDPA is told of a slot's mask: nothing, where every row sees every key."""
    mask = work.mask(context, device)
    return None if bool(mask.all()) else mask


def _packed_mask(work: Work, context: int, device: str) -> torch.Tensor | None:
    mask = _mask(work, context, device)
    return None if mask is None else mask.repeat(work.shape.group, 1)


def _lower_right(work: Work, context: int, _: str) -> Any:
    return causal_lower_right(work.rows, context + work.rows)


def sdpa_ways(work: Work, device: str) -> Iterator[tuple[str, Launch]]:
    """Yield ways of scaled_dot_product_attention; each returns [B, Hq, T, D].

    Slots of one length are one call. PyTorch gets exactly the visible keys, which a graph of
    constant shapes could not give it. It has no sinks, so that it then does less work.
    """
    if work.fp8:
        return
    for backend in BACKENDS:
        name = backend.name.lower().removesuffix("_attention")
        yield f"{name}: packed", _on(backend, work, device, _packed, _packed_mask)
        yield f"{name}: grouped", _on(backend, work, device, _grouped)
        if work.causal and not work.shape.window:
            yield f"{name}: lower right", _on(backend, work, device, _grouped, _lower_right)


def _on(
    backend: SDPBackend, work: Work, device: str, attend: Attend, bias: Bias = _mask
) -> Launch:
    masks = {context: bias(work, context, device) for _, context in work.slots}

    def way(t: Tensors) -> torch.Tensor:
        with warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # why a backend refuses: it raises besides
            parts = [
                attend(work, _seen(work, t, slots, context), masks[context])
                for slots, context in work.slots
            ]
            return torch.cat(parts)

    return way


def _seen(work: Work, t: Tensors, slots: slice, context: int) -> tuple[torch.Tensor, ...]:
    first, end = work.first_key(context), context + work.rows
    caches = (t[name][slots, :, first:end] for name in ("key_cache", "value_cache"))
    return (t["q"][slots], *caches)


def _packed(work: Work, seen: tuple[torch.Tensor, ...], mask: Any) -> torch.Tensor:
    """Stack a key head's query heads as rows, head by head."""
    q, k, v = seen
    s = work.shape
    rows = q.unflatten(2, (s.kv_heads, s.group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    out = scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=s.scale)
    return out.unflatten(2, (s.group, work.rows)).flatten(1, 2)


def _grouped(work: Work, seen: tuple[torch.Tensor, ...], mask: Any) -> torch.Tensor:
    q, k, v = seen
    return scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, scale=work.shape.scale, enable_gqa=True
    )


def checked_rows(work: Work) -> list[int]:
    """Return the rows that are compared with float64: all of a short block, both ends of others."""
    ends = range(_CHECKED_ROWS), range(work.rows - _CHECKED_ROWS, work.rows)
    return list(range(work.rows)) if work.rows <= 64 else [row for end in ends for row in end]


def expected(
    work: Work, t: Tensors, slot: int, dtype: torch.dtype, *, sinks: bool
) -> torch.Tensor:
    """Compute one slot's attention with plain operations in `dtype`.

    Returns [rows of `checked_rows`, Hq, D] in float64. The caches already hold the step's keys and
    values.
    """
    s, context = work.shape, work.contexts[slot]
    rows = torch.tensor(checked_rows(work), device=t["q"].device)
    q = t["q"][slot, rows].to(dtype).unflatten(1, (s.kv_heads, s.group)).permute(1, 2, 0, 3)
    span = slice(work.first_key(context), context + work.rows)
    k, v = (
        (t[name][slot, :, span].double() * (scale if work.fp8 else 1)).to(dtype)
        for name, scale in zip(("key_cache", "value_cache"), CACHE_SCALES, strict=True)
    )
    # Eager models compute the softmax in float32.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scores = (q @ k[:, None].transpose(2, 3)).to(wide) * s.scale
    scores = scores.masked_fill(~work.mask(context, str(q.device))[rows], -math.inf)
    if sinks:
        column = t["sinks"].to(wide).view(s.kv_heads, s.group, 1, 1)
        scores = torch.cat([scores, column.expand(-1, -1, len(rows), 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[1]].to(dtype)
    return (weights @ v[:, None]).double().permute(2, 0, 1, 3).flatten(1, 2)


def check(work: Work, t: Tensors, slot: int, *, sinks: bool = True) -> None:
    """Check that each head row of a slot's out is near to float64's.

    The bound is twice the error of eager bfloat16, plus the rounding of the result. Its reasons are
    in tests/plugins/attention_reference.py.

    Raises:
        WrongResultError: with the worst row's error.
    """
    sinks = sinks and "sinks" in t
    exact, eager = (
        expected(work, t, slot, dtype, sinks=sinks) for dtype in (torch.float64, torch.bfloat16)
    )
    got = t["out"][slot, torch.tensor(checked_rows(work), device=exact.device)]
    check_rows(f"{work}, slot {slot}", got, exact, eager, "a head row")
