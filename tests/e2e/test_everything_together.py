"""All that a request may ask for, mixed at random: the demo pair's answers are those of plain
decoding alone.

Requests share slots and a prefix cache. They have penalties, biases, forbidden words, grammars,
samplings, sources and numbers of drafts of their own. Some are cancelled on their way.
`make test-whole` has all 320; the figures are printed (pytest -s).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.patience import PATIENCE
from tests.runtime.callers import Caller
from tests.runtime.random_schemas import random_schema
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_sources import ALLOWED
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_server import EngineServer
from trtllm_dflash.runtime.outputs import FinishInfo, Generation
from trtllm_dflash.runtime.request_handle import RequestHandle

pytest.importorskip("llguidance")
pytestmark = [pytest.mark.slow, pytest.mark.demo]

COMBINATIONS = 320
TOGETHER = 8  # requests that are sent at once, to four slots
MOST_TOKENS = 20
BEGINNINGS = (
    "The harbour town had three bridges, and each of them had a keeper who knew every boat. ",
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n",
    "A list of fruits: apple, pear, plum. A list of fruits: apple, pear, plum. A list of",
)
ENDS = ("", "One day", "The keepers", " fruits:", "    return", "In the north")
WORDS = ("the", " boat", "return", "fruits", "keeper of", "\n\n")
Wish = tuple[str, dict[str, Any]]


@pytest.fixture(name="engine", scope="module")
def fixture_engine() -> Iterator[Engine]:
    with Engine.load(DEMO / "cpu", num_threads=1, prefix_cache_mib=256) as engine:
        yield engine


@pytest.fixture(name="plain", scope="module")
def fixture_plain() -> Iterator[Engine]:
    with Engine.load(DEMO / "plain", num_threads=1) as engine:
        yield engine


def random_sampling(random: Random) -> dict[str, Any]:
    """Return how tokens are chosen; half of the requests are greedy."""
    if random.random() < 0.5:
        return {}
    return {
        "temperature": random.choice([0.3, 0.7, 1.0]),
        "top_p": random.choice([1.0, 0.9]),
        "top_k": random.choice([0, 5, 40]),
        "min_p": random.choice([0.0, 0.05]),
        "seed": random.getrandbits(64),
    }


def random_adjustments(random: Random, vocab_size: int) -> dict[str, Any]:
    """Return some of the penalties, biases and forbidden words."""
    biased = [random.randrange(vocab_size) for _ in range(random.randint(1, 6))]
    choices: dict[str, Any] = {
        "repetition_penalty": random.choice([0.8, 1.1, 1.5]),
        "frequency_penalty": random.choice([-0.5, 0.4, 1.5]),
        "presence_penalty": random.choice([-0.4, 0.6, 2.0]),
        "logit_bias": {token: random.uniform(-100, 12) for token in biased},
        "bad_words": random.sample(WORDS, random.randint(1, 3)),
    }
    return {name: value for name, value in choices.items() if random.random() < 0.25}


def random_grammar(random: Random) -> dict[str, Any]:
    """Return what the answer must be, for one request of three."""
    grammars: list[dict[str, Any]] = [
        {"guided_json": random_schema(random.randrange(1000))},
        {"guided_regex": random.choice(["(yes|no), [a-z ]{3,20}\\.", "[0-9]{2}-[0-9]{4}"])},
        {"guided_choice": ["the keeper", "the keepers of the bridges", "a boat"]},
        {"response_format": {"type": "json_object"}},
    ]
    return random.choice(grammars) if random.random() < 0.33 else {}


def random_drafting(random: Random, block_size: int) -> dict[str, Any]:
    """Return where drafts come from, and how many."""
    draft_len = random.choice([None, "auto", random.randrange(block_size)])
    return {"drafts": random.choice(ALLOWED), "draft_len": draft_len}


def random_wish(random: Random, engine: Engine) -> Wish:
    """Return a prompt, which begins as others do, and options without those of drafting."""
    prompt = random.choice(BEGINNINGS) + random.choice(ENDS)
    options: dict[str, Any] = {"max_tokens": random.randint(1, MOST_TOKENS)}
    options |= random_sampling(random)
    options |= random_adjustments(random, engine.config.vocab_size) | random_grammar(random)
    if random.random() < 0.2:
        options["stop_words"] = random.sample(WORDS, 2)
    if random.random() < 0.2:
        options["logprobs"] = random.randint(0, 3)
    return prompt, options


def send(
    server: EngineServer, wish: Wish, drafting: dict[str, Any], cancel_at: int | None
) -> Caller:
    """Submit a request; it is cancelled with its token number `cancel_at`."""
    caller = Caller()
    handles: list[RequestHandle] = []

    def on_event(event: Any) -> None:
        caller(event)
        if cancel_at is not None and handles and len(caller.token_ids) >= cancel_at:
            handles[0].cancel()

    prompt, options = wish
    handles.append(server.submit(prompt, on_event=on_event, **options, **drafting))
    return caller


def plain_answer(plain: Engine, wish: Wish) -> Generation | UsageError:
    """Return what plain decoding answers, or why it cannot."""
    prompt, options = wish
    try:
        (answer,) = plain.generate([prompt], **options)
    except UsageError as error:
        return error
    return answer


def check_answer(caller: Caller, wish: Wish, plain: Engine) -> FinishInfo | None:
    """Compare an answer with that of plain decoding alone; a cancelled one is its beginning.

    None where a grammar and forbidden words leave no token: both then say so in the same words.
    """
    assert caller.done.wait(PATIENCE), "no end came"
    expected = plain_answer(plain, wish)
    if isinstance(expected, UsageError):
        assert "leaves no token there" in str(expected), wish
        assert str(caller.end) == str(expected) or _was_cancelled(caller), wish
        return None
    assert isinstance(caller.end, FinishInfo), (caller.end, wish)
    tokens = caller.token_ids
    if caller.end.finish_reason == "cancelled":
        assert tokens == expected.token_ids[: len(tokens)], wish
    else:
        assert tokens == expected.token_ids, wish
        assert caller.text == expected.text, wish
        assert caller.end.finish_reason == expected.finish_reason, wish
    return caller.end


def _was_cancelled(caller: Caller) -> bool:
    return isinstance(caller.end, FinishInfo) and caller.end.finish_reason == "cancelled"


def test_random_combinations(
    engine: Engine, plain: Engine, random_cases: Callable[[int], int]
) -> None:
    random, count = Random(11), random_cases(COMBINATIONS)
    tally: Counter[str] = Counter()
    with engine.serve(prompt_tokens_per_step=16) as server:
        for _ in range(-(-count // TOGETHER)):
            wishes = [random_wish(random, engine) for _ in range(TOGETHER)]
            callers = []
            for wish in wishes:
                cancel_at = random.randint(1, 8) if random.random() < 0.1 else None
                drafting = random_drafting(random, engine.config.block_size)
                callers.append(send(server, wish, drafting, cancel_at))
            for caller, wish in zip(callers, wishes, strict=True):
                end = check_answer(caller, wish, plain)
                tally["requests"] += 1
                if end is None:
                    tally["none left"] += 1
                    continue
                tally[end.finish_reason] += 1
                tally["cached tokens"] += end.cached_tokens
                for source, drafts in end.drafts_by_source.items():
                    tally[f"accepted from {source}"] += drafts.accepted
                for name in wish[1]:
                    tally[name] += 1
        assert server.stats.waiting == server.stats.slots_in_use == 0
    print(dict(tally))
    assert tally["requests"] >= count
    for name in ("stop", "length", "cancelled", "cached tokens", "bad_words", "logit_bias"):
        assert tally[name], name
    for source in ("dflash", "lookup"):
        assert tally[f"accepted from {source}"] > count // 4
