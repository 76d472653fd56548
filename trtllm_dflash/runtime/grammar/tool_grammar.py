"""The grammar of an answer that must call tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.runtime.grammar.answer_prefix import analysis_rule

_BEGIN, _END = "<tool_call>", "</tool_call>"


def tool_grammar(
    text: str, added: Mapping[str, int], harmony: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    """Return the parts of llguidance's JSON for an answer of calls; the first one is the start.

    text     JSON with the tools and the most calls, as `guided_tools_text` returns it.
    added    the ids of added tokens by text.
    harmony  the special tokens of a model with channels (gpt-oss); None for the others, which write
             <tool_call> around JSON.
    """
    wanted = json.loads(text)
    functions = [tool["function"] for tool in wanted["tools"]]
    rules = _hermes_rules if harmony is None else _harmony_rules
    marks = added if harmony is None else harmony
    names = [function["name"] for function in functions]
    main = {"lark_grammar": "\n".join(rules(names, wanted["max_calls"], marks))}
    arguments = [
        {"name": f"arguments{place}", "json_schema": function["parameters"]}
        for place, function in enumerate(functions)
    ]
    return [main, *arguments]


def _hermes_rules(names: list[str], max_calls: int, added: Mapping[str, int]) -> list[str]:
    more = f' ("\\n" call){{0,{max_calls - 1}}}' if max_calls > 1 else ""
    lines = [
        f"start: call{more}",
        f'call: {_written(_BEGIN, added)} "\\n" function "\\n" {_written(_END, added)}',
        f"function: {' | '.join(f'function{place}' for place in range(len(names)))}",
    ]
    for place, name in enumerate(names):
        begin = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        lines.append(f'function{place}: {begin} @arguments{place} "}}"')
    return lines


def _harmony_rules(names: list[str], _: int, special: Mapping[str, int]) -> list[str]:
    """Return rules of one call, which ends the answer: the tool's result begins a new one."""
    channel, message = _written("<|channel|>", special), _written("<|message|>", special)
    constrain, call = _written("<|constrain|>", special), _written("<|call|>", special)
    lines = [
        "start: analysis? call",
        analysis_rule(special),
        r"TEXT: /(.|\n)*/",
        f"call: {channel} function {call}",
        f"function: {' | '.join(f'function{place}' for place in range(len(names)))}",
    ]
    for place, name in enumerate(names):
        header = json.dumps(f"commentary to=functions.{name} ")
        lines.append(
            f'function{place}: {header} {constrain} "json" {message} @arguments{place}'
        )
    return lines


def _written(text: str, tokens: Mapping[str, int]) -> str:
    """Return a mark as its token, or as text for a vocabulary without it."""
    return f"<[{tokens[text]}]>" if text in tokens else json.dumps(text)
