"""Mixtures of experts: how many different experts some tokens touch, which is how many must be
read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """`count` experts in a layer, of which a token uses `top_k`."""

    count: int
    top_k: int

    def touched(self, tokens: float) -> float:
        """The expected number of different experts that `tokens` tokens use, each choosing
        uniformly and by itself.

        A given expert is missed by one token with probability 1 - top_k/count, by all with that to
        the power of tokens. Real routing is uneven, and neighbouring tokens choose alike: both make
        fewer experts different, so this is an upper estimate of what a block of one sequence reads.
        """
        return self.count * (1 - float((1 - self.top_k / self.count) ** tokens))
