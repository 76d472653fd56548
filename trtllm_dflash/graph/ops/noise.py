"""Gumbel noise that a target and its drafter share: a number for each token at each position.

The token with the largest logit / temperature + noise is a sample of the softmax (the Gumbel-max
trick; as a coupling of two models: Daliri, Musco and Suresh, "Coupling without communication and
drafter-invariant speculative decoding", 2024). A drafter that adds the same noise to its own logits
mostly chooses what the target will. What the target chooses does not depend on it.

The noise is a function of the slot's noise key, the position and the token:

    mixed(x)      three rounds of x = (x + a constant)^5 mod p, p = 2^31 - 1: a permutation of x
    key k0 … k3   mixed(word of the noise key + position)
    point h0 … h2 half of the token's number after one, two and three rounds
    bits          (k0 h0 + k1 h1 + k2 h2 + k3) mod p: uniform, and independent for any four tokens
                  whose points lie in no plane
    noise         -log(-log(1 - u)), u = (bits + 1/2) / 2^31

All up to the bits are integers below 2^63 and exact, by multiplication, addition and remainder
alone: TensorRT has no shifts. So every backend has the same bits. u is exact where it is small.
There the noise is large: it ends at 22, and P(token) is right down to some 1e-9.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS
from trtllm_dflash.graph.builder import GraphBuilder

PRIME = 2**31 - 1  # every x^5 is another number: 5 does not divide PRIME - 1
ROUNDS = (1779033703, 1150833019, 1013904242)  # of the square roots of 2, 3 and 5, below PRIME
SCALE = 2.0**-31 * (1 - 2.0**-24)  # the largest number becomes 1 - 2^-24, not 1
SMALL = 2.0**-8  # below it two terms of the series of -log(1 - u) are exact to 5e-6


def gumbel_noise(
    g: GraphBuilder, key: ir.Value, positions: ir.Value, tokens: ir.Value
) -> ir.Value:
    """Return the noise, float32 [B, R, V].

    key int64 [B, 4], numbers below 2^31; positions int64 [B, R]; tokens int64 [V] or [B, R, V].
    """
    lanes = g.Add(g.Unsqueeze(key, [1]), g.Unsqueeze(positions, [2]))  # [B, R, 4]
    for constant in ROUNDS:
        lanes = _fifth(g, g.Mod(g.Add(lanes, constant), PRIME))
    total = g.Slice(lanes, [KEY_WORDS - 1], [KEY_WORDS], [2])
    point = tokens
    for index, constant in enumerate(ROUNDS):
        point = _fifth(g, g.Mod(g.Add(point, constant), PRIME))
        lane = g.Slice(lanes, [index], [index + 1], [2])
        total = g.Add(total, g.Mul(lane, g.Div(point, 2)))
    bits = g.cast(g.Mod(total, PRIME), ir.DataType.FLOAT)
    u = g.Mul(g.Add(bits, 0.5), SCALE)
    series = g.Mul(u, g.Add(g.Mul(u, 0.5), 1.0))
    waiting = g.Where(g.Less(u, SMALL), series, g.Neg(g.Log(g.Sub(1.0, u))))
    return g.Neg(g.Log(waiting))


def _fifth(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Return x^5 mod PRIME of 0 <= x < PRIME.

    In a loop of one turn: without it TensorRT-RTX 1.7 compiles several of them for ever. Each costs
    it many times the one before.
    """

    def fifth(x: ir.Value) -> tuple[ir.Value]:
        square = g.Mod(g.Mul(x, x), PRIME)
        return (g.Mod(g.Mul(g.Mod(g.Mul(square, square), PRIME), x), PRIME),)

    return g.repeat(g.constant(np.array(1)), (x,), fifth)[0]
