"""Generate training data: the target's own greedy answers and its features, in one pass.

Each worker process takes a share of the prompts and appends to its own files in the data folder.
``tokens.<w>.bin`` has int32, ``features.<w>.bin`` BF16 rows of taps and final hidden state.
``index.<w>.jsonl`` has one line per answer, written after its data: a reader may start at any time.
A worker that is started again skips what is already in its index.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from prompts import read_jsonl, write_jsonl
from target_model import TARGET_LAYER_IDS, KVCache, Target
from tokenizers import Tokenizer

LOGGER = logging.getLogger("generate_data")

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
# The cache grows in steps of this many columns.
GROWTH = 32
# Finished rows are dropped from a batch when fewer than this share of it is still active.
KEEP_SHARE = 0.85
HIDDEN_SIZE = 576


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of one user message under the target's chat template."""
    return tokenizer.encode(PREFIX + prompt.strip() + SUFFIX, add_special_tokens=False).ids


@dataclass
class Sequence:
    """One prompt with its answer."""

    record: dict[str, str]
    tokens: list[int]
    prompt_length: int


class Batch:
    """A batch of rows that share the chat prefix and decode in step.

    Cache columns hold [shared prefix | padding | rest of the prompt | answer]; the padding is
    masked out and positions skip it.
    """

    def __init__(self, target: Target, prefix: list[int], rows: list[Sequence]) -> None:
        self.target, self.rows = target, rows
        rest = [row.tokens[len(prefix) :] for row in rows]
        width = max(len(r) for r in rest)
        self.pad = torch.tensor([width - len(r) for r in rest])
        self.column = len(prefix) + width
        columns = -(-(self.column + 1) // GROWTH) * GROWTH
        cache, shared = self._prefill_prefix(prefix, columns)
        self.cache: KVCache = cache
        self.features = [shared.expand(len(rows), -1, -1)]
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rest])
        self._prefill_rest(ids, len(prefix))

    def _prefill_prefix(self, prefix: list[int], columns: int) -> tuple[KVCache, torch.Tensor]:
        n = len(prefix)
        one = self.target.new_cache(1, columns)
        mask = torch.ones(n, n, dtype=torch.bool).tril().view(1, 1, n, n)
        positions = torch.arange(n).unsqueeze(0)
        out = self.target.forward(torch.tensor([prefix]), positions, one, 0, mask)
        one.resize(torch.zeros(len(self.rows), dtype=torch.long), n, columns)
        return one, pack(*out, self.target.dtype)

    def _prefill_rest(self, ids: torch.Tensor, start: int) -> None:
        width = ids.shape[1]
        column = torch.arange(width)
        real = column >= self.pad.unsqueeze(1)
        positions = (start + column - self.pad.unsqueeze(1)).clamp(min=0)
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        own = causal & real.unsqueeze(1) | torch.eye(width, dtype=torch.bool)
        mask = torch.cat([torch.ones(len(ids), width, start, dtype=torch.bool), own], dim=2)
        hidden, taps = self.target.forward(ids, positions, self.cache, start, mask.unsqueeze(1))
        self.features.append(pack(hidden, taps, self.target.dtype))
        self.visible = torch.cat([torch.ones(len(ids), start, dtype=torch.bool), real], dim=1)
        self.last = hidden[:, -1]

    def step(self, tokens: torch.Tensor) -> None:
        """Feed one token per row."""
        if self.column == self.cache.columns:
            everything = torch.arange(len(tokens))
            self.cache.resize(everything, self.column, self.column + GROWTH)
        mask = torch.zeros(len(tokens), self.cache.columns, dtype=torch.bool)
        mask[:, : self.visible.shape[1]] = self.visible
        mask[:, self.visible.shape[1] : self.column + 1] = True
        positions = (self.column - self.pad).unsqueeze(1)
        hidden, taps = self.target.forward(
            tokens.unsqueeze(1), positions, self.cache, self.column, mask[:, None, None]
        )
        self.features.append(pack(hidden, taps, self.target.dtype))
        self.column += 1
        self.last = hidden[:, 0]

    def take(self, row: int, length: int) -> torch.Tensor:
        """Return one row's features, padding left out: [length, (taps + 1) * hidden]."""
        pad = int(self.pad[row])
        parts = [part[row] for part in self.features]
        parts[1] = parts[1][pad:]
        return torch.cat(parts)[:length]

    def keep(self, rows: torch.Tensor) -> None:
        """Drop every row but `rows`."""
        self.rows = [self.rows[i] for i in rows.tolist()]
        self.pad, self.visible, self.last = self.pad[rows], self.visible[rows], self.last[rows]
        # One tensor from here on, so that memory of dropped rows is freed.
        self.features = [
            *(part[rows] for part in self.features[:2]),
            *([torch.cat(self.features[2:], dim=1)[rows]] if len(self.features) > 2 else []),
        ]
        self.cache.resize(rows, self.column, self.cache.columns)


