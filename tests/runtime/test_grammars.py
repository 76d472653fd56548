"""Grammars from strangers: refused in our words, bounded, and with the model's reasoning before."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.grammar_engines import (
    END_THINK,
    THINK,
    VOCAB_SIZE,
    grammar_config,
    grammar_engine,
    write_thinker,
)
from tests.runtime.test_harmony import ID_OF, ids
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.grammar.constraint import Constraint
from trtllm_dflash.runtime.grammar.grammars import Grammars
from trtllm_dflash.runtime.grammar.token_bytes import token_bytes
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
HARMONY = tuple(ID_OF)  # its tokens get the ids that `test_harmony` gives them


@pytest.fixture(name="grammars", scope="module")
def fixture_grammars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Grammars]:
    """Return those of a model that thinks, and of one like gpt-oss."""
    root = tmp_path_factory.mktemp("tokenizers")
    config = grammar_config()
    found = {"think": Grammars(Tokenizer(write_thinker(root / "think")), config)}
    harmony = tiny.write_byte_level(root / "harmony", special=HARMONY)
    config = grammar_config(vocab_size=263)
    object.__setattr__(config, "model_type", "gpt_oss")
    found["harmony"] = Grammars(Tokenizer(harmony), config)
    return found


def constraint(
    grammars: Grammars, prompt: list[int] | None = None, **options: Any
) -> Constraint:
    """Return the constraint of a request with these options."""
    request: Any = SimpleNamespace(
        input_ids=np.array(prompt or [72]),
        stop_token_ids=frozenset({tiny.EOS}),
        min_tokens=options.get("min_tokens", 0),
        constraint=None,
    )
    grammars.constrain([request], SamplingParams(**options))
    assert isinstance(request.constraint, Constraint)
    return request.constraint


def follow(found: Constraint, tokens: list[int]) -> int:
    """Commit tokens one by one, each of which must be allowed, and return how many were taken."""
    for place, token in enumerate(tokens):
        row = found.next_step([], 0).allowed[0]
        assert row[token // 32] >> (token % 32) & 1, (place, tokens[:place], token)
        found.commit([token])
        if found.has_ended:
            return place + 1
    return len(tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guided_regex": "["}, "the regular expression cannot be used: .*unclosed"),
        ({"guided_regex": r"(a)\1"}, "the regular expression cannot be used: .*backref"),
        ({"guided_regex": "(?=a)b"}, "the regular expression cannot be used"),
        ({"guided_regex": ""}, "guided_regex is '', expected a text that is not empty"),
        ({"guided_regex": "a" * 70_000}, "guided_regex has 70000 characters, and at most"),
        ({"guided_json": {"not": {}}}, 'the JSON schema cannot be used: .*"not"'),
        ({"guided_json": {"$ref": "http://x/y"}}, "the JSON schema cannot be used: "),
        ({"guided_json": {"$ref": "#"}}, "JSON schema cannot be used: no answer can be of it"),
        ({"guided_json": {"type": "x"}}, "the JSON schema cannot be used: .*type: x"),
        ({"guided_json": "{"}, "guided_json is not JSON"),
        ({"guided_json": "[1]"}, r"guided_json is \[1\], expected an object"),
        ({"guided_json": {"a": {1, 2}}}, "guided_json holds what JSON does not have"),
        ({"guided_grammar": "start: foo"}, 'the grammar cannot be used: .*unknown name: "foo"'),
        ({"guided_grammar": "start: start"}, "the grammar cannot be used: no answer can be"),
        ({"guided_grammar": "start: " + "(" * 3000}, "the grammar cannot be used: "),
        ({"guided_choice": []}, "guided_choice holds no texts, expected 1 to 1024"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice holds more than 1024 texts"),
        ({"guided_choice": ["a", 3]}, "guided_choice is 3, expected a text"),
        ({"guided_choice": "ab"}, "guided_choice is 'ab', expected a list of texts"),
        ({"response_format": {"type": "xml"}}, "response_format: its type is 'xml', expected"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format has the unknown key"),
        ({"response_format": {"type": "json_schema"}}, "its json_schema is None, expected"),
        (
            {"guided_regex": "a", "guided_json": {}},
            "guided_json and guided_regex are given together. Give one of them",
        ),
    ],
)
def test_bad_grammars_are_refused(
    grammars: dict[str, Grammars], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        constraint(grammars["think"], **options)


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(65):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="guided_json is nested more than 64 levels deep"):
        SamplingParams(guided_json=schema)


def test_forms_of_response_format() -> None:
    assert SamplingParams(response_format={"type": "text"}).grammar is None
    form = SamplingParams(response_format='{"type": "json_object"}').grammar
    assert form == SamplingParams(guided_json={"type": "object"}).grammar
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}}}
    form = SamplingParams(response_format=schema).grammar
    assert form == SamplingParams(guided_json='{"const": 1}').grammar


def test_a_grammar_beyond_limits_ends_its_request_alone(tmp_path: Path) -> None:
    """A regular expression that explodes while it is followed, beside an ordinary request."""
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    explodes = {"guided_regex": r"(\p{L}{1,500}x?){1,500}", "max_tokens": 200}
    with grammar_engine(tokenizer) as engine, engine.serve() as server:
        events: dict[str, list[Any]] = {"bad": [], "good": []}
        handles = [
            server.submit("a", on_event=events["bad"].append, **explodes),
            server.submit("b", on_event=events["good"].append, max_tokens=200, ignore_eos=True),
        ]
        server.close(drain_seconds=60)
        del handles
    assert isinstance(events["bad"][-1], UsageError)
    assert "the grammar cannot be followed any further" in str(events["bad"][-1])
    assert sum(len(event.token_ids) for event in events["good"]) == 200


def test_an_engine_of_before_takes_no_grammar(tmp_path: Path) -> None:
    config = grammar_config()
    object.__setattr__(config, "io", config.io[:-1])
    old = Grammars(Tokenizer(tiny.write_byte_level(tmp_path)), config)
    with pytest.raises(UsageError, match="this engine takes no grammars: it was built by"):
        constraint(old, guided_regex="a")


def test_no_tokenizer_and_no_library_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="a grammar needs text, and this engine has no token"):
        constraint(Grammars(None, grammar_config()), guided_regex="a")
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    found = Grammars(Tokenizer(tiny.write_byte_level(tmp_path)), grammar_config())
    with pytest.raises(
        UsageError, match="needs the package llguidance, which is not installed"
    ):
        constraint(found, guided_regex="a")


def test_thinking_comes_before_the_answer(grammars: dict[str, Grammars]) -> None:
    thinker = grammars["think"]
    json_answer = {"guided_json": {"const": [1]}}
    thought = [THINK, *b"hm {", END_THINK, *b"\n\n[1]"]
    assert follow(constraint(thinker, **json_answer), thought) == len(thought)
    assert follow(constraint(thinker, **json_answer), [*b"[1]"]) == 3
    # The prompt has begun to think, or has closed it.
    found = constraint(thinker, [tiny.USER, THINK], **json_answer)
    assert follow(found, thought[1:]) == len(thought) - 1
    found = constraint(thinker, [THINK, 5, END_THINK, tiny.USER, 7], **json_answer)
    assert follow(found, thought) == len(thought)
    closed = constraint(thinker, [tiny.USER, THINK, END_THINK], **json_answer)
    assert not _allows(closed, THINK)
    assert follow(closed, [*b"[1]"]) == 3


def test_no_stop_token_ends_the_thinking(grammars: dict[str, Grammars]) -> None:
    found = constraint(grammars["think"], guided_json={"const": 1})
    follow(found, [THINK, *b"so"])
    assert not _allows(found, tiny.EOS)
    assert _allows(found, END_THINK)


def _allows(found: Constraint, token: int) -> bool:
    return bool(found.next_step([], 0).allowed[0][token // 32] >> (token % 32) & 1)


def test_harmony_answers_are_in_the_final_message(grammars: dict[str, Grammars]) -> None:
    prompt = ids("<|start|>user<|message|>Hi<|end|><|start|>assistant")
    analysis = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant"
    for header in ("<|channel|>final", "<|channel|>final <|constrain|>json"):
        for before in ("", analysis):
            found = constraint(grammars["harmony"], prompt, guided_json={"const": 1})
            text = ids(f"{before}{header}<|message|>1")
            assert follow(found, text) == len(text)
            assert found.has_ended
    inside = ids("<|start|>assistant<|channel|>final<|message|>")
    assert follow(constraint(grammars["harmony"], inside, guided_json={"const": 1}), [49]) == 1


def test_tools_force_a_call(grammars: dict[str, Grammars]) -> None:
    two = {"guided_tools": [TOOL]}
    call = b'<tool_call>\n{"name": "f", "arguments": {"a": 7}}\n</tool_call>'
    found = constraint(grammars["think"], **two)
    follow(found, [*call, *b"\n", *call])
    assert not found.has_ended
    one = {"guided_tools": {"tools": [TOOL], "max_calls": 1}}
    found = constraint(grammars["think"], **one)
    assert follow(found, [*call]) == len(call)
    assert found.has_ended
    prompt = ids("<|start|>assistant")
    text = ids(
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>commentary"
        ' to=functions.f <|constrain|>json<|message|>{"a": 7}<|call|>'
    )
    found = constraint(grammars["harmony"], prompt, **one)
    assert follow(found, text) == len(text)
    assert found.has_ended


def test_schemas_may_not_loosen_our_options(grammars: dict[str, Grammars]) -> None:
    schema = {"const": {"a": [1, 2]}, "x-guidance": {"whitespace_flexible": True}}
    found = constraint(grammars["think"], [tiny.USER, THINK, END_THINK], guided_json=schema)
    text = [*json.dumps({"a": [1, 2]}).encode()]
    assert follow(found, text) == len(text)
    found = constraint(grammars["think"], [tiny.USER, THINK, END_THINK], guided_json=schema)
    follow(found, [*b'{"a": '])
    assert not _allows(found, ord(" "))


def test_bytes_of_tokens_are_those_of_their_texts(tmp_path: Path) -> None:
    for name, write in {"level": tiny.write_byte_level, "fallback": _byte_fallback}.items():
        tokenizer = Tokenizer(write(tmp_path / name))
        read = tokenizer.vocabulary()
        found = token_bytes(read.tokens, read.added, read.decoder, 280)
        for token in range(256):
            assert found[token] == bytes([token])
        assert found[read.added["</s>"]] == b"</s>"
        words = [text for text in ("▁hello", "▁") if text in read.tokens]
        assert [found[read.tokens[word]] for word in words] == [b" hello", b" "][: len(words)]


def _byte_fallback(directory: Path) -> Path:
    return tiny.write_byte_fallback(directory)


def test_unknown_decoders_are_refused() -> None:
    with pytest.raises(UsageError, match="a grammar needs to know the bytes of each token"):
        token_bytes({"a": 0}, {}, '{"type": "WordPiece"}', 4)


def test_ids_outside_the_vocabulary_are_never_allowed(grammars: dict[str, Grammars]) -> None:
    found = constraint(grammars["think"], [tiny.USER, THINK, END_THINK], guided_regex=".*")
    row = found.next_step([], 0).allowed[0]
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    assert not bits[VOCAB_SIZE - 1 :].any()
    assert bits[tiny.EOS]
