"""Train a DFlash v1 drafter for the demo target on generated data, on a CPU.

The loss mixes cross entropy on the target's greedy token and on its top probabilities. Weights are
the position in the block and the chance that the rows before it are accepted. Some anchors are
placed where live decoding with the current drafter would put one. Those are harder than random
places.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from data import Dataset, Example, Teacher, TrainBatch, feature_rms, frequent_tokens, make_batch
from drafter_model import (
    BLOCK_SIZE,
    MASK_TOKEN_ID,
    Drafter,
    DrafterShape,
    load_drafter,
    save_drafter,
)
from safetensors.torch import load_file
from target_model import TARGET_LAYER_IDS

LOGGER = logging.getLogger("train")

GAMMA = 4.0
CHUNK = 256


class HeadLoss(torch.autograd.Function):
    """Cross entropy of a frozen head, in chunks that fit the cache; also returns the argmax.

    Inputs are hidden [n, H], head [V, H] BF16 with its bias [V], and hard labels [n]. Then come
    soft ids and probabilities [n, k], and the share of the hard label. Outputs per row are loss,
    log-probability of the hard label, and argmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: tuple[torch.Tensor, torch.Tensor],
        labels: torch.Tensor,
        soft: tuple[torch.Tensor, torch.Tensor],
        hard_share: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = len(hidden)
        loss, label_logp = torch.empty(n), torch.empty(n)
        best = torch.empty(n, dtype=torch.long)
        gradient = torch.empty_like(hidden)
        for start in range(0, n, CHUNK):
            part = slice(start, min(start + CHUNK, n))
            logits = (hidden[part].to(torch.bfloat16) @ head[0].T).float().add_(head[1])
            top, best[part] = logits.max(-1)
            hard = labels[part].unsqueeze(-1)
            ids = torch.cat([hard, soft[0][part]], dim=-1)
            weights = torch.cat(
                [
                    torch.full_like(top, hard_share).unsqueeze(-1),
                    soft[1][part] * (1 - hard_share),
                ],
                dim=-1,
            )
            chosen = logits.gather(1, ids)
            probabilities = logits.sub_(top.unsqueeze(-1)).exp_()
            total = probabilities.sum(-1)
            normaliser = top + total.log()
            loss[part] = normaliser * weights.sum(-1) - (weights * chosen).sum(-1)
            label_logp[part] = chosen[:, 0] - normaliser
            probabilities.mul_((weights.sum(-1) / total).unsqueeze(-1))
            probabilities.scatter_add_(1, ids, -weights)
            gradient[part] = (probabilities.to(torch.bfloat16) @ head[0]).float()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(label_logp, best)
        return loss, label_logp, best

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].unsqueeze(-1), None, None, None, None


@dataclass
class Frozen:
    """What training needs of the target."""

    embedding: torch.Tensor
    head: torch.Tensor
    to_reduced: torch.Tensor
    scale: torch.Tensor
    config: dict[str, Any]


@dataclass
class Running:
    """Averages since the last report."""

    loss: float = 0.0
    accepted: float = 0.0
    steps: int = 0
    per_row: torch.Tensor = field(default_factory=lambda: torch.zeros(BLOCK_SIZE - 1))


