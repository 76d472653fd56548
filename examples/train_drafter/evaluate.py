"""Measure a drafter: its acceptance length along the greedy decoding loop, in FP32.

Greedy block verification reproduces the target's own greedy text. So each prompt's text and
features are computed once, and the loop is followed on them. Each round drafts at the current
anchor from the features before it, accepts the matching prefix, adds the target's own token, and
moves the anchor. With ``--check N`` the loop is also run for real on the first N prompts of each
set, target verification included, and must agree. Prompt lookup is followed in the same way.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from drafter_model import BLOCK_SIZE, MASK_TOKEN_ID, Drafter, DraftState, load_drafter
from generate_data import PREFIX, Sequence, encode_prompt, generate
from prompts import KINDS, PROMPT_FOLDER, read_jsonl
from target_model import Target
from tokenizers import Tokenizer

LOGGER = logging.getLogger("evaluate")

LOOKUP_NGRAM = 3


@dataclass
class Answer:
    """One evaluation prompt with the target's greedy answer and its features."""

    kind: str
    prompt: str
    prompt_length: int
    tokens: list[int]
    features: torch.Tensor


@dataclass
class Tally:
    """Tokens and verifications of one method."""

    tokens: int = 0
    rounds: int = 0

    def add(self, tokens: int, rounds: int) -> None:
        """Count one more answer."""
        self.tokens += tokens
        self.rounds += rounds

    @property
    def tau(self) -> float:
        """Tokens per verification."""
        return self.tokens / self.rounds if self.rounds else float("nan")


@dataclass
class Report:
    """Tallies by set, kind and method."""

    tallies: dict[tuple[str, str, str], Tally] = field(
        default_factory=lambda: defaultdict(Tally)
    )

    def add(self, name: str, kind: str, method: str, tokens: int, rounds: int) -> None:
        """Count one answer under its kind and under "all"."""
        self.tallies[name, kind, method].add(tokens, rounds)
        self.tallies[name, "all", method].add(tokens, rounds)

    def as_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return {set: {kind: {method: tau}}}."""
        result: dict[str, dict[str, dict[str, float]]] = {}
        for (name, kind, method), tally in self.tallies.items():
            row = result.setdefault(name, {}).setdefault(kind, {})
            row[method] = round(tally.tau, 3)
            row["tokens"] = tally.tokens
        return result


def greedy_answers(
    target: Target, tokenizer: Tokenizer, records: list[dict[str, str]], max_new: int
) -> list[Answer]:
    """Return the target's greedy answers, in the order of the records."""
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False).ids
    rows = []
    for number, record in enumerate(records):
        ids = encode_prompt(tokenizer, record["prompt"])
        rows.append(Sequence({**record, "number": str(number)}, ids, len(ids)))
    width = len(target.embedding[0])
    answers: dict[int, Answer] = {}
    rows.sort(key=lambda row: len(row.tokens))
    for start in range(0, len(rows), 48):
        for row, features in generate(target, prefix, rows[start : start + 48], max_new):
            number = int(row.record["number"])
            answers[number] = Answer(
                row.record["kind"], row.record["prompt"], row.prompt_length, row.tokens,
                features[:, : features.shape[1] - width].clone(),
            )  # fmt: skip
    return [answers[i] for i in range(len(records))]


def accepted_length(draft: list[int], truth: list[int]) -> int:
    """Return how many leading tokens of the draft are right."""
    count = 0
    while count < len(draft) and count < len(truth) and draft[count] == truth[count]:
        count += 1
    return count


def follow_drafter(
    drafter: Drafter, embedding: torch.Tensor, answers: list[Answer], vocab: torch.Tensor
) -> list[tuple[int, int]]:
    """Return (tokens, rounds) per answer; all answers advance together, one block each a round.

    Drafts are the best of the token ids `vocab`.
    """
    head = embedding[vocab]
    size = max(len(a.features) for a in answers)
    features = torch.stack(
        [
            torch.nn.functional.pad(a.features, (0, 0, 0, size - len(a.features)))
            for a in answers
        ]
    )
    context = drafter.context(features)
    anchors = [a.prompt_length for a in answers]
    rounds = [0] * len(answers)
    active = [i for i, a in enumerate(answers) if anchors[i] < len(a.tokens) - 1]
    while active:
        starts = torch.tensor([[anchors[i]] for i in active])
        ids = torch.full((len(active), 1, BLOCK_SIZE), MASK_TOKEN_ID)
        ids[:, 0, 0] = torch.tensor([answers[i].tokens[anchors[i]] for i in active])
        mask = torch.arange(size) < starts.unsqueeze(-1)
        rows = torch.tensor(active)
        part = [(k[rows], v[rows]) for k, v in context]
        hidden = drafter.blocks(embedding[ids], starts, part, mask)[:, 0, 1:]
        drafts = vocab[(hidden @ head.T).argmax(-1)].tolist()
        for i, draft in zip(active, drafts, strict=True):
            truth = answers[i].tokens[anchors[i] + 1 :]
            anchors[i] += min(accepted_length(draft, truth) + 1, len(truth))
            rounds[i] += 1
        active = [i for i in active if anchors[i] < len(answers[i].tokens) - 1]
    return [
        (len(a.tokens) - a.prompt_length - 1, n) for a, n in zip(answers, rounds, strict=True)
    ]


