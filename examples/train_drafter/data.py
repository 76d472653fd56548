"""Read generated data while it grows, and draw training batches from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drafter_model import BLOCK_SIZE

# Teacher probabilities kept per position.
TEACHER_TOP = 8


@dataclass
class Example:
    """One answered prompt; `live` marks positions where decoding would place an anchor."""

    tokens: torch.Tensor
    features: np.ndarray
    prompt_length: int
    kind: str
    live: torch.Tensor
    teacher: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass
class TrainBatch:
    """Padded batch: S sequences, A anchors each, length L, T feature width."""

    features: torch.Tensor  # [S, L, T] BF16
    anchors: torch.Tensor  # [S, A]
    anchor_tokens: torch.Tensor  # [S, A]
    labels: torch.Tensor  # [S, A, B - 1] token ids; -1 past the end of the answer
    soft_ids: torch.Tensor  # [S, A, B - 1, TEACHER_TOP]
    soft_probabilities: torch.Tensor  # [S, A, B - 1, TEACHER_TOP]


class Dataset:
    """All examples on disk, as memory maps."""

    def __init__(self, folder: Path, feature_width: int) -> None:
        self.folder, self.width = folder, feature_width
        self.examples: list[Example] = []
        self.known: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> int:
        """Take in what was written since the last call; returns the number of examples."""
        for index in sorted(self.folder.glob("index.*.jsonl")):
            worker = index.name.split(".")[1]
            text = index.read_text(encoding="utf-8")
            # The last line may still be in the making.
            lines = [line for line in text[: text.rfind("\n") + 1].split("\n") if line]
            taken = self._take(worker, lines[self.known.get(index, 0) :])
            self.known[index] = self.known.get(index, 0) + taken
        return len(self.examples)

    def _take(self, worker: str, lines: list[str]) -> int:
        if not lines:
            return 0
        tokens = np.memmap(self.folder / f"tokens.{worker}.bin", np.int32, "r")
        features = np.memmap(self.folder / f"features.{worker}.bin", np.int16, "r")
        features = features[: len(features) // self.width * self.width].reshape(-1, self.width)
        for count, text in enumerate(lines):
            line = json.loads(text)
            part = slice(line["offset"], line["offset"] + line["length"])
            if part.stop > min(len(tokens), len(features)):
                return count
            if line["length"] - line["prompt_length"] < 3:
                continue
            ids = torch.from_numpy(np.array(tokens[part], dtype=np.int64))
            live = torch.zeros(len(ids), dtype=torch.bool)
            live[line["prompt_length"]] = True
            self.examples.append(
                Example(ids, features[part], line["prompt_length"], line["kind"], live)
            )
        return len(lines)

    def answer_tokens(self) -> int:
        """Return the number of answer tokens."""
        return sum(e.length - e.prompt_length for e in self.examples)


def load_features(example: Example) -> torch.Tensor:
    """Return BF16 features [length, width]; the last columns are the final hidden state."""
    return torch.from_numpy(np.array(example.features)).view(torch.bfloat16)


def frequent_tokens(
    dataset: Dataset, vocab_size: int, count: int
) -> tuple[torch.Tensor, float]:
    """Return the `count` most frequent answer tokens, sorted, and the share they cover."""
    totals = torch.zeros(vocab_size, dtype=torch.long)
    for e in dataset.examples:
        totals += torch.bincount(e.tokens[e.prompt_length :], minlength=vocab_size)
    ids = totals.topk(min(count, int((totals > 0).sum()))).indices.sort().values
    return ids, float(totals[ids].sum() / totals.sum())


def feature_rms(dataset: Dataset, width: int, count: int = 200) -> torch.Tensor:
    """Return the per-dimension RMS of the first `width` feature columns, over some examples."""
    step = max(1, len(dataset.examples) // count)
    total, rows = torch.zeros(width, dtype=torch.float64), 0
    for e in dataset.examples[::step]:
        # Position 0 carries outliers far above any other row.
        part = load_features(e)[1:-1, :width].double()
        total, rows = total + part.square().sum(0), rows + len(part)
    return (total / rows).sqrt().float().clamp(min=1e-3)


class Teacher:
    """The target's own distribution over the frequent tokens, top entries only."""

    def __init__(self, head: torch.Tensor) -> None:
        self.head = head.to(torch.bfloat16)

    def fill(self, example: Example, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ids, probabilities), each [length, TEACHER_TOP], and keep them.

        Row t holds the distribution of the token at position t + 1.
        """
        if example.teacher is None:
            logits = (hidden @ self.head.T).float()
            top, ids = logits.topk(TEACHER_TOP)
            example.teacher = (ids.to(torch.int16), top.softmax(-1).to(torch.bfloat16))
        return example.teacher


def choose_anchors(example: Example, count: int, live_share: float) -> torch.Tensor:
    """Draw anchors [count] among answer tokens, part of them where decoding would stop."""
    first, last = example.prompt_length, example.length - 1
    uniform = torch.randint(first, last, (count,))
    live = example.live[first:last].nonzero().flatten() + first
    if len(live) == 0:
        return uniform
    wanted = min(int(count * live_share), 2 * len(live))
    if wanted <= len(live):
        uniform[:wanted] = live[torch.randperm(len(live))[:wanted]]
    else:
        uniform[:wanted] = live[torch.randint(len(live), (wanted,))]
    return uniform


def make_batch(
    examples: list[Example], teacher: Teacher, *,
    anchors: int, live_share: float, taps_width: int,
) -> TrainBatch:  # fmt: skip
    """Assemble one batch."""
    s, length = len(examples), max(e.length for e in examples)
    features = torch.zeros(s, length, taps_width, dtype=torch.bfloat16)
    starts = torch.zeros(s, anchors, dtype=torch.long)
    first = torch.zeros(s, anchors, dtype=torch.long)
    labels = torch.full((s, anchors, BLOCK_SIZE - 1), -1, dtype=torch.long)
    soft_ids = torch.zeros(s, anchors, BLOCK_SIZE - 1, TEACHER_TOP, dtype=torch.long)
    soft = torch.zeros(s, anchors, BLOCK_SIZE - 1, TEACHER_TOP)
    offsets = torch.arange(1, BLOCK_SIZE)
    for i, e in enumerate(examples):
        rows = load_features(e)
        features[i, : e.length] = rows[:, :taps_width]
        teacher_ids, teacher_probabilities = teacher.fill(e, rows[:, taps_width:])
        starts[i] = choose_anchors(e, anchors, live_share)
        first[i] = e.tokens[starts[i]]
        where = starts[i].unsqueeze(-1) + offsets
        inside = where < e.length
        where = where.clamp(max=e.length - 1)
        labels[i] = torch.where(inside, e.tokens[where], -1)
        soft_ids[i] = teacher_ids[where - 1].long()
        soft[i] = teacher_probabilities[where - 1].float()
    return TrainBatch(features, starts, first, labels, soft_ids, soft)
