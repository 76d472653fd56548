"""How a row of logits becomes a token: argmax, or sampled by noise that its position fixes.

Temperature, top-k and top-p follow the reference (dflash 0.1.0, `_sampling_probs`). Top-k keeps the
largest logits. They are divided by the temperature and go through softmax. Top-p keeps a token
while the mass of the likelier ones is below top_p. At the end, as in Hugging Face, min-p keeps
tokens of at least min_p times the largest probability. Of those kept the one is chosen whose
logit / temperature + noise is the largest (`graph.ops.noise`): a sample of their distribution.

Nothing is sorted (TensorRT's TopK ends at k = 3840). The cut-off logit is found by bisection.
Tokens that tie with the cut-off are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops.noise import gumbel_noise

_FLOOR = -104.0  # exp(-104) is 0 in float32: nothing below can ever be chosen
_BISECTIONS = (
    32  # 104 / 2^32 = 2.4e-8, finer than the spacing of float32 logits of any size that matters
)


def choose_tokens(
    g: GraphBuilder,
    logits: ir.Value,
    settings: Mapping[str, ir.Value],
    noise_key: ir.Value,
    positions: ir.Value,
    tokens: ir.Value | None = None,
) -> ir.Value:
    """Return where the choice of every row stands, int64 [B, R].

    logits float32 [B, R, V]; `settings` [B] by the names of the sampling table; noise_key [B, 4];
    positions int64 [B, R] of the tokens to choose; `tokens` int64 [V] that the logits are of,
    0 … V-1 if None. The work of sampling stands in loops that run no time when no row asks for it:
    most steps are greedy in all rows.
    """
    greedy = g.ArgMax(logits, axis=-1, keepdims=0)
    is_sampled = g.Greater(settings["temperature"], 0.0)

    def sampled(choice: ir.Value) -> tuple[ir.Value]:
        by_row = {name: g.Unsqueeze(setting, [1, 2]) for name, setting in settings.items()}
        ids = g.arange(g.size(logits, -1)) if tokens is None else tokens
        scores = g.Add(_scores(g, logits, by_row), gumbel_noise(g, noise_key, positions, ids))
        sample = g.ArgMax(scores, axis=-1, keepdims=0)
        return (g.Where(g.Unsqueeze(is_sampled, [1]), sample, choice),)

    return g.repeat(_any(g, is_sampled), (greedy,), sampled)[0]


def _scores(g: GraphBuilder, logits: ir.Value, settings: Mapping[str, ir.Value]) -> ir.Value:
    """Return (logit - max) / temperature [B, R, V], -infinity where a filter drops the token."""
    temperature, top_p, top_k = (settings[name] for name in ("temperature", "top_p", "top_k"))
    min_p = settings["min_p"]
    # A greedy row beside a sampled one is computed too, at temperature 1, and not used.
    divisor = g.Where(g.Greater(temperature, 0.0), temperature, 1.0)
    # [B, R, V], the likeliest is 0
    x = g.Div(g.Sub(logits, g.ReduceMax(logits, [-1], keepdims=1)), divisor)
    cut = g.Or(g.Greater(top_k, g.Cast(0, to=int(ir.DataType.INT32))), g.Less(top_p, 1.0))
    bisections = g.Mul(_any(g, cut), _BISECTIONS)

    def filtered(x: ir.Value) -> tuple[ir.Value]:
        kept = _above_cut(g, x, top_p, top_k, bisections)
        # exp(x) is a token's probability over that of the likeliest one.
        lowest = g.Where(g.Greater(min_p, 0.0), g.Log(g.Min(min_p, 1.0)), float("-inf"))
        return (g.Where(g.And(kept, g.Not(g.Less(x, lowest))), x, float("-inf")),)

    return g.repeat(_any(g, g.Or(cut, g.Greater(min_p, 0.0))), (x,), filtered)[0]


def _above_cut(
    g: GraphBuilder, x: ir.Value, top_p: ir.Value, top_k: ir.Value, bisections: ir.Value
) -> ir.Value:
    """True where top-k and top-p keep the token; 0 bisections drop none that can be chosen."""
    off = float("inf")
    count = g.cast(top_k, ir.DataType.FLOAT)
    count = g.Where(g.Greater(count, 0.0), count, off)
    mass = g.Where(_kept(g, x, 1.0, count, bisections), g.Exp(x), 0.0)
    limit = g.Where(g.Less(top_p, 1.0), g.Mul(top_p, g.ReduceSum(mass, [-1], keepdims=1)), off)
    return g.And(g.Greater(mass, 0.0), _kept(g, x, mass, limit, bisections))


def _kept(
    g: GraphBuilder,
    x: ir.Value,
    weight: ir.Value | float,
    limit: ir.Value,
    bisections: ir.Value,
) -> ir.Value:
    """True for every token before which (in order of falling x) lies less weight than `limit`; bool
    [B, R, V].
    """
    low = g.Mul(g.ReduceMax(x, [-1], keepdims=1), 0.0)  # zeros [B, R, 1]
    low, high = g.Add(low, _FLOOR), low

    def halve(low: ir.Value, high: ir.Value) -> tuple[ir.Value, ir.Value]:
        middle = g.Mul(g.Add(low, high), 0.5)
        above = g.ReduceSum(g.Where(g.Greater(x, middle), weight, 0.0), [-1], keepdims=1)
        few = g.Less(above, limit)
        return g.Where(few, low, middle), g.Where(few, middle, high)

    low, _ = g.repeat(bisections, (low, high), halve)
    return g.Greater(x, low)


def _any(g: GraphBuilder, flags: ir.Value) -> ir.Value:
    """1 if any element is true, else 0; an int64 scalar."""
    return g.ReduceMax(g.cast(flags, ir.DataType.INT64), keepdims=0)
