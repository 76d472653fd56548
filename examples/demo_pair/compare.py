"""Runs one prompt on the plain engine and on the DFlash engine and shows both answers side by side.

python compare.py PLAIN_ENGINE DFLASH_ENGINE [PROMPT]
"""

from __future__ import annotations

import click
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from trtllm_dflash import Engine, Generation

TASK = "Write a Python function that returns the sum of the even numbers in a list"
PROMPT = f"{TASK}, and explain it."
WARM_UP_TOKENS = 8


def measured(engine: Engine, prompt: str, max_tokens: int) -> Generation:
    """Return the answer of an engine that has already run a few steps."""
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode_chat(prompt)
    engine.generate([ids], max_tokens=WARM_UP_TOKENS)
    return engine.generate([ids], max_tokens=max_tokens)[0]


def speed(answer: Generation) -> float:
    """Return the tokens per second of the generation steps.

    The prompt's step, which gives the first token, does not count.
    """
    return (len(answer.token_ids) - 1) / answer.decode_seconds


def panel(title: str, answer: Generation, width: int) -> Panel:
    """Return the text with its speed, steps and acceptance length below."""
    steps = len(answer.acceptance_lengths)
    footer = f"{speed(answer):.1f} tokens/s · {steps} steps · τ {answer.acceptance_length:.2f}"
    return Panel(Text(answer.text), title=title, subtitle=footer, width=width)


@click.command()
@click.argument("plain", type=click.Path(exists=True))
@click.argument("dflash", type=click.Path(exists=True))
@click.argument("prompt", default=PROMPT)
@click.option("--max-tokens", default=96, show_default=True, help="longest answer")
def main(plain: str, dflash: str, prompt: str, max_tokens: int) -> None:
    """Answer PROMPT with the engines PLAIN and DFLASH of the same target."""
    answers = {}
    for name, path in (("plain decoding", plain), ("DFlash, one engine", dflash)):
        engine = Engine.load(path)
        weights = engine.config.weight_only_precision or engine.config.dtype
        answers[f"{name}, {weights}"] = measured(engine, prompt, max_tokens)
    console = Console()
    console.print(f"[bold]{prompt}[/bold]\n")
    width = min(60, console.width // 2 - 1)
    console.print(Columns([panel(name, answer, width) for name, answer in answers.items()]))
    before, after = answers.values()
    same = "the same text" if before.token_ids == after.token_ids else "DIFFERENT TEXTS"
    console.print(f"\n{same}, {speed(after) / speed(before):.2f}× the tokens per second\n")
    if before.token_ids != after.token_ids:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