def step_head(
    frozen: Frozen, labels: torch.Tensor, negatives: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the head of one step, (rows [V, H], bias [V]), and the labels as indices into it.

    The head is the frequent tokens, the rare labels of this batch, and a random sample of the
    other tokens. Each sampled token stands for many, hence the bias. So the drafter also learns not
    to propose tokens that it hardly ever sees. Decoding can use the whole vocabulary.
    """
    mapping = frozen.to_reduced.clone()
    count = len(frozen.head)
    rare = labels[labels >= 0]
    rare = rare[mapping[rare] < 0].unique()
    mapping[rare] = torch.arange(count, count + len(rare))
    others = (mapping < 0).nonzero().flatten()
    sampled = others[torch.randint(len(others), (negatives,))]
    rows = frozen.embedding[torch.cat([rare, sampled])].to(torch.bfloat16)
    head = torch.cat([frozen.head, rows])
    bias = torch.zeros(len(head))
    bias[count + len(rare) :] = math.log(len(others) / negatives)
    return (head, bias), torch.where(labels >= 0, mapping[labels.clamp(min=0)], -1)


def block_loss(
    drafter: Drafter, frozen: Frozen, batch: TrainBatch, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and which rows were right, [S, A, B - 1]."""
    s, a = batch.anchors.shape
    features = batch.features * (1 / frozen.scale).to(torch.bfloat16)
    context = drafter.context(features)
    ids = torch.full((s, a, BLOCK_SIZE), MASK_TOKEN_ID)
    ids[:, :, 0] = batch.anchor_tokens
    visible = torch.arange(batch.features.shape[1]) < batch.anchors.unsqueeze(-1)
    hidden = drafter.blocks(frozen.embedding[ids], batch.anchors, context, visible)
    present = batch.labels >= 0
    head, labels = step_head(frozen, batch.labels, args.negatives)
    # Rows late in the block are rarely reached; computing the head for part of them is enough.
    keep_chance = torch.tensor([1.0, 1.0, 1.0, 0.8, 0.6, 0.5, 0.4])
    kept = present & (torch.rand(present.shape) < keep_chance)
    loss, label_logp, best = HeadLoss.apply(
        hidden[:, :, 1:][kept],
        head,
        labels[kept],
        (batch.soft_ids[kept], batch.soft_probabilities[kept]),
        args.hard_share,
    )
    logp = torch.full(present.shape, -1.0).masked_scatter(kept, label_logp)
    reach = logp.cumsum(-1).sub(logp).exp()
    decay = torch.exp(-torch.arange(BLOCK_SIZE - 1) / GAMMA)
    weights = (decay * (args.floor + (1 - args.floor) * reach) / keep_chance)[kept]
    right = torch.zeros_like(present).masked_scatter(kept, best == labels[kept])
    return (loss * weights).sum() / (weights.sum() + 1e-6), right


def mark_live(examples: list[Example], batch: TrainBatch, right: torch.Tensor) -> torch.Tensor:
    """Note where decoding would go on after each block; returns accepted lengths [S, A]."""
    accepted = right.long().cumprod(-1).sum(-1)
    following = batch.anchors + accepted + 1
    for i, e in enumerate(examples):
        e.live[following[i][following[i] < e.length]] = True
    return accepted


def batches(dataset: Dataset, size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Yield batches of similar length forever; each pass takes in data written meanwhile."""
    while True:
        dataset.refresh()
        order = list(dataset.examples)
        rng.shuffle(order)
        pool = size * 16
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda e: e.length)
            groups = [part[i : i + size] for i in range(0, len(part), size)]
            rng.shuffle(groups)
            yield from groups


def init_from_target(
    drafter: Drafter, weights: dict[str, torch.Tensor], layers: list[int]
) -> None:
    """Copy target layers into the drafter's layers."""
    state = drafter.state_dict()
    for i, source in enumerate(layers):
        for name in list(state):
            prefix = f"layers.{i}."
            other = f"model.layers.{source}.{name.removeprefix(prefix)}"
            if name.startswith(prefix) and other in weights:
                state[name] = weights[other].float()
    drafter.load_state_dict(state)


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if progress < warmup:
        return peak * (progress + 1e-3) / warmup
    rest = (min(progress, 1.0) - warmup) / (1 - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * rest)))


def prepare(
    args: argparse.Namespace, dataset: Dataset
) -> tuple[Frozen, dict[str, torch.Tensor]]:
    """Load the target's tensors and derive the reduced head and the feature scale."""
    weights = load_file(args.target / "model.safetensors")
    config = json.loads((args.target / "config.json").read_text(encoding="utf-8"))
    embedding = weights["model.embed_tokens.weight"].float()
    ids, share = frequent_tokens(dataset, len(embedding), args.head_tokens)
    LOGGER.info("head of %d tokens covers %.3f %% of the answers", len(ids), 100 * share)
    to_reduced = torch.full((len(embedding),), -1)
    to_reduced[ids] = torch.arange(len(ids))
    scale = feature_rms(dataset, len(TARGET_LAYER_IDS) * config["hidden_size"])
    head = embedding[ids].to(torch.bfloat16)
    if args.save_vocab:
        args.save_vocab.write_text(
            json.dumps(ids.tolist(), separators=(",", ":")) + "\n", encoding="utf-8"
        )
    return Frozen(embedding, head, to_reduced, scale, config), weights


