"""Sample user messages from the target itself, for prompts that no template covers.

The target continues the chat prefix up to the user's turn, at temperature 1 and with an optional
opening word, until it ends the turn. Only short, clean, distinct messages are kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from pathlib import Path

import torch
from generate_data import PREFIX, Batch, Sequence
from target_model import Target
from tokenizers import Tokenizer

LOGGER = logging.getLogger("magpie")

# Openings widen the spread: without one, the target starts most messages the same way.
OPENINGS = (
    "", "", "", "", "What", "How", "Why", "Can you", "Write", "Explain", "List", "Give me", "I",
    "Is", "Describe", "Tell me", "Rewrite", "Summarize", "Create", "Solve", "If", "Find",
    "Calculate", "Write a Python", "Write a function", "Name", "Translate", "Correct", "Who",
    "When", "Which", "Compare", "Suggest", "Help me", "Should", "My", "Please", "In", "Generate",
    "Edit", "Convert", "A", "The", "Design", "Do", "Where", "Identify", "Classify", "Compose",
)  # fmt: skip
KIND_PATTERNS = (
    ("code", r"python|function|code|javascript|html|sql|program|script|class |algorithm|array"),
    (
        "rewriting",
        r"^(rewrite|summari|correct|edit|paraphrase|translate|convert|rephrase|extract)",
    ),
    ("maths", r"\d+\s*[-+*/x]\s*\d+|calculate|solve|how many|how much|percent|equation|sum of"),
    (
        "lists",
        r"^(list|name|give me|suggest|generate a list)|\b(three|five|ten|\d+) (ways|tips)",
    ),
)


def classify(text: str) -> str:
    """Return the kind of a sampled message; "self" where no pattern fits."""
    lowered = text.lower()
    for kind, pattern in KIND_PATTERNS:
        if re.search(pattern, lowered):
            return kind
    return "self"


def is_clean(text: str) -> bool:
    """Return whether a sampled message can serve as a prompt."""
    words = text.split()
    if not 3 <= len(words) <= 80 or "\ufffd" in text or "<|" in text:
        return False
    # Repetition is how small models fail at temperature 1.
    return len({w.lower() for w in words}) >= 0.55 * len(words) and text.isascii()


def sample_batch(
    target: Target,
    prefix: list[int],
    openings: list[list[int]],
    *,
    max_tokens: int,
    top_p: float,
) -> list[list[int] | None]:
    """Sample one message per opening; None where it did not end within max_tokens."""
    rows = [Sequence({"id": str(i)}, prefix + ids, 0) for i, ids in enumerate(openings)]
    batch = Batch(target, prefix[:-1], rows)
    finished: list[list[int] | None] = [None] * len(openings)
    for _ in range(max_tokens):
        probabilities, ids = target.logits(batch.last).float().softmax(-1).topk(256)
        probabilities[probabilities.cumsum(-1) - probabilities > top_p] = 0
        tokens = ids.gather(1, probabilities.multinomial(1)).flatten()
        alive = []
        for i, token in enumerate(tokens.tolist()):
            row = batch.rows[i]
            if token == target.eos_token_id:
                finished[int(row.record["id"])] = row.tokens[len(prefix) :]
            else:
                row.tokens.append(token)
                alive.append(i)
        if len(alive) < 8:
            break
        if len(alive) < len(tokens):
            tokens = tokens[alive]
            batch.keep(torch.tensor(alive))
        batch.features = batch.features[:2]
        batch.step(tokens)
    return finished


def main() -> None:
    """Sample messages until the time or the count is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--output", type=Path, required=True, help="JSONL to append to")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--top-p", type=float, default=0.97)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    target = Target(args.target, dtype=torch.bfloat16)
    tokenizer = Tokenizer.from_file(str(args.target / "tokenizer.json"))
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False).ids
    openings = [tokenizer.encode(text, add_special_tokens=False).ids for text in OPENINGS]
    seen: set[str] = set()
    start = time.monotonic()
    with torch.inference_mode(), args.output.open("a", encoding="utf-8") as file:
        while time.monotonic() - start < args.seconds:
            picks = torch.randint(len(openings), (args.batch,)).tolist()
            sampled = sample_batch(
                target,
                prefix,
                [openings[i] for i in picks],
                max_tokens=args.max_tokens,
                top_p=args.top_p,
            )
            for ids in sampled:
                text = tokenizer.decode(ids).strip() if ids else ""
                if is_clean(text) and text.lower() not in seen:
                    seen.add(text.lower())
                    line = {"kind": classify(text), "prompt": text, "source": "self"}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            LOGGER.info("%d messages in %.0f s", len(seen), time.monotonic() - start)


if __name__ == "__main__":
    main()
