"""What a model may write before an answer that a grammar rules: its reasoning.

A model that thinks in `<think> … </think>`, as Qwen3, may do so first. One of gpt-oss may write its
analysis, and the answer is the body of its final message. The prompt decides: where it has closed
the reasoning, or begun the final message, the answer begins at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtllm_dflash.runtime.text.harmony import harmony_marks

_ANY_TEXT = r"TEXT: /(.|\n)*/"
_THINK, _END_THINK = "<think>", "</think>"


def think_prefix(
    prompt_ids: Sequence[int], added: Mapping[str, int], special: Mapping[str, int]
) -> str | None:
    """Return a grammar in Lark's notation that has `@answer` behind its reasoning.

    None where the answer begins at once. `added` has the ids of all added tokens, `special` those
    of special ones, which begin turns.
    """
    begin, end = added.get(_THINK), added.get(_END_THINK)
    if begin is None or end is None:
        return None
    turn = set(special.values()) - {begin, end}
    for token in reversed(prompt_ids):
        if token == end:
            return None
        if token == begin:
            return f"start: TEXT <[{end}]> SPACE @answer\nSPACE: /[ \\n]*/\n{_ANY_TEXT}"
        if token in turn:
            break
    return (
        f"start: think? @answer\nthink: <[{begin}]> TEXT <[{end}]> SPACE\n"
        f"SPACE: /[ \\n]*/\n{_ANY_TEXT}"
    )


def harmony_prefix(prompt_ids: Sequence[int], special: Mapping[str, int]) -> str | None:
    """Return the like for gpt-oss: messages of analysis, then the final one.

    None where the prompt has begun a body, or has no message at all.
    """
    marks = harmony_marks(special)
    if marks is None:
        return None
    last = next((marks[token] for token in reversed(prompt_ids) if token in marks), None)
    if last != "start":
        return None
    channel, message = _mark(special, "<|channel|>"), _mark(special, "<|message|>")
    constrain = _mark(special, "<|constrain|>")
    lines = [
        f'start: analysis? {channel} "final" constrain? {message} @answer',
        f'constrain: " "? {constrain} "json"' if constrain else 'constrain: " json"',
        analysis_rule(special),
        _ANY_TEXT,
    ]
    return "\n".join(lines)


def analysis_rule(special: Mapping[str, int]) -> str:
    """Return the rule of one message of analysis, and of the next one's beginning."""
    channel, message = _mark(special, "<|channel|>"), _mark(special, "<|message|>")
    end, start = _mark(special, "<|end|>"), _mark(special, "<|start|>")
    return f'analysis: {channel} "analysis" {message} TEXT {end} {start} "assistant"'


def _mark(special: Mapping[str, int], text: str) -> str:
    return f"<[{special[text]}]>" if text in special else ""
