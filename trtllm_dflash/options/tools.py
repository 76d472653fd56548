"""Tools that a model may call: checked, since their descriptions come from strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import as_list, check_integer, shown

MAX_TOOLS = 128
MAX_TOOL_CHARACTERS = 1 << 18  # of all tools as JSON
MAX_TOOL_DEPTH = 64
MAX_CALLS = 8  # that a grammar lets an answer have
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})
_CHOICES = ("none", "auto", "required")

ToolObject: TypeAlias = "dict[str, Any]"
# "none", "auto", "required", or {"type": "function", "function": {"name": …}}.
ToolChoice: TypeAlias = "str | Mapping[str, Any]"


def checked_tools(tools: Any) -> list[ToolObject]:
    """Return tools in OpenAI's form, as plain data: objects of type "function".

    Raises:
        UsageError: for what is none, for names given twice, and beyond the limits.
    """
    expected = 'a list of {"type": "function", "function": {"name": …}}'
    given = as_list("tools", tools, expected=expected, limit=MAX_TOOLS)
    if not given or len(given) > MAX_TOOLS:
        held = f"more than {MAX_TOOLS}" if given else "no"
        raise UsageError(f"tools holds {held} entries, expected 1 to {MAX_TOOLS}.")
    check_depth("tools", given, MAX_TOOL_DEPTH)
    try:
        text = json.dumps(given, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"tools holds what JSON does not have: {str(error)[:200]}.") from None
    if len(text) > MAX_TOOL_CHARACTERS:
        raise UsageError(
            f"tools has {len(text)} characters as JSON, and at most {MAX_TOOL_CHARACTERS} are"
            " taken."
        )
    found = [
        _checked_tool(tool, f"tools[{place}]") for place, tool in enumerate(json.loads(text))
    ]
    names = [tool["function"]["name"] for tool in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"tools has the name {twice[0]!r} twice.")
    return found


def chosen_tools(
    tools: list[ToolObject], tool_choice: Any, *, parallel: bool = True
) -> tuple[list[ToolObject], int] | None:
    """Return the tools of which an answer must call one, and how many calls it may have.

    None where the choice leaves it open, "auto", or wants none.

    Raises:
        UsageError: for a choice that is none, or of a tool that is not given.
    """
    if isinstance(tool_choice, Mapping):
        function = tool_choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        chosen = [tool for tool in tools if tool["function"]["name"] == name]
        if tool_choice.get("type") != "function" or not chosen:
            known = ", ".join(tool["function"]["name"] for tool in tools)
            raise UsageError(
                f"tool_choice is {shown(dict(tool_choice))}, and the tools are: {known}."
            )
        return chosen, 1
    if tool_choice not in _CHOICES:
        raise UsageError(
            f"tool_choice is {shown(tool_choice)}, expected {', '.join(_CHOICES)} or an object that"
            " names a tool."
        )
    if tool_choice != "required":
        return None
    return tools, MAX_CALLS if parallel else 1


def guided_tools_text(given: Any) -> str:
    """Return what `guided_tools` says as JSON: {"tools": …, "max_calls": …}.

    It is a list of tools, an object of those two keys, or either as JSON.

    Raises:
        UsageError: for anything else.
    """
    value = given
    if isinstance(given, str):
        if len(given) > MAX_TOOL_CHARACTERS:
            raise UsageError(
                f"guided_tools has {len(given)} characters, and at most {MAX_TOOL_CHARACTERS} are"
                " taken."
            )
        try:
            value = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"guided_tools is not JSON ({str(error)[:200]}).") from None
    max_calls: Any = MAX_CALLS
    if isinstance(value, Mapping):
        unknown = sorted(map(str, value.keys() - {"tools", "max_calls"}))
        if unknown:
            raise UsageError(
                f"guided_tools has the unknown key {shown(unknown[0])}; it takes: tools, max_calls."
            )
        max_calls = value.get("max_calls", MAX_CALLS)
        value = value.get("tools")
    check_integer("guided_tools.max_calls", max_calls, low=1, high=MAX_CALLS)
    return json.dumps({"tools": checked_tools(value), "max_calls": int(max_calls)})


def check_depth(name: str, value: Any, max_depth: int) -> None:
    """Raise UsageError for containers nested more than `max_depth` deep."""
    level = [value]
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            below += _entries(item)
        if not below:
            return
        if len(below) > MAX_TOOL_CHARACTERS:
            raise UsageError(
                f"{name} holds more than {MAX_TOOL_CHARACTERS} values on one level."
            )
        level = below
    raise UsageError(f"{name} is nested more than {max_depth} levels deep.")


def _entries(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _checked_tool(tool: Any, where: str) -> ToolObject:
    if not isinstance(tool, dict):
        raise UsageError(f"{where} is {shown(tool)}, expected an object.")
    if tool.get("type", "function") != "function":
        raise UsageError(
            f"{where}: its type is {shown(tool['type'])}, and only functions can be called."
        )
    function = tool.get("function")
    if not isinstance(function, dict):
        raise UsageError(f"{where}: its function is {shown(function)}, expected an object.")
    unknown = sorted(function.keys() - _FUNCTION_KEYS)
    if unknown:
        raise UsageError(
            f"{where}: its function has the unknown key {shown(unknown[0])}; it takes:"
            f" {', '.join(sorted(_FUNCTION_KEYS))}."
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: its name is {shown(name)}, expected 1 to 64 letters, digits, or any of _.-"
        )
    description = function.get("description")
    if not isinstance(description, str | None):
        raise UsageError(f"{where}: its description is {shown(description)}, expected a text.")
    if not isinstance(function.get("parameters", {}), dict | None):
        raise UsageError(
            f"{where}: its parameters are {shown(function['parameters'])}, expected a JSON schema."
        )
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    kept = {"name": name, "description": description or "", "parameters": parameters}
    return {"type": "function", "function": kept}