def lookup(tokens: list[int], count: int) -> list[int]:
    """Propose what followed the latest earlier occurrence of the last tokens, longest first."""
    for n in range(LOOKUP_NGRAM, 0, -1):
        key = tokens[-n:]
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == key:
                return tokens[start + n : start + n + count]
    return []


def follow_lookup(answer: Answer) -> tuple[int, int]:
    """Return (tokens, rounds) of prompt lookup with the same draft length."""
    anchor, rounds = answer.prompt_length, 0
    while anchor < len(answer.tokens) - 1:
        draft = lookup(answer.tokens[: anchor + 1], BLOCK_SIZE - 1)
        truth = answer.tokens[anchor + 1 :]
        anchor += min(accepted_length(draft, truth) + 1, len(truth))
        rounds += 1
    return len(answer.tokens) - answer.prompt_length - 1, rounds


def decode(
    target: Target, drafter: Drafter, answer: Answer, max_new: int
) -> tuple[list[int], int]:
    """Run draft and verification for real; returns the tokens and the number of verifications."""
    prompt = answer.tokens[: answer.prompt_length]
    end = len(prompt) + max_new
    cache = target.new_cache(1, end + BLOCK_SIZE)

    def run(tokens: list[int], column: int) -> tuple[list[int], torch.Tensor]:
        t = len(tokens)
        mask = torch.ones(t, column + t, dtype=torch.bool).tril(column).view(1, 1, t, -1)
        positions = torch.arange(column, column + t).unsqueeze(0)
        hidden, taps = target.forward(torch.tensor([tokens]), positions, cache, column, mask)
        return target.greedy(hidden[0]).tolist(), torch.cat(taps, dim=-1)[0]

    best, features = run(prompt, 0)
    tokens, rounds = [*prompt, best[-1]], 0
    state = DraftState(drafter, target.embedding)
    while tokens[-1] != target.eos_token_id and len(tokens) < end:
        start = len(tokens) - 1
        rows = min(BLOCK_SIZE, end - start)
        # The drafter always sees a whole block; only the verification gets shorter at the end.
        draft = state.propose(features, tokens[-1])[: rows - 1]
        best, taps = run([tokens[-1], *draft], start)
        accepted = accepted_length(draft, best)
        produced = best[: min(accepted + 1, end - start - 1)]
        if target.eos_token_id in produced:
            produced = produced[: produced.index(target.eos_token_id) + 1]
        tokens += produced
        features = taps[: len(produced)]
        rounds += 1
    return tokens, rounds


def check_live(
    target: Target, drafter: Drafter, answers: list[Answer], followed: list[tuple[int, int]],
    max_new: int,
) -> int:  # fmt: skip
    """Run the real loop; returns how many answers and round counts are the same."""
    same = 0
    for answer, (_, rounds) in zip(answers, followed, strict=False):
        tokens, real_rounds = decode(target, drafter, answer, max_new)
        same += tokens == answer.tokens and real_rounds == rounds
    return same


def print_table(result: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print tau per set and kind as a Markdown table."""
    lines = ["| set | kind | tokens | drafter | prompt lookup |", "|---|---|---|---|---|"]
    for name, kinds in result.items():
        for kind in (*KINDS, "all"):
            row = kinds[kind]
            lines.append(
                f"| {name} | {kind} | {row['tokens']} | {row['drafter']:.2f} |"
                f" {row['lookup']:.2f} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


def load_answers(args: argparse.Namespace, target: Target) -> dict[str, list[Answer]]:
    """Return the target's answers to both sets."""
    tokenizer = Tokenizer.from_file(str(args.target / "tokenizer.json"))
    return {
        name: greedy_answers(
            target, tokenizer, read_jsonl(PROMPT_FOLDER / f"{name}.jsonl"), args.max_new
        )
        for name in ("heldout", "unseen")
    }


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument(
        "--check", type=int, default=2, help="prompts per set for the real loop"
    )
    parser.add_argument("--vocab", type=Path, help="JSON list of token ids to draft from")
    parser.add_argument("--max-new", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    target = Target(args.target)
    drafter = load_drafter(args.drafter)
    vocab = torch.arange(target.vocab_size)
    if args.vocab:
        vocab = torch.tensor(json.loads(args.vocab.read_text(encoding="utf-8")))
        args.check = 0  # the real loop drafts from the whole vocabulary
    report = Report()
    with torch.inference_mode():
        for name, answers in load_answers(args, target).items():
            order = sorted(range(len(answers)), key=lambda i: len(answers[i].tokens))
            followed: list[tuple[int, int]] = [(0, 0)] * len(answers)
            for start in range(0, len(order), 35):
                part = order[start : start + 35]
                results = follow_drafter(
                    drafter, target.embedding, [answers[i] for i in part], vocab
                )
                for i, result in zip(part, results, strict=True):
                    followed[i] = result
            for answer, result in zip(answers, followed, strict=True):
                report.add(name, answer.kind, "drafter", *result)
                report.add(name, answer.kind, "lookup", *follow_lookup(answer))
            if args.check:
                picks = answers[:: max(1, len(answers) // args.check)][: args.check]
                chosen = followed[:: max(1, len(answers) // args.check)][: args.check]
                same = check_live(target, drafter, picks, chosen, args.max_new)
                LOGGER.info("%s: %d of %d real loops agree", name, same, len(picks))
    result = report.as_json()
    print_table(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
