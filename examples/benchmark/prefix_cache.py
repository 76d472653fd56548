"""The time to the first token with and without the prefix cache, on one engine.

A chat of some turns, and questions on one long text. Both engines answer each prompt in turn; the
clock covers the prompt's own steps, up to the first token. The text is the package's own prose,
repeated where it is too short.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from trtllm_dflash import Engine, Generation, __version__

CACHE_MIB = 1024
QUESTIONS = 20
TURNS = 5


class Pair:
    """One engine loaded twice: `warm` has a prefix cache, `cold` has none."""

    def __init__(self, directory: Path, max_tokens: int) -> None:
        self.warm = Engine.load(directory, prefix_cache_mib=CACHE_MIB)
        self.cold = Engine.load(directory)
        self._max_tokens = max_tokens

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        assert self.warm.tokenizer is not None
        return self.warm.tokenizer.encode(text)

    def ask(self, prompt: list[int]) -> tuple[dict[str, Any], Generation]:
        """Return the seconds of both, and the answer, which is the same."""
        cold, warm = (
            engine.generate([prompt], max_tokens=self._max_tokens)[0]
            for engine in (self.cold, self.warm)
        )
        same = (warm.token_ids, warm.acceptance_lengths)
        if same != (cold.token_ids, cold.acceptance_lengths):
            raise click.ClickException("a warm answer differs from the cold one.")
        row = {
            "prompt_tokens": len(prompt),
            "cached_tokens": warm.cached_tokens,
            "cold_seconds": cold.prefill_seconds,
            "warm_seconds": warm.prefill_seconds,
        }
        return row, warm


def chat(pair: Pair, words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the turns of a conversation; each prompt begins with the last one and its answer."""
    prompt: list[int] = []
    for turn in range(TURNS):
        said = " ".join(words[60 * turn : 60 * (turn + 1)])
        prompt += pair.encode(f"\nUser: {said}\nAssistant:")
        row, answer = pair.ask(prompt)
        prompt += answer.token_ids
        yield {"case": f"chat, turn {turn + 1}"} | row


def questions(pair: Pair, text: str, num_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield questions on one document of so many tokens."""
    tokens = pair.encode(text)
    document = (tokens * (num_tokens // len(tokens) + 1))[:num_tokens]
    for number in range(QUESTIONS):
        prompt = [
            *document,
            *pair.encode(f"\nQuestion {number + 1}: What comes next?\nAnswer:"),
        ]
        yield {"case": f"document, question {number + 1}"} | pair.ask(prompt)[0]


def mean_of(rows: list[dict[str, Any]], case: str) -> dict[str, Any]:
    """Return the mean of some rows under one name."""
    numbers = [name for name in rows[0] if name != "case"]
    return {"case": case} | {n: sum(row[n] for row in rows) / len(rows) for n in numbers}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a table; the ratio is what counts."""
    lines = [["case", "prompt", "known", "cold TTFT", "warm TTFT", "cold ÷ warm"], ["---"] * 6]
    for row in rows:
        cold, warm = row["cold_seconds"], row["warm_seconds"]
        lines.append(
            [
                row["case"],
                f"{row['prompt_tokens']:.0f}",
                f"{row['cached_tokens']:.0f}",
                f"{cold:.3f} s",
                f"{warm:.3f} s",
                f"{cold / warm:.1f}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@click.command()
@click.argument("engine", type=Path)
@click.option("--document-tokens", default=1500, show_default=True)
@click.option("--max-tokens", default=16, show_default=True, help="of each answer")
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(engine: Path, document_tokens: int, max_tokens: int, json_file: Path | None) -> None:
    """Measure a chat and a document, print a table, and write the figures."""
    pair = Pair(engine, max_tokens)
    text = files("trtllm_dflash.evaluate").joinpath("prose.txt").read_text(encoding="utf-8")
    pair.ask(pair.encode("Warm up both engines before the clock counts."))
    asked = list(questions(pair, text, document_tokens))
    rows = [
        *chat(pair, text.split()),
        asked[0],
        mean_of(asked[1:], f"document, questions 2 to {QUESTIONS}"),
    ]
    click.echo(markdown(rows))
    if json_file:
        facts = {
            "engine": str(engine),
            "version": __version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": rows,
        }
        json_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
