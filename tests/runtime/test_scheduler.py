"""The scheduler on a fake session whose tokens depend on every cached position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.fake_session import FakeSession, fake_config, plain_tokens
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests, noise_key
from trtllm_dflash.runtime.scheduler import Step

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(3, 19)), [12, 3]]
NO_STOP: dict[str, Any] = {"stop_token_ids": []}
SAMPLED: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 9,
    "top_p": 0.9,
    "min_p": 0.01,
    "seed": 11,
}


def expected(engine: Engine, prompt: list[int], count: int, **sampling: Any) -> list[int]:
    """Return the fake target's tokens after `prompt`, one at a time, with the call's noise."""
    request = make_requests(
        [prompt], SamplingParams(max_tokens=count, **sampling), engine.config
    )[0]
    own = request.sampling
    return plain_tokens(engine._session, prompt, count, own)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_tokens_are_the_targets_own(
    fake_engine: Callable[..., Engine],
    block_size: int,
    accuracy: float,
    lookahead: int,
    sampling: dict[str, Any],
) -> None:
    engine = fake_engine(block_size=block_size, accuracy=accuracy, lookahead=lookahead)
    for answer, prompt in zip(
        engine.generate(PROMPTS, max_tokens=37, **sampling, **NO_STOP), PROMPTS, strict=True
    ):
        own = {**sampling, "seed": answer.seed}
        assert answer.token_ids == expected(engine, prompt, 37, **own)
        assert sum(answer.acceptance_lengths) + 1 == len(answer.token_ids)
        assert answer.finish_reason == "length"
        assert answer.text == ""


@settings(max_examples=60)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, 22), min_size=1, max_size=30), min_size=1, max_size=9
    ),
    slots=st.integers(1, 4),
    chunk=st.integers(4, 9),
    block_size=st.integers(1, 4),
    draft=st.booleans(),
    lookahead=st.integers(0, 1),
    accuracy=st.floats(0, 1),
    temperature=st.sampled_from([0.0, 1.0]),
    max_tokens=st.integers(1, 25),
    stops=st.lists(st.integers(0, 22), max_size=3),
)
def test_batch_equals_alone_equals_plain(
    prompts: list[list[int]],
    slots: int,
    chunk: int,
    block_size: int,
    draft: bool,
    lookahead: int,
    accuracy: float,
    **options: Any,
) -> None:
    stops = options.pop("stops")
    options |= {"stop_token_ids": stops, "draft": draft, "seed": 5}
    config = fake_config(block_size=block_size, max_batch_size=slots, max_num_tokens=chunk)
    engine = Engine(config, FakeSession(config, accuracy=accuracy, lookahead=lookahead))
    in_step = Engine(config, FakeSession(config, accuracy=accuracy))
    together = engine.generate(prompts, **options)
    for answer, prompt in zip(together, prompts, strict=True):
        own = options | {"seed": answer.seed}
        (alone,) = in_step.generate([prompt], **own)
        (plain,) = in_step.generate([prompt], **own | {"draft": False})
        assert answer.token_ids == alone.token_ids == plain.token_ids
        assert answer.acceptance_lengths == alone.acceptance_lengths
        assert answer.finish_reason == alone.finish_reason == plain.finish_reason
        assert not set(answer.token_ids[:-1]) & set(stops)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_do_not_depend_on_draft_len(
    fake_engine: Callable[..., Engine], sampling: dict[str, Any]
) -> None:
    engine = fake_engine(block_size=6, draft_len=2)
    answers = [
        engine.generate(PROMPTS, max_tokens=30, draft_len=n, **sampling)
        for n in (None, 0, 1, 3, 5)
    ]
    assert all(
        [a.token_ids for a in answer] == [a.token_ids for a in answers[0]] for answer in answers
    )


def test_draft_len_sets_the_width_of_generation_steps(
    fake_engine: Callable[..., Engine],
) -> None:
    for options, width in [
        ({}, 3),
        ({"draft_len": 4}, 5),
        ({"draft_len": 0}, 1),
        ({"draft": False}, 1),
    ]:
        engine = fake_engine(block_size=6, draft_len=2)
        (answer,) = engine.generate([[3]], max_tokens=9, **options, **NO_STOP)
        assert {step[2] for step in engine._session.steps[1:]} == {width}
        assert max(answer.acceptance_lengths) <= width


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_schedule_sets_the_width_by_batch(
    fake_engine: Callable[..., Engine], sampling: dict[str, Any], lookahead: int
) -> None:
    """Wider and narrower steps follow each other as the batch changes; the tokens are those of any
    other width.
    """
    for schedule in ({1: 5, 2: 1, 3: 3}, {1: 0, 3: 5}, {2: 4}, {3: 0}):
        engine = fake_engine(block_size=6, max_batch_size=3, lookahead=lookahead)
        answers = engine.generate(
            PROMPTS, max_tokens=30, draft_len_schedule=schedule, **sampling
        )
        for answer, prompt in zip(answers, PROMPTS, strict=True):
            own = {**sampling, "seed": answer.seed}
            alone = engine.generate([prompt], max_tokens=30, draft=False, **own)[0]
            assert answer.token_ids == alone.token_ids
        engine = fake_engine(
            block_size=6, max_batch_size=3, max_num_tokens=40, lookahead=lookahead
        )
        prompts = [[3] * 11, [4] * 12, [5] * 13]  # of widths that no generation step has
        engine.generate(
            prompts, max_tokens=30, draft_len_schedule=schedule, **sampling, **NO_STOP
        )
        widths = {(batch, width) for _, batch, width in engine._session.steps if width < 11}
        rows = dict(sorted(schedule.items()))
        expected_widths = {
            (n, 1 + next((rows[size] for size in rows if n <= size), 0)) for n, _ in widths
        }
        assert widths == expected_widths
        assert 3 in {batch for batch, _ in widths}


def test_fewer_slots_than_there_are(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=3)
    steps: list[Step] = []
    with engine.stream(
        PROMPTS, slots=2, on_step=steps.append, max_tokens=12, **NO_STOP
    ) as stream:
        answers = stream.generations()
    assert max(batch for _, batch, _ in engine._session.steps) == 2
    assert [a.token_ids for a in answers] == [
        a.token_ids for a in engine.generate(PROMPTS, max_tokens=12, **NO_STOP)
    ]
    assert sum(step.tokens for step in steps) == stream.timings.generated_tokens
    assert sum(step.seconds for step in steps) == pytest.approx(stream.timings.decode_seconds)
    assert len(steps) == stream.timings.decode_steps
    assert {step.slots for step in steps} == {1, 2}
    for slots in (0, 4):
        with pytest.raises(
            UsageError, match=f"slots is {slots}, expected an integer from 1 to 3"
        ):
            engine.stream(PROMPTS, slots=slots)


def test_prompts_enter_in_chunks_one_slot_at_a_time(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_num_tokens=5)
    engine.generate([[3] * 12, [4] * 5], max_tokens=2, **NO_STOP)
    assert engine._session.steps[:4] == [(0, 1, 5), (0, 1, 5), (0, 1, 2), (1, 1, 5)]


def test_finished_slot_is_refilled_from_the_queue(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=2, accuracy=0.0)
    engine.generate([[3], [4, 4], [5, 5, 5]], max_tokens=4, draft=False, **NO_STOP)
    batches = [batch for _, batch, _ in engine._session.steps]
    assert engine._session.steps[:2] == [(0, 1, 1), (1, 1, 2)]
    assert batches.count(2) == 3
    assert (0, 1, 3) in engine._session.steps  # the third prompt: both had ended


def test_the_batch_shrinks_and_moves_only_used_rows(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=3, accuracy=0.0)
    stop = expected(engine, [3, 4, 5], 5)[4]
    first = expected(engine, [3, 4, 5], 30).index(stop)
    others = [[1] * 7, [7, 8]]
    assert all(stop not in expected(engine, prompt, first + 2) for prompt in others)
    answers = engine.generate(
        [[3, 4, 5], *others], max_tokens=12, stop_token_ids=[stop], draft=False
    )
    assert answers[0].finish_reason == "stop"
    assert engine._session.moves[0] == (
        2,
        0,
        2 + first,
    )  # prompt [7, 8] and the tokens before its anchor
    widest = [batch for _, batch, _ in engine._session.steps]
    assert widest.index(3) < len(widest) - 1 - widest[::-1].index(3) < widest.index(2)


def test_stop_token_inside_a_block_cuts_after_it(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(accuracy=1.0, block_size=8)
    tokens = expected(engine, [3, 4, 5], 20)
    place = next(
        i for i in range(3, 7) if tokens[i] not in tokens[:i]
    )  # inside the first block of 8
    (answer,) = engine.generate([[3, 4, 5]], max_tokens=20, stop_token_ids=[tokens[place]])
    assert answer.token_ids == tokens[: place + 1]
    assert answer.acceptance_lengths == [place]
    assert answer.finish_reason == "stop"


def test_stop_token_as_first_token_needs_no_decode_step(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine()
    stop = expected(engine, [3, 4, 5], 1)
    (answer,) = engine.generate([[3, 4, 5]], stop_token_ids=stop)
    assert (answer.token_ids, answer.acceptance_lengths, answer.finish_reason) == (
        stop,
        [],
        "stop",
    )
    assert answer.acceptance_length == 0.0


def test_the_models_own_stop_tokens_are_the_default(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()
    own, given, none = (
        engine.generate(PROMPTS, max_tokens=60, stop_token_ids=stops)
        for stops in (None, [2], [])
    )
    assert [answer.token_ids for answer in own] == [answer.token_ids for answer in given]
    ended = [answer for answer in own if answer.finish_reason == "stop"]
    assert ended
    assert all(answer.token_ids[-1] == 2 for answer in ended)
    assert {(len(answer.token_ids), answer.finish_reason) for answer in none} == {
        (60, "length")
    }


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 8, 9, 10, 17])
def test_max_tokens_cuts_inside_a_block(
    fake_engine: Callable[..., Engine], max_tokens: int, lookahead: int
) -> None:
    engine = fake_engine(accuracy=1.0, block_size=8, lookahead=lookahead)
    (answer,) = engine.generate([[3, 4, 5]], max_tokens=max_tokens, **NO_STOP)
    assert answer.token_ids == expected(engine, [3, 4, 5], max_tokens)
    full, rest = divmod(max_tokens - 1, 8)
    assert answer.acceptance_lengths == [8] * full + [rest] * (rest > 0)


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("block_size", [1, 4, 7])
@pytest.mark.parametrize("prompt_len", [1, 30, 40])
@pytest.mark.parametrize("accuracy", [0.0, 0.7, 1.0])
def test_a_sequence_may_fill_max_seq_len(
    fake_engine: Callable[..., Engine],
    accuracy: float,
    prompt_len: int,
    block_size: int,
    lookahead: int,
) -> None:
    engine = fake_engine(accuracy=accuracy, block_size=block_size, lookahead=lookahead)
    answers = engine.generate([[3] * prompt_len, [4]], max_tokens=1000, **NO_STOP)
    assert [len(answer.token_ids) for answer in answers] == [90 - prompt_len, 89]
    assert [answer.finish_reason for answer in answers] == ["length", "length"]
    assert answers[0].token_ids == expected(engine, [3] * prompt_len, 90 - prompt_len)


def test_the_next_step_is_launched_before_tokens_are_read(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine(lookahead=1)
    calls: list[str] = []
    for name in ("decode", "collect"):
        method = getattr(engine._session, name)
        setattr(
            engine._session,
            name,
            lambda *args, name=name, method=method, **rest: (
                calls.append(name),
                method(*args, **rest),
            )[1],
        )
    engine.generate([[3, 4, 5]], max_tokens=6, draft=False, **NO_STOP)
    # The prompt; then five steps, known to be the last ones before they are read.
    assert calls == ["collect", "decode", *["decode", "collect"] * 4, "collect"]
    assert engine._session.max_in_flight == 2


def test_discarded_step_does_not_show(fake_engine: Callable[..., Engine]) -> None:
    engine, in_step = (
        fake_engine(accuracy=1.0, block_size=8, lookahead=lookahead) for lookahead in (1, 0)
    )
    stop = expected(engine, [3, 4, 5], 5)[4]
    streams = [
        made.stream([[3, 4, 5], [6]], stop_token_ids=[stop], max_tokens=40)
        for made in (engine, in_step)
    ]
    ahead, behind = (stream.generations() for stream in streams)
    assert [answer.token_ids for answer in ahead] == [answer.token_ids for answer in behind]
    assert [answer.acceptance_lengths for answer in ahead] == [
        answer.acceptance_lengths for answer in behind
    ]
    assert len(engine._session.steps) > len(in_step._session.steps)
    assert streams[0].timings.decode_steps == streams[1].timings.decode_steps
    assert streams[0].timings.generated_tokens == sum(
        len(answer.token_ids) - 1 for answer in ahead
    )


def test_closed_stream_leaves_nothing_to_the_next(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(lookahead=1)
    stream = engine.stream([[3], [4, 5]], **NO_STOP)
    for _ in range(4):
        next(stream)
    assert engine._session.in_flight
    stream.close()
    (answer,) = engine.generate([[7, 8]], max_tokens=20, **NO_STOP)
    assert answer.token_ids == expected(engine, [7, 8], 20)


def test_an_answer_goes_on_as_it_would_have(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()
    (whole,) = engine.generate([[3, 4]], max_tokens=20, **SAMPLED, **NO_STOP)
    (rest,) = engine.generate(
        [[3, 4, *whole.token_ids[:8]]], max_tokens=12, **SAMPLED, **NO_STOP
    )
    assert rest.token_ids == whole.token_ids[8:]


def test_last_free_position_is_used(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_seq_len=41)
    (answer,) = engine.generate([[3] * 40], **NO_STOP)
    assert len(answer.token_ids) == 1


def test_seed_belongs_to_a_prompt_not_its_place(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 20, **NO_STOP}
    each = engine.generate([[3, 4], [3, 4]], seed=[7, 8], **options)
    assert each[0].token_ids != each[1].token_ids
    assert each[1].token_ids == engine.generate([[3, 4]], seed=8, **options)[0].token_ids


@pytest.mark.parametrize("lookahead", [0, 1])
def test_timings_add_up(fake_engine: Callable[..., Engine], lookahead: int) -> None:
    engine = fake_engine(lookahead=lookahead)
    prompts = PROMPTS[:3]  # no chunk of them is as wide as a generation step
    stream = engine.stream(prompts, max_tokens=9, **NO_STOP)
    answers = stream.generations()
    timings = stream.timings
    assert timings.prompt_tokens == sum(len(prompt) for prompt in prompts)
    assert timings.generated_tokens == len(prompts) * 8
    if not lookahead:
        assert timings.decode_steps == sum(width == 4 for _, _, width in engine._session.steps)
    assert timings.prefill_seconds == pytest.approx(
        sum(answer.prefill_seconds for answer in answers)
    )
    assert 0 < timings.decode_seconds <= sum(answer.decode_seconds for answer in answers)
    assert timings.decode_tokens_per_second == timings.generated_tokens / timings.decode_seconds


def test_noise_keys_are_of_the_seed_alone() -> None:
    """Every bit of a seed counts; the length of the answer does not."""
    seeds = [0, *(1 << bit for bit in range(64)), 2**64 - 1]
    keys = set()
    for seed in seeds:
        of_lengths = {
            make_requests(
                [[3]], SamplingParams(temperature=1.0, seed=seed, max_tokens=n), fake_config()
            )[0].sampling.noise_key
            for n in (5, 50)
        }
        assert len(of_lengths) == 1
        keys |= of_lengths
    assert len(keys) == len(seeds)
    assert all(0 <= word < 2**31 for key in keys for word in key)
    assert noise_key(11) == (1327392636, 1777968333, 1576036347, 2049279727)  # in every version
