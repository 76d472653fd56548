"""Makes the trained tiny pair beside this file: a Qwen3 target of a synthetic language and a DFlash drafter for it.

A random pair accepts next to nothing, so a wiring fault would not show. Here a right wiring accepts several tokens per
step and a wrong one far fewer. Run `python -m tests.trained_pair.make_pair` (a few minutes on two cores); the
reference package `dflash` 0.1.0 supplies the drafter's forward pass.

The language: token + stride (mod 61); at every multiple of 7 the stride changes by rule. Ids 61 to 66 never occur.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from dflash.model import DFlashDraftModel, extract_context_feature
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
MODULUS, STRIDES, VOCAB, MASK, LENGTH, BLOCK = 61, 5, 67, 66, 48, 8
TAPS = [1, 2, 3]


def sentences(count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` sentences [count, LENGTH] of the language."""
    token = torch.randint(MODULUS, (count,), generator=generator)
    stride = torch.randint(1, STRIDES + 1, (count,), generator=generator)
    columns = []
    for _ in range(LENGTH):
        columns.append(token)
        stride = torch.where(token % 7 == 0, stride % STRIDES + 1, stride)
        token = (token + stride) % MODULUS
    return torch.stack(columns, dim=1)


def train_target(steps: int) -> Qwen3ForCausalLM:
    """A 6-layer target that knows the language."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=160, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=False,
        rope_theta=10000.0, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model, generator = Qwen3ForCausalLM(config), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        ids = sentences(64, generator)
        loss = model(input_ids=ids, labels=ids).loss
        _update(loss, model, optimizer, schedule)
        _report("target", step, steps, loss)
    return model.eval()


def train_drafter(target: Qwen3ForCausalLM, steps: int) -> DFlashDraftModel:
    """A 2-layer drafter, trained with one random anchor per batch, on sentences (which the target continues alike)."""
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=144, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=24, max_position_embeddings=512, tie_word_embeddings=False,
        rope_theta=20000.0, bos_token_id=None, eos_token_id=None, pad_token_id=None, attention_bias=False,
    )  # fmt: skip
    config.num_target_layers, config.block_size, config.is_causal = 6, BLOCK, False
    config.dflash_config = {"mask_token_id": MASK, "target_layer_ids": TAPS}
    config._attn_implementation = "sdpa"
    model, generator = DFlashDraftModel(config), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    weight = torch.exp(-torch.arange(BLOCK - 1) / 4.0)
    for step in range(steps):
        ids = sentences(96, generator)
        start = int(torch.randint(4, LENGTH - BLOCK + 1, (1,), generator=generator))
        with torch.no_grad():
            states = target(ids, output_hidden_states=True).hidden_states
            features = extract_context_feature(states, TAPS)[:, :start]
            block = torch.full((len(ids), BLOCK), MASK)
            block[:, 0] = ids[:, start]
            noise = target.get_input_embeddings()(block)
        positions = torch.arange(start + BLOCK)[None]
        hidden = model(target_hidden=features, noise_embedding=noise, position_ids=positions)
        logits = target.lm_head(hidden[:, 1:])
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, start + 1 : start + BLOCK], reduction="none"
        )
        loss = (losses * weight).mean()
        _update(loss, model, optimizer, schedule)
        _report("drafter", step, steps, loss)
    return model.eval()


def _update(loss, model, optimizer, schedule) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _report(name: str, step: int, steps: int, loss: torch.Tensor) -> None:
    if step % 100 == 0 or step == steps - 1:
        print(f"{time.strftime('%X')} {name} step {step}: loss {loss.item():.4f}", flush=True)


def main() -> None:
    """Train both and write them beside this file, in float32."""
    target = train_target(900)
    target.save_pretrained(HERE / "target")
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    drafter = train_drafter(target, 220)
    drafter.save_pretrained(HERE / "drafter")
    config = json.loads((HERE / "drafter" / "config.json").read_text())
    config["architectures"] = ["DFlashDraftModel"]
    (HERE / "drafter" / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
