"""The agreement of a target with rounded layers and the original, in the most likely next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.quantize.torch_io import TORCH_DTYPES, read_rows, read_tensor

# Of the calibration text, on which the rounded target is compared with the original.
CHECK_TOKENS = 512
_HEAD_ROWS = 8192  # rows of the head at a time


def count_sequences(sequences: Sequence[Sequence[int]], tokens: int = CHECK_TOKENS) -> int:
    """Return how many of the first sequences have at least `tokens` together, or else all."""
    seen = 0
    for count, ids in enumerate(sequences, start=1):
        seen += len(ids)
        if seen >= tokens:
            return count
    return len(sequences)


def count_agreement(
    checkpoint: Checkpoint[TargetConfig],
    norm: Any,
    exact: Sequence[torch.Tensor],
    rounded: Sequence[torch.Tensor],
) -> tuple[int, int]:
    """Return (agreed, compared) positions of the same sequences' last hidden states.

    States are [1, tokens, hidden]. `norm` is the model's last norm, whose weight is read here. The
    head is not rounded.
    """
    if not rounded:
        return 0, 0
    weight = read_tensor(checkpoint.tensors["model.norm.weight"])
    weight = weight.to(rounded[0].device, TORCH_DTYPES[checkpoint.dtype])
    norm.load_state_dict({"weight": weight}, assign=True)
    exact_tokens, rounded_tokens = (
        _argmax_tokens(checkpoint, norm(torch.cat(list(states), dim=1)[0]))
        for states in (exact, rounded)
    )
    agreed = int((exact_tokens == rounded_tokens).sum())
    return agreed, len(exact_tokens)


def _argmax_tokens(checkpoint: Checkpoint[TargetConfig], hidden: torch.Tensor) -> torch.Tensor:
    """Return the token of the highest logit for each row of `hidden` [n, hidden].

    The head is read a part of the vocabulary at a time.
    """
    tensors = checkpoint.tensors
    head = tensors.get("lm_head.weight") or tensors["model.embed_tokens.weight"]
    top_logits = []
    top_tokens = []
    for start in range(0, head.shape[0], _HEAD_ROWS):
        rows = read_rows(head, slice(start, start + _HEAD_ROWS))
        logits = torch.nn.functional.linear(hidden, rows.to(hidden.device, hidden.dtype))
        top = logits.max(-1)
        top_logits.append(top.values)
        top_tokens.append(top.indices + start)
    best = torch.stack(top_logits).argmax(0, keepdim=True)
    return torch.stack(top_tokens).gather(0, best)[0]