def build_drafter(
    args: argparse.Namespace, weights: dict[str, torch.Tensor], scale: torch.Tensor
) -> Drafter:
    """Return a drafter that computes in BF16: a new one, or one that is trained further."""
    drafter = Drafter(DrafterShape(num_layers=args.layers, rope_theta=args.rope_theta))
    for name, parameter in drafter.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02 if "fc" not in name else 0.015)
    # A fifth of the target's own norm keeps the first logits moderate.
    drafter.norm.weight.data.copy_(weights["model.norm.weight"].float() * 0.2)
    if args.init_layers:
        init_from_target(drafter, weights, args.init_layers)
    if args.continue_from:
        drafter.load_state_dict(load_drafter(args.continue_from).state_dict())
        drafter.fc.weight.data *= scale  # a saved one takes features as they are
    drafter.dtype = torch.bfloat16
    return drafter


def build_optimizer(drafter: Drafter, peak: float) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed."""
    matrices = [p for p in drafter.parameters() if p.dim() == 2]
    norms = [p for p in drafter.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.01},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)


def train(args: argparse.Namespace) -> None:
    """Train for a fixed time and write checkpoints."""
    dataset = Dataset(args.data, (len(TARGET_LAYER_IDS) + 1) * DrafterShape().hidden_size)
    LOGGER.info("%d examples, %d answer tokens", len(dataset.examples), dataset.answer_tokens())
    frozen, weights = prepare(args, dataset)
    drafter, teacher = build_drafter(args, weights, frozen.scale), Teacher(frozen.head)
    optimizer = build_optimizer(drafter, args.lr)
    source = batches(dataset, args.sequences, random.Random(args.seed))
    start = last_save = last_report = time.monotonic()
    running, step, blocks = Running(), 0, 0
    while (elapsed := time.monotonic() - start) < args.seconds:
        progress = elapsed / args.seconds
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.lr, args.warmup)
        examples = next(source)
        live_share = args.live_share if progress > 0.1 else 0.0
        batch = make_batch(
            examples, teacher, anchors=args.anchors, live_share=live_share,
            taps_width=len(frozen.scale),
        )  # fmt: skip
        loss, right = block_loss(drafter, frozen, batch, args)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        accepted = mark_live(examples, batch, right)
        step, blocks = step + 1, blocks + accepted.numel()
        running.loss += loss.item()
        running.accepted += accepted.float().mean().item()
        running.per_row += right.float().mean((0, 1))
        running.steps += 1
        if time.monotonic() - last_report > args.report_seconds:
            LOGGER.info(
                "%.0f s step %d (%.2f/s) examples %d lr %.1e loss %.3f accepted %.3f row 1 %.3f",
                elapsed, step, step / elapsed, len(dataset.examples), group["lr"],
                running.loss / running.steps, running.accepted / running.steps,
                running.per_row[0] / running.steps,
            )  # fmt: skip
            running, last_report = Running(), time.monotonic()
        if time.monotonic() - last_save > args.save_seconds:
            save_drafter(drafter, args.output, frozen.config, frozen.scale)
            last_save = time.monotonic()
    save_drafter(drafter, args.output, frozen.config, frozen.scale)
    summary = {
        "steps": step, "anchor_blocks": blocks, "seconds": round(time.monotonic() - start),
        "examples": len(dataset.examples), "answer_tokens": dataset.answer_tokens(),
        "head_tokens": len(frozen.head),
    }  # fmt: skip
    LOGGER.info("done: %s", json.dumps(summary))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--data", type=Path, required=True, help="folder of generate_data.py")
    parser.add_argument("--output", type=Path, required=True, help="drafter folder")
    parser.add_argument(
        "--save-vocab", type=Path, help="write the reduced head's token ids here"
    )
    parser.add_argument("--seconds", type=float, default=2700)
    parser.add_argument("--save-seconds", type=float, default=180)
    parser.add_argument("--report-seconds", type=float, default=20)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rope-theta", type=float, default=10000.0)
    parser.add_argument(
        "--init-layers", type=int, nargs="*", help="target layers to start from"
    )
    parser.add_argument(
        "--continue-from", type=Path, help="drafter folder whose weights to start from"
    )
    parser.add_argument("--head-tokens", type=int, default=6144)
    parser.add_argument(
        "--negatives", type=int, default=1024, help="sampled rare tokens a step"
    )
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--anchors", type=int, default=32)
    parser.add_argument("--live-share", type=float, default=0.5)
    parser.add_argument("--hard-share", type=float, default=0.5)
    parser.add_argument(
        "--floor", type=float, default=0.3, help="least weight of unreached rows"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.04)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args)


if __name__ == "__main__":
    main()
