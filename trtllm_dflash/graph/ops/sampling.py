"""How a row of logits becomes a token: argmax, or sampled with a given uniform number.

Temperature, top-k and top-p follow the reference (dflash 0.1.0, `_sampling_probs`). Top-k keeps the
largest logits. They are divided by the temperature and go through softmax. Top-p keeps a token
while the mass of the likelier ones is below top_p. At the end, as in Hugging Face, min-p keeps
tokens of at least min_p times the largest probability.

Nothing is sorted (TensorRT's TopK ends at k = 3840). The cut-off logit is found by bisection, the
token by inverting the distribution in vocabulary order. Tokens that tie with the cut-off are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder

_FLOOR = -104.0  # exp(-104) is 0 in float32: nothing below can ever be chosen
_BISECTIONS = (
    32  # 104 / 2^32 = 2.4e-8, finer than the spacing of float32 logits of any size that matters
)


def sample_tokens(
    g: GraphBuilder, logits: ir.Value, settings: Mapping[str, ir.Value], uniforms: ir.Value
) -> ir.Value:
    """Return the token of every row, int64 [B, R].

    logits float32 [B, R, V]; `settings` [B] by the names of the sampling table; uniforms [B, R].
    The work of sampling stands in loops that run no time when no row asks for it: most steps are
    greedy in all rows.
    """
    greedy = g.ArgMax(logits, axis=-1, keepdims=0)
    is_sampled = g.Greater(settings["temperature"], 0.0)

    def sampled(tokens: ir.Value) -> tuple[ir.Value]:
        by_row = {name: g.Unsqueeze(setting, [1, 2]) for name, setting in settings.items()}
        sample = _sample(g, logits, by_row, uniforms)
        return (g.Where(g.Unsqueeze(is_sampled, [1]), sample, tokens),)

    return g.repeat(_any(g, is_sampled), (greedy,), sampled)[0]


def _sample(
    g: GraphBuilder, logits: ir.Value, settings: Mapping[str, ir.Value], uniforms: ir.Value
) -> ir.Value:
    temperature, top_p, top_k = (settings[name] for name in ("temperature", "top_p", "top_k"))
    min_p = settings["min_p"]
    # A greedy row beside a sampled one is computed too, at temperature 1, and not used.
    divisor = g.Where(g.Greater(temperature, 0.0), temperature, 1.0)
    # [B, R, V], the likeliest is 0
    x = g.Div(g.Sub(logits, g.ReduceMax(logits, [-1], keepdims=1)), divisor)
    filtered = g.Or(g.Greater(top_k, g.Cast(0, to=int(ir.DataType.INT32))), g.Less(top_p, 1.0))
    mass = _filtered(g, x, g.Exp(x), top_p, top_k, g.Mul(_any(g, filtered), _BISECTIONS))
    # exp(x) is a token's probability over that of the likeliest one.
    lowest = g.Where(g.Greater(min_p, 0.0), g.Log(g.Min(min_p, 1.0)), float("-inf"))
    mass = g.Where(g.Less(x, lowest), 0.0, mass)

    cdf = g.CumSum(mass, -1)
    total = g.Slice(cdf, [-1], [2**31 - 1], [-1])
    # "< total" as well, because uniform · total may round up to total, and no token lies behind it.
    passed = g.And(
        g.LessOrEqual(cdf, g.Mul(g.Unsqueeze(uniforms, [2]), total)), g.Less(cdf, total)
    )
    return g.ReduceSum(g.cast(passed, ir.DataType.INT64), [-1], keepdims=0)


def _filtered(
    g: GraphBuilder,
    x: ir.Value,
    mass: ir.Value,
    top_p: ir.Value,
    top_k: ir.Value,
    bisections: ir.Value,
) -> ir.Value:
    """`mass` with zeros where top-k or top-p drop the token; 0 bisections drop none."""
    off = float("inf")
    count = g.cast(top_k, ir.DataType.FLOAT)
    count = g.Where(g.Greater(count, 0.0), count, off)
    mass = g.Where(_kept(g, x, 1.0, count, bisections), mass, 0.0)
    limit = g.Where(g.Less(top_p, 1.0), g.Mul(top_p, g.ReduceSum(mass, [-1], keepdims=1)), off)
    return g.Where(_kept(g, x, mass, limit, bisections), mass, 0.0)


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
