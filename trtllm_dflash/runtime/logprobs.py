"""Log probabilities of tokens, from the logits that decided them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.outputs import TokenLogprobs
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.sessions.base import CALLER_BUG, Float32, StepResult


def token_logprobs(logits: Float32, token_ids: Sequence[int], k: int) -> list[TokenLogprobs]:
    """Return an entry for each token, from its row of logits [at least as many tokens, V].

    It has the `k` most likely tokens, fewer if the vocabulary is smaller. Of equal ones the lower
    id comes first.
    """
    entries = []
    for row, token_id in zip(logits, token_ids, strict=False):
        shifted = row - row.max()
        log_total = np.log(np.exp(shifted).sum(dtype=np.float64))
        top = [(token, float(shifted[token] - log_total)) for token in _largest(shifted, k)]
        entries.append(
            TokenLogprobs(token_id, float(shifted[token_id] - log_total), tuple(top))
        )
    return entries


def _largest(values: Float32, k: int) -> list[int]:
    """Return the places of the `k` largest values, the largest first."""
    k = min(k, len(values))
    if k == 0:
        return []
    least = np.partition(values, len(values) - k)[len(values) - k]
    places = np.flatnonzero(values >= least)  # more than k where values are equal
    order = np.lexsort((places, -values[places]))
    return [int(place) for place in places[order[:k]]]


def add_logprobs(request: Request, result: StepResult, row: int, token_ids: list[int]) -> None:
    """Add the log probabilities of a step's tokens to a request that wants them.

    Raises:
        EngineError: if the session gives no logits.
    """
    if request.logprobs is None:
        return
    if result.logits is None:
        raise EngineError(f"the session gave no logits for slot {row}. {CALLER_BUG}")
    request.output_logprobs += token_logprobs(result.logits[row], token_ids, request.logprobs)