def pack(
    hidden: torch.Tensor, taps: list[torch.Tensor], dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Concatenate taps and final hidden state."""
    return torch.cat([*taps, hidden], dim=-1).to(dtype)


def generate(
    target: Target, prefix: list[int], rows: list[Sequence], max_answer: int
) -> Iterator[tuple[Sequence, torch.Tensor]]:
    """Yield every sequence with its features once its answer is finished.

    The last token of an answer has no features (it was never fed); its row is left out.
    """
    batch = Batch(target, prefix, rows)
    alive = torch.ones(len(rows), dtype=torch.bool)
    for count in range(1, max_answer + 1):
        tokens = target.greedy(batch.last)
        ended = (tokens == target.eos_token_id) | (count == max_answer)
        for i in alive.nonzero().flatten().tolist():
            batch.rows[i].tokens.append(int(tokens[i]))
            if ended[i]:
                yield batch.rows[i], batch.take(i, len(batch.rows[i].tokens) - 1)
        alive &= ~ended
        if not alive.any():
            return
        # Dropping rows copies the cache, so it waits until enough rows have finished.
        if alive.sum() < KEEP_SHARE * len(alive):
            kept = alive.nonzero().flatten()
            tokens, alive = tokens[kept], alive[kept]
            batch.keep(kept)
        batch.step(tokens)


def recover(folder: Path, worker: int) -> list[dict[str, str]]:
    """Cut one worker's files back to the last complete answer; returns the index."""
    paths = [folder / f"{name}.{worker}.bin" for name in ("tokens", "features")]
    index = folder / f"index.{worker}.jsonl"
    if not index.exists():
        return []
    text = index.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]
    row_bytes = (4, (len(TARGET_LAYER_IDS) + 1) * HIDDEN_SIZE * 2)
    rows = min(p.stat().st_size // size for p, size in zip(paths, row_bytes, strict=True))
    kept = [line for line in lines if line["offset"] + line["length"] <= rows]
    end = kept[-1]["offset"] + kept[-1]["length"] if kept else 0
    for path, size in zip(paths, row_bytes, strict=True):
        os.truncate(path, end * size)
    write_jsonl(index, kept)
    return kept


class Writer:
    """Appends finished sequences to one worker's files."""

    def __init__(self, folder: Path, worker: int) -> None:
        self.tokens = (folder / f"tokens.{worker}.bin").open("ab")
        self.features = (folder / f"features.{worker}.bin").open("ab")
        self.index = (folder / f"index.{worker}.jsonl").open("a", encoding="utf-8")
        self.offset = self.tokens.tell() // 4
        self.lines: list[str] = []

    def write(self, sequence: Sequence, features: torch.Tensor) -> None:
        """Append one sequence; the feature file has a zero row for its last token."""
        n = len(sequence.tokens)
        padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
        if len(padded) != n:
            raise RuntimeError(f"{len(features)} feature rows for {n} tokens")
        self.tokens.write(torch.tensor(sequence.tokens, dtype=torch.int32).numpy().tobytes())
        self.features.write(padded.view(torch.int16).numpy().tobytes())
        line = {
            **sequence.record,
            "offset": self.offset,
            "prompt_length": sequence.prompt_length,
        }
        self.lines.append(json.dumps({**line, "length": n}, ensure_ascii=False) + "\n")
        self.offset += n

    def flush(self) -> None:
        """Make everything written so far visible to readers, the index last."""
        self.tokens.flush()
        self.features.flush()
        self.index.write("".join(self.lines))
        self.index.flush()
        self.lines.clear()


def make_batches(rows: list[Sequence], size: int) -> list[list[Sequence]]:
    """Group rows of similar prompt length, keeping the given order between groups of batches."""
    batches: list[list[Sequence]] = []
    window = size * 6
    for start in range(0, len(rows), window):
        part = sorted(rows[start : start + window], key=lambda row: len(row.tokens))
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return batches


def main() -> None:
    """Run one worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="JSONL with kind and prompt"
    )
    parser.add_argument("--output", type=Path, required=True, help="data folder")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--max-prompt", type=int, default=200)
    parser.add_argument("--max-answer", type=int, default=160)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this long"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    target = Target(args.target, dtype=torch.bfloat16)
    tokenizer = Tokenizer.from_file(str(args.target / "tokenizer.json"))
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False).ids
    seen = {line["prompt"] for line in recover(args.output, args.worker)}
    mine = read_jsonl(args.prompts)[args.worker :: args.workers]
    rows = []
    for record in mine:
        ids = encode_prompt(tokenizer, record["prompt"])
        if record["prompt"] not in seen and len(ids) <= args.max_prompt:
            rows.append(Sequence(record, ids, len(ids)))
    writer = Writer(args.output, args.worker)
    start, answered = time.monotonic(), 0
    with torch.inference_mode():
        for batch in make_batches(rows, args.batch):
            for row, features in generate(target, prefix, batch, args.max_answer):
                answered += len(row.tokens) - row.prompt_length
                writer.write(row, features)
            writer.flush()
            elapsed = time.monotonic() - start
            LOGGER.info("%d answer tokens, %.0f per second", answered, answered / elapsed)
            if elapsed > args.seconds:
                break


if __name__ == "__main__":
    main()
