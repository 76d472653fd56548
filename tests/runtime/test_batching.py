"""The scheduler with requests that enter and leave between steps, on a fake session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.callers import scheduler_of
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.scheduler import Scheduler


def requests_of(draw: Any, config: Any) -> Any:
    options: dict[str, Any] = {
        "max_tokens": draw(st.integers(1, 14)),
        "temperature": draw(st.sampled_from([0.0, 0.9])),
        "top_k": draw(st.integers(0, 6)),
        "seed": draw(st.integers(0, 3)),
        "draft": draw(st.booleans()),
        "stop_token_ids": draw(st.lists(st.integers(0, 22), max_size=2)),
    }
    prompt = draw(st.lists(st.integers(0, 22), min_size=1, max_size=38))
    (request,) = make_requests([prompt], SamplingParams.from_options(options), config)
    request.priority = draw(st.integers(-1, 1))
    return prompt, options, request


@settings(max_examples=80)
@given(
    data=st.data(),
    slots=st.integers(1, 7),
    budget=st.one_of(st.none(), st.integers(1, 9)),
    ahead=st.integers(0, 1),
)
def test_batched_tokens_equal_tokens_alone(
    data: Any, slots: int, budget: int | None, ahead: int
) -> None:
    """Any order of arrivals, priorities, cancellations and steps; equal to `generate` alone, or
    its beginning if cancelled.
    """
    config = fake_config(max_batch_size=slots)
    scheduler = Scheduler(
        FakeSession(config, lookahead=ahead),
        vocab_size=config.vocab_size,
        prompt_tokens_per_step=budget,
    )
    alone = Engine(config, FakeSession(config))
    chosen = [requests_of(data.draw, config) for _ in range(data.draw(st.integers(1, 7)))]
    arriving = list(chosen)
    sequences: list[Request] = []
    got: dict[Request, list[int]] = {}
    while arriving or scheduler.busy:
        act = (
            data.draw(st.sampled_from(["add", "step", "step", "step", "end"]))
            if arriving
            else "step"
        )
        if act == "add" or not sequences:
            sequences.append(arriving.pop(0)[2])
            scheduler.add(sequences[-1])
            got[sequences[-1]] = []
        elif act == "end":
            scheduler.end(data.draw(st.sampled_from(sequences)), "cancelled")
        else:
            for sequence, token_ids, *_ in scheduler.step():
                assert token_ids
                got[sequence] += token_ids
            held = [
                sequence.slot
                for sequence in scheduler.in_slots
                if sequence.finish_reason is None
            ]
            assert len(held) == len(set(held)), "two sequences in one slot"
    for sequence, (prompt, options, _) in zip(sequences, chosen, strict=True):
        (expected,) = alone.generate([prompt], **options)
        assert got[sequence] == sequence.output_ids == expected.token_ids[: len(got[sequence])]
        if sequence.finish_reason != "cancelled":
            assert sequence.output_ids == expected.token_ids
            assert sequence.finish_reason == expected.finish_reason
    assert not scheduler.in_slots


def steps_of(engine: Engine) -> list[tuple[int, int, int]]:
    session = engine._session
    assert isinstance(session, FakeSession)
    return session.steps


def request(engine: Engine, length: int, **options: Any) -> Any:
    defaults: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 30}
    return make_requests([[3] * length], SamplingParams(**defaults | options), engine.config)[0]


def test_prefill_stays_within_the_budget(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine(max_batch_size=2, accuracy=0.0, max_num_tokens=5)
    scheduler = scheduler_of(engine, 4)
    scheduler.add(request(engine, 2, draft=False))
    scheduler.step()
    assert scheduler.step()
    scheduler.add(request(engine, 13, draft=False))
    before = len(steps_of(engine))
    for _ in range(8):
        scheduler.step()
    widths = [
        (batch, width) if batch == 2 else width for _, batch, width in steps_of(engine)[before:]
    ]
    assert widths == [
        4,
        1,
        4,
        1,
        4,
        1,
        1,
        (2, 1),
    ]  # three tokens of the budget are left when the prompt has run


def test_prefill_without_decoding_takes_whole_chunks(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine(max_num_tokens=5)
    scheduler = scheduler_of(engine, 2)
    scheduler.add(request(engine, 12))
    while scheduler.busy and len(steps_of(engine)) < 4:
        scheduler.step()
    assert [width for _, _, width in steps_of(engine)] == [5, 5, 2, 4]


def test_short_prompt_overtakes_a_long_one(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_num_tokens=5)
    scheduler = scheduler_of(engine, 5)
    long = request(engine, 40)
    scheduler.add(long)
    scheduler.step()
    short = request(engine, 3)
    scheduler.add(short)
    while not short.output_ids:
        scheduler.step()
    assert long.num_to_prefill > 25
    while not long.output_ids:
        scheduler.step()


def test_long_prompt_is_overtaken_by_its_length_at_most(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine(max_num_tokens=5, max_batch_size=3)
    scheduler = scheduler_of(engine, 5)
    long = request(engine, 40, max_tokens=1)
    scheduler.add(long)
    others = 0
    while not long.output_ids:
        scheduler.add(request(engine, 4, max_tokens=1))
        scheduler.step()
        others += 1
        assert others < 100, "it starves"
    assert 30 < long.num_overtaken <= 40


def test_generate_prefills_first(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_num_tokens=5)
    engine.generate([[3] * 3, [4] * 12], max_tokens=4)
    assert [width for _, _, width in steps_of(engine)][:4] == [3, 5, 5, 2]


def test_slots_of_prompts_overtaken_twice_differ(fake_engine: Callable[..., Engine]) -> None:
    """A sequence ends between two overtakings, so that the second one's slot is below the first
    one's.
    """
    engine, alone = fake_engine(max_batch_size=5, accuracy=0.0), fake_engine()
    scheduler = scheduler_of(engine, 3)
    lengths = {
        "ending": (1, 4),
        "going on": (2, 30),
        "long": (39, 5),
        "shorter": (24, 5),
        "short": (7, 40),
    }
    sequences = {}
    for name, (length, count) in lengths.items():
        sequences[name] = request(engine, length, max_tokens=count, draft=False)
        scheduler.add(sequences[name])
        if name == "long":
            while sequences["ending"].finish_reason is None:
                scheduler.step()
        scheduler.step()
    while scheduler.busy:
        scheduler.step()
    assert sequences["long"].num_overtaken == 31
    for name, (length, count) in lengths.items():
        (expected,) = alone.generate([[3] * length], max_tokens=count, stop_token_ids=())
        assert sequences[name].output_ids == expected.token_ids, name


def test_slot_is_opened_behind_steps_in_flight(fake_engine: Callable[..., Engine]) -> None:
    """Who decodes is not interrupted by who arrives: each step takes in one request."""
    engine = fake_engine(lookahead=1, max_batch_size=4)
    session: FakeSession = engine._session
    config = engine.config
    requests = [
        make_requests([[3, 4 + i]], SamplingParams(max_tokens=30, seed=i), config)[0]
        for i in range(4)
    ]
    scheduler = Scheduler(session, vocab_size=config.vocab_size, prompt_tokens_per_step=8)
    scheduler.add(requests[0])
    for _ in range(2):  # its prompt alone, then a step with another one in flight
        scheduler.step()
    for request in requests[1:]:
        scheduler.add(request)
        while request.slot is None:
            scheduler.step()
            assert session.in_flight
    assert session.opened_in_flight == 3
    assert session.moves == []
