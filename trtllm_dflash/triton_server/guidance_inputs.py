"""The inputs that say what an answer may be, and which tools a chat has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.tools import ToolChoice, ToolObject, checked_tools, chosen_tools

_GUIDE, _GUIDE_TYPE = "guided_decoding_guide", "guided_decoding_guide_type"
_GUIDE_TYPES = ("json", "json_schema", "regex")
_OPTIONS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


@dataclass(frozen=True)
class ToolInputs:
    """The tools of a chat, checked as far as that needs no model."""

    tools: list[ToolObject]
    choice: ToolChoice = "auto"
    parallel: bool = True


def guidance_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `Guidance` that a request's values ask for.

    Raises:
        UsageError: for TensorRT-LLM's names without each other, or of an unknown type.
    """
    options = {name: values[name] for name in _OPTIONS if name in values}
    guide_type = values.get(_GUIDE_TYPE)
    if guide_type is None and _GUIDE not in values:
        return options
    if guide_type not in _GUIDE_TYPES:
        raise UsageError(
            f"{_GUIDE_TYPE} is {shown(guide_type)}, expected {', '.join(_GUIDE_TYPES)}."
        )
    if guide_type == "json":
        options["response_format"] = '{"type": "json_object"}'
        return options
    if _GUIDE not in values:
        raise UsageError(f"{_GUIDE} is missing, and {_GUIDE_TYPE} is {guide_type}.")
    name = "guided_json" if guide_type == "json_schema" else "guided_regex"
    if name in options:
        raise UsageError(f"{name} is given twice, as {_GUIDE} too.")
    options[name] = values[_GUIDE]
    return options


def tool_inputs(values: Mapping[str, Any], tools: Any) -> ToolInputs | None:
    """Return the tools of a request; `tools` is what its input of that name holds, or None.

    Raises:
        UsageError: for tools or a choice that are none.
    """
    given = values.get("tool_choice", "auto")
    choice: Any = given
    if given.lstrip().startswith("{"):
        try:
            choice = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"tool_choice is not JSON ({str(error)[:200]}).") from None
    parallel = values.get("parallel_tool_calls", True)
    if tools is None:
        if choice not in ("auto", "none"):
            raise UsageError("tool_choice is given, and there are no tools.")
        return None
    checked = checked_tools(tools)
    chosen_tools(checked, choice, parallel=parallel)
    return ToolInputs(checked, choice, parallel)
