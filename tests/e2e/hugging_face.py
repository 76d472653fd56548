"""Hugging Face's and the reference package's own decoding, in float32: what our engines are
compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel


def load_target(directory: Path) -> PreTrainedModel:
    """Load the target in float32; more than one thread only slows a tiny one.

    A model with a vision part is loaded as such. The text model alone would go by the inner
    config's `tie_word_embeddings`, which may be another than the outer one's.
    """
    torch.set_num_threads(1)
    (architecture,) = json.loads((directory / "config.json").read_text())["architectures"]
    with_vision = architecture.endswith("ForConditionalGeneration")
    auto = AutoModelForImageTextToText if with_vision else AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=torch.float32).eval()


def load_drafter(directory: Path) -> Any:
    """Load the drafter of the reference package, in float32."""
    import dflash.model

    (architecture,) = json.loads((directory / "config.json").read_text())["architectures"]
    model = getattr(dflash.model, architecture)
    return model.from_pretrained(directory, dtype=torch.float32).eval()


def greedy(
    target: PreTrainedModel, prompt: list[int], max_new_tokens: int, eos: int | None = None
) -> list[int]:
    """`generate`'s greedy tokens; the mask of ones is needed, or it would guess one from the pad
    token.
    """
    ids = torch.tensor([prompt])
    out = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def choices(target: PreTrainedModel, prompt: list[int], answer: list[int]) -> list[int]:
    """Return the most likely token after the prompt and each prefix of `answer`, from one pass.

    If they are `answer` itself, then by induction it is what `greedy` gives, at a small part of its
    cost.
    """
    with torch.inference_mode():
        logits = target(
            torch.tensor([[*prompt, *answer[:-1]]]), logits_to_keep=len(answer)
        ).logits
    return logits[0].argmax(-1).tolist()


def drafts_without_caches(
    drafter: Any, target: PreTrainedModel, text: list[int], mask_id: int, block_size: int
) -> list[int]:
    """Return the drafts behind a text that ends with its anchor, from whole passes over it.

    The target's features of all tokens before the anchor, then the reference package's drafter.
    """
    *cached, anchor = text
    with torch.inference_mode():
        states = target(torch.tensor([cached]), output_hidden_states=True).hidden_states
        block = torch.tensor([[anchor] + [mask_id] * (block_size - 1)])
        hidden = drafter(
            target_hidden=torch.cat(
                [states[layer + 1] for layer in drafter.target_layer_ids], dim=-1
            ),
            noise_embedding=target.get_input_embeddings()(block),
            position_ids=torch.arange(len(cached) + block_size)[None],
        )
        head = target.get_output_embeddings()
        if hasattr(drafter, "propose"):
            return drafter.propose(hidden[:, 1:], torch.tensor([anchor]), head, 0.0)[0][
                0
            ].tolist()
        return head(hidden[0, 1:]).argmax(-1).tolist()


def reference_generate(
    drafter: Any,
    target: PreTrainedModel,
    prompt: list[int],
    max_new_tokens: int,
    block_size: int,
) -> tuple[list[int], list[int]]:
    """Greedy tokens and acceptance lengths of the reference package's own loop."""
    import dflash.model

    dflash.model._cuda_time = lambda: (
        0.0
    )  # return_stats wants a CUDA clock, and only the lengths are of interest here
    stats = dflash.model.dflash_generate(
        drafter,
        target,
        torch.tensor([prompt]),
        max_new_tokens,
        None,
        block_size=block_size,
        return_stats=True,
    )
    return stats.output_ids[0, len(prompt) :].tolist(), stats.acceptance_lengths
