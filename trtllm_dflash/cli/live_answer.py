"""An answer on the terminal as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import click

from trtllm_dflash.runtime.outputs import Chunk


def text_of(chunk: Chunk) -> str:
    """Return what a chunk adds to the text."""
    return chunk.text


def ids_of(chunk: Chunk) -> str:
    """Return a chunk's token ids, for engines without a tokenizer."""
    return "".join(f"{token} " for token in chunk.token_ids)


def print_live(
    chunks: Iterable[Chunk],
    *,
    show_reasoning: bool,
    show: Callable[[Chunk], str] = text_of,
) -> str:
    """Print one answer's chunks, with its reasoning before the text if asked for; return the text.

    `show` returns what is printed of a chunk.
    """
    printed = ""
    in_reasoning = False
    for chunk in _with_line_end(chunks):
        if show_reasoning and chunk.reasoning:
            click.secho(chunk.reasoning, nl=False, dim=True)
            in_reasoning = True
        text = show(chunk)
        if text and in_reasoning:
            click.echo("\n")
            in_reasoning = False
        click.echo(text, nl=False)
        printed += text
    click.echo()
    return printed


def _with_line_end(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks; end the line that Ctrl-C leaves half printed."""
    try:
        yield from chunks
    except KeyboardInterrupt:
        click.echo()
        raise
