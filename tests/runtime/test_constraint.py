"""Answers with a grammar: valid, the same with drafts and without, alone and in a batch."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.grammar_engines import grammar_engine
from tests.runtime.random_schemas import random_schema
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.outputs import Generation
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

NUM_SCHEMAS = 64
SAMPLED = {"temperature": 0.9, "top_k": 60, "seed": 5}
DIGITS = {"guided_regex": "[0-9]{3,5}", "max_tokens": 40}


@pytest.fixture(name="tokenizer", scope="module")
def fixture_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny.write_byte_level(tmp_path_factory.mktemp("tokenizer")))


def answer(tokenizer: Tokenizer, prompt: str = "Hi", **options: Any) -> Generation:
    """Return the answer of an engine that has no other request."""
    made = {name: options.pop(name) for name in ("accuracy", "block_size") if name in options}
    engine = _engine(tokenizer, **made)
    return engine.generate([prompt], **{"max_tokens": 300, **options})[0]


@cache
def _engine(tokenizer: Tokenizer, **made: Any) -> Engine:
    return grammar_engine(tokenizer, **made)


@pytest.mark.parametrize("part", range(8))
def test_answers_of_random_schemas_validate(tokenizer: Tokenizer, part: int) -> None:
    for seed in range(part, NUM_SCHEMAS, 8):
        schema = random_schema(seed)
        sampling = SAMPLED if seed % 2 else {}
        made = {"guided_json": schema, "max_tokens": 300, **sampling}
        drafted = answer(tokenizer, f"P{seed}", accuracy=seed % 3 / 2, **made)
        plain = answer(tokenizer, f"P{seed}", draft=False, **made)
        assert drafted.token_ids == plain.token_ids
        assert (drafted.text, drafted.finish_reason) == (plain.text, "stop"), seed
        jsonschema.validate(json.loads(drafted.text), schema)


def test_a_batch_is_what_its_answers_are_alone(tokenizer: Tokenizer) -> None:
    asked: list[dict[str, Any]] = [
        {"guided_json": random_schema(3), **SAMPLED},
        {"temperature": 0.8, "seed": 2, "max_tokens": 60},
        {"guided_choice": ["Berlin", "Bern", "Rome"]},
        {"max_tokens": 50},
        {**DIGITS, "draft_len": 2},
        {"guided_json": random_schema(4), "draft": False},
        {"guided_grammar": 'start: "(" start? ")"', "max_tokens": 20, "draft_len": "auto"},
    ]
    alone = [answer(tokenizer, f"P{n}", **options) for n, options in enumerate(asked)]
    for lookahead in (0, 1):
        with (
            grammar_engine(tokenizer, lookahead=lookahead) as engine,
            engine.serve(prompt_tokens_per_step=4) as server,
        ):
            together = _serve(server, asked)
        for number, single in enumerate(alone):
            assert together[number] == (single.text, single.token_ids), number


def _serve(server: Any, asked: list[dict[str, Any]]) -> dict[int, tuple[str, list[int]]]:
    """Return text and tokens of requests that are submitted at once."""
    import queue

    events: queue.Queue[tuple[int, Any]] = queue.Queue()
    for number, options in enumerate(asked):
        server.submit(
            f"P{number}",
            on_event=lambda event, number=number: events.put((number, event)),
            **{"max_tokens": 300, **options},
        )
    found: dict[int, tuple[str, list[int]]] = {n: ("", []) for n in range(len(asked))}
    num_open = len(asked)
    while num_open:
        number, event = events.get(timeout=60)
        if isinstance(event, Exception):
            raise event
        text, tokens = found[number]
        found[number] = (text + event.text, tokens + event.token_ids)
        num_open -= event.finish_info is not None
    return found


def test_forced_tokens_are_drafts(tokenizer: Tokenizer) -> None:
    schema = {"const": {"a rather long name": [1, 2, 3]}}
    found = answer(tokenizer, guided_json=schema, accuracy=0.0, block_size=8)
    assert json.loads(found.text) == schema["const"]
    # One token is the prefill's; each step has seven drafts, all forced, and a bonus.
    assert found.acceptance_lengths[:-1] == [8] * (len(found.acceptance_lengths) - 1)
    plain = answer(tokenizer, guided_json=schema, draft=False)
    assert plain.acceptance_lengths == [1] * (len(plain.token_ids) - 1)


def test_forbidden_drafts_are_cut(tokenizer: Tokenizer) -> None:
    found = answer(tokenizer, accuracy=0.0, **DIGITS)
    assert found.text.isdigit()
    assert sum(count.accepted for count in found.drafts_by_source.values()) == 0


def test_stop_tokens_end_where_the_grammar_may(tokenizer: Tokenizer) -> None:
    ends = set()
    for seed in range(30):
        made = {"temperature": 1.5, "seed": seed, **DIGITS}
        found = answer(tokenizer, **made)
        assert found.finish_reason == "stop"
        assert 3 <= len(found.text) <= 5
        assert found.text.isdigit()
        ends.add(found.token_ids[-1] == tiny.EOS)
        later = answer(tokenizer, min_tokens=4, **made)
        assert 4 <= len(later.text) <= 5
        # Without stop tokens it goes on as long as the grammar does.
        assert len(answer(tokenizer, ignore_eos=True, **made).text) == 5
        own = answer(tokenizer, stop_token_ids=[tiny.USER], **made)
        assert own.token_ids[-1] in (tiny.USER, *b"0123456789")
        assert len(own.text) >= 3
    assert ends == {True, False}


def test_text_stop_tokens_end_anywhere(tokenizer: Tokenizer) -> None:
    found = answer(tokenizer, guided_json={"const": "abc"}, stop_token_ids=[ord("b")])
    assert (found.text, found.finish_reason) == ('"ab', "stop")
    found = answer(tokenizer, guided_json={"const": "abc"}, stop_words="c")
    assert (found.text, found.finish_reason) == ('"ab', "stop")


def test_a_limit_cuts_an_answer(tokenizer: Tokenizer) -> None:
    found = answer(tokenizer, guided_json={"const": "abc"}, max_tokens=4)
    assert (found.text, found.finish_reason) == ('"abc', "length")
    found = answer(tokenizer, guided_json={"const": "abc"}, max_tokens=5)
    assert (found.text, found.finish_reason) == ('"abc"', "stop")


def test_choices_with_any_characters_come_whole(tokenizer: Tokenizer) -> None:
    choices = ["a\nb", 'say "x"', "50 % of <[5]> / @answer", "ä\\n", "|", " "]
    seen = {
        answer(tokenizer, guided_choice=choices, temperature=2.0, seed=seed).text
        for seed in range(40)
    }
    assert seen <= set(choices)
    assert len(seen) > 2


@pytest.mark.parametrize("place", [0, 3, 10])
def test_cancel_leaves_the_others_alone(tokenizer: Tokenizer, place: int) -> None:
    schema = random_schema(8)
    alone = answer(tokenizer, "Q", guided_json=schema)
    with grammar_engine(tokenizer) as engine, engine.serve() as server:
        taken: list[Any] = []
        handle = server.submit("R", on_event=taken.append, **DIGITS)
        other = _Collector()
        server.submit("Q", on_event=other.take, guided_json=schema, max_tokens=300)
        other.wait_for(place)
        handle.cancel()
        assert other.text() == alone.text


class _Collector:
    """Takes the events of one request."""

    def __init__(self) -> None:
        import threading

        self._changed = threading.Condition()
        self._events: list[Any] = []

    def take(self, event: Any) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def wait_for(self, tokens: int) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._ended() or sum(len(e.token_ids) for e in self._events) >= tokens,
                30,
            )

    def text(self) -> str:
        with self._changed:
            assert self._changed.wait_for(self._ended, 60)
            return "".join(event.text for event in self._events)

    def _ended(self) -> bool:
        return bool(self._events) and self._events[-1].finish_info is not None
