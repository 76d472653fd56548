"""Metrics that are accumulated over a text, position by position."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.runtime.sessions.base import Float32, Int64

Float64: TypeAlias = NDArray[np.float64]


def log_probabilities(logits: Float32) -> Float64:
    """Return the log softmax over the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


class NegLogLikelihood:
    """The negative log likelihood of a text's tokens."""

    def __init__(self) -> None:
        self.total = 0.0  # nats
        self.count = 0

    def add(self, predicted: Float64, token_ids: Int64) -> None:
        """Add log probabilities [N, V] and the token that followed each row, [n] with n <= N."""
        rows = np.arange(len(token_ids))
        self.total -= float(predicted[rows, token_ids].sum())
        self.count += len(token_ids)

    @property
    def perplexity(self) -> float:
        """Return exp of the mean per token."""
        with np.errstate(over="ignore"):
            return float(np.exp(np.float64(self.total) / self.count))


class Divergence:
    """The divergence of one engine's next-token distributions from another's."""

    def __init__(self) -> None:
        self._kl: list[Float64] = []
        self._agreed = 0

    def add(self, ours: Float64, reference: Float64) -> None:
        """Add log probabilities [N, V] of the same positions."""
        kl = (np.exp(reference) * (reference - ours)).sum(-1)
        self._kl.append(np.maximum(kl, 0))  # equal up to rounding, it would be a little below
        agreed = ours.argmax(-1) == reference.argmax(-1)
        self._agreed += int(agreed.sum())

    @property
    def positions(self) -> int:
        """Return how many were compared."""
        return sum(len(part) for part in self._kl)

    @property
    def kl(self) -> Float64:
        """Return KL(reference ‖ ours) in nats at every position."""
        return np.concatenate(self._kl)

    @property
    def top1(self) -> float:
        """Return the share of positions where the most likely token is the same."""
        return self._agreed / self.positions


class OutputErrors:
    """Relative errors of outputs by name: ‖ours - reference‖ / ‖reference‖ over all positions."""

    def __init__(self) -> None:
        self._squares: dict[str, tuple[float, float]] = {}

    def add(self, name: str, ours: Float32, reference: Float32) -> None:
        """Add outputs [N, size] at the same positions."""
        wide = reference.astype(np.float64)
        error, size = self._squares.get(name, (0.0, 0.0))
        error += _sum_of_squares(ours - wide)
        size += _sum_of_squares(wide)
        self._squares[name] = (error, size)

    def relative(self) -> dict[str, float]:
        """Return errors by name; infinite where the reference is all zero and ours is not."""
        errors = {}
        for name, (error, size) in self._squares.items():
            ratio = error / size if size else math.inf
            errors[name] = math.sqrt(ratio) if error else 0.0
        return errors


def _sum_of_squares(values: Float64) -> float:
    return float(np.square(values).sum())
