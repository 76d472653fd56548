"""What an answer may be: a JSON schema, a regular expression, choices or a grammar.

The names are vLLM's, and `response_format` is OpenAI's. All of them come from strangers, so their
size and depth are checked here. `runtime/grammar` compiles them, with limits of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import as_list, check_flag, shown, typed_text
from trtllm_dflash.options.fields import cli_option
from trtllm_dflash.options.row_sampling import RowSampling
from trtllm_dflash.options.tools import check_depth, guided_tools_text

MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_SCHEMA_DEPTH = 64
MAX_CHOICES = 1024
ANY_OBJECT = '{"type": "object"}'
_FORMATS = ("text", "json_object", "json_schema")
_SCHEMA_KEYS = frozenset({"name", "schema", "description", "strict"})

GrammarForm = Literal["json", "regex", "choice", "grammar", "tools"]


class AnswerGrammar(NamedTuple):
    """What an answer must be; `text` is JSON for "json", "choice" and "tools"."""

    form: GrammarForm
    text: str


class GuidanceOptions(TypedDict, total=False):
    """The fields of `Guidance` for type checkers."""

    response_format: str | Mapping[str, Any] | None
    guided_json: str | Mapping[str, Any] | None
    guided_regex: str | None
    guided_choice: Iterable[str] | None
    guided_grammar: str | None
    guided_tools: str | Mapping[str, Any] | Iterable[Mapping[str, Any]] | None
    tool_calls: bool


@dataclass(frozen=True, kw_only=True)
class Guidance(RowSampling):
    """How tokens are chosen, and what an answer may be; one of the first six at most.

    response_format  {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema",
                     "json_schema": {"name": …, "schema": …}}; or such an object as JSON.
    guided_json      a JSON schema, as an object or as JSON. The answer is JSON with the white space
                     of Python's json.dumps.
    guided_regex     a regular expression that the whole answer matches.
    guided_choice    texts, of which the answer is one.
    guided_grammar   a grammar in Lark's notation as llguidance reads it; its rule "start" is the
                     answer.
    guided_tools     tools in OpenAI's form, of which the answer calls one or more; or an object
                     with these "tools" and "max_calls".
    tool_calls       calls of tools are read, and are no part of the text or the reasoning then.
    """

    response_format: str | None = None
    guided_json: str | None = field(
        default=None,
        metadata=cli_option(
            "answer in JSON of this schema", metavar="SCHEMA", parse=typed_text
        ),
    )
    guided_regex: str | None = field(
        default=None,
        metadata=cli_option(
            "answer with what matches this expression", metavar="REGEX", parse=typed_text
        ),
    )
    guided_choice: tuple[str, ...] | None = None
    guided_grammar: str | None = None
    guided_tools: str | None = None
    tool_calls: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("tool_calls", self.tool_calls)
        for name in ("response_format", "guided_json"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _json_text(name, getattr(self, name)))
        for name in ("guided_regex", "guided_grammar"):
            if getattr(self, name) is not None:
                _check_grammar_text(name, getattr(self, name))
        if self.guided_choice is not None:
            object.__setattr__(self, "guided_choice", _choices(self.guided_choice))
        if self.guided_tools is not None:
            object.__setattr__(self, "guided_tools", guided_tools_text(self.guided_tools))
        self._check_one()

    @property
    def grammar(self) -> AnswerGrammar | None:
        """Return what the answer must be; None where it may be anything."""
        if self.response_format is not None:
            return _format_grammar(json.loads(self.response_format))
        if self.guided_json is not None:
            return AnswerGrammar("json", self.guided_json)
        if self.guided_regex is not None:
            return AnswerGrammar("regex", self.guided_regex)
        if self.guided_choice is not None:
            return AnswerGrammar("choice", json.dumps(self.guided_choice))
        if self.guided_grammar is not None:
            return AnswerGrammar("grammar", self.guided_grammar)
        if self.guided_tools is not None:
            return AnswerGrammar("tools", self.guided_tools)
        return None

    def _check_one(self) -> None:
        names = [name for name in GuidanceOptions.__annotations__ if name != "tool_calls"]
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(given)} are given together. Give one of them: each says all that"
                " the answer may be."
            )
        _ = self.grammar


def _format_grammar(given: dict[str, Any]) -> AnswerGrammar | None:
    """Return what a response_format asks for.

    Raises:
        UsageError: for what is none.
    """
    name = given.get("type")
    if name not in _FORMATS:
        raise UsageError(
            f"response_format: its type is {shown(name)}, expected {', '.join(_FORMATS)}."
        )
    allowed = {"type", "json_schema"} if name == "json_schema" else {"type"}
    _check_keys("response_format", given, allowed)
    if name == "text":
        return None
    if name == "json_object":
        return AnswerGrammar("json", ANY_OBJECT)
    wrapped = given.get("json_schema")
    if not isinstance(wrapped, dict):
        raise UsageError(
            f"response_format: its json_schema is {shown(wrapped)}, expected an object with name"
            " and schema."
        )
    _check_keys("response_format.json_schema", wrapped, _SCHEMA_KEYS)
    schema = wrapped.get("schema", {})
    if not isinstance(schema, dict | bool):
        raise UsageError(
            f"response_format.json_schema: its schema is {shown(schema)}, expected an object."
        )
    return AnswerGrammar("json", json.dumps(schema))


def _check_keys(name: str, given: Mapping[str, Any], allowed: Iterable[str]) -> None:
    unknown = sorted(given.keys() - set(allowed))
    if unknown:
        known = ", ".join(sorted(allowed))
        raise UsageError(f"{name} has the unknown key {shown(unknown[0])}; it takes: {known}.")


def _json_text(name: str, given: Any) -> str:
    """Return an object as JSON, from an object or from JSON.

    Raises:
        UsageError: for anything else, and beyond the limits of size and depth.
    """
    value = given
    if isinstance(given, str):
        _check_grammar_text(name, given)
        try:
            value = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{name} is not JSON ({str(error)[:200]}).") from None
    if isinstance(value, bool) and name == "guided_json":
        return json.dumps(value)  # a schema may be true or false
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {shown(value)}, expected an object, or one as JSON.")
    check_depth(name, value, MAX_SCHEMA_DEPTH)
    try:
        text = json.dumps(value, allow_nan=False)
        text.encode()
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} holds what JSON does not have: {str(error)[:200]}.") from None
    _check_grammar_text(name, text)
    return text


def _check_grammar_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or not text:
        raise UsageError(f"{name} is {shown(text)}, expected a text that is not empty.")
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise UsageError(
            f"{name} has {len(text)} characters, and at most {MAX_GRAMMAR_CHARACTERS} are taken."
        )
    if "\0" in text:
        raise UsageError(f"{name} has a NUL character at place {text.index(chr(0))}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} has half a surrogate pair at place {error.start}, which is no character."
        ) from None


def _choices(given: Any) -> tuple[str, ...]:
    expected = "a list of texts"
    choices = as_list("guided_choice", given, expected=expected, limit=MAX_CHOICES)
    if not choices or len(choices) > MAX_CHOICES:
        held = f"more than {MAX_CHOICES}" if choices else "no"
        raise UsageError(f"guided_choice holds {held} texts, expected 1 to {MAX_CHOICES}.")
    for choice in choices:
        _check_grammar_text("guided_choice", choice)
    if sum(map(len, choices)) > MAX_GRAMMAR_CHARACTERS:
        raise UsageError(
            f"guided_choice has {sum(map(len, choices))} characters, and at most"
            f" {MAX_GRAMMAR_CHARACTERS} are taken."
        )
    return tuple(choices)
