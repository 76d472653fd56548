"""Penalties, biases, bad words and masks in real steps on the CPU.

They do what they should, and neither drafts nor neighbours nor known prefixes change it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins import adjust_reference as reference
from tests.runtime.test_draft_sources import FAMILIES, family_engine, repetitive
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.sessions.base import SlotSampling, StepResult
from trtllm_dflash.runtime.sessions.ort import OrtSession

VOCAB = 60  # ids of prompts; all tiny models have more
Case = tuple[list[int], dict[str, Any], tuple[tuple[int, ...], ...]]


def random_case(random: np.random.Generator, block_size: int) -> Case:
    """Return a prompt, its options, and bad words as tokens: all kinds, each now and then."""
    options: dict[str, Any] = {
        "max_tokens": int(random.integers(1, 40)),
        "draft_len": int(random.integers(0, block_size)),
        "stop_token_ids": [],
    }
    if random.random() < 0.5:
        options["repetition_penalty"] = float(random.uniform(0.8, 1.5))
    for name in ("frequency_penalty", "presence_penalty"):
        if random.random() < 0.4:
            options[name] = float(random.uniform(-0.3, 1))
    if random.random() < 0.4:
        tokens = random.choice(VOCAB, 5, replace=False)
        options["logit_bias"] = {int(token): float(random.uniform(-3, 3)) for token in tokens}
    if random.random() < 0.3:
        options |= {"temperature": 0.8, "seed": int(random.integers(1 << 30))}
    words: tuple[tuple[int, ...], ...] = ()
    if random.random() < 0.5:
        sizes = random.integers(1, 4, 30)
        words = tuple(tuple(random.integers(0, VOCAB, size).tolist()) for size in sizes)
    return repetitive(random), options, words


def run(engine: Engine, cases: list[Case], random: np.random.Generator) -> list[Request]:
    """Run requests in as many slots as random allows, with slots used again and moved."""
    scheduler = Scheduler(
        engine._session,
        vocab_size=engine.config.vocab_size,
        prompt_tokens_per_step=int(random.integers(2, 9)) if random.random() < 0.5 else None,
        slots=int(random.integers(1, engine.config.max_batch_size + 1)),
    )
    scheduler.discard()
    made = []
    for prompt, options, words in cases:
        made += make_requests([prompt], SamplingParams(**options), engine.config, words)
    waiting = list(made)
    while waiting or scheduler.busy:
        if waiting and random.random() < 0.5:
            scheduler.add(waiting.pop(0))
        if scheduler.busy:
            scheduler.step()
    return made


def check_combinations(drafted: Engine, plain: Engine, *, seed: int, rounds: int) -> int:
    """Check that random batches with drafts answer as plain decoding alone; count the requests."""
    random = np.random.default_rng(seed)
    checked = 0
    for _ in range(rounds):
        count = int(random.integers(2, 7))
        cases = [random_case(random, drafted.config.block_size) for _ in range(count)]
        for case, request in zip(cases, run(drafted, cases, random), strict=True):
            prompt, options, words = case
            alone = (prompt, options | {"draft_len": 0}, words)
            (expected,) = run(plain, [alone], random)
            assert request.output_ids == expected.output_ids, case
            text = prompt + request.output_ids
            for word in words:
                for end in range(len(prompt) + 1, len(text) + 1):
                    assert tuple(text[max(0, end - len(word)) : end]) != word, case
            checked += 1
    return checked


def test_random_combinations(built_engine: Path, build_tiny: Callable[..., Path]) -> None:
    """Batches with drafts against the plain engine, one by one."""
    drafted = Engine.load(built_engine, num_threads=1)
    plain = Engine.load(build_tiny(draft=False), num_threads=1)
    assert check_combinations(drafted, plain, seed=0, rounds=8) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_combinations_of_families(name: str, tmp_path: Path) -> None:
    engine = family_engine(name, tmp_path)
    assert check_combinations(engine, engine, seed=6, rounds=16) > 40


ALL_KINDS = SlotSampling(
    repetition_penalty=1.4,
    frequency_penalty=0.3,
    presence_penalty=0.2,
    prompt_len=12,
    logit_bias=((5, 1.5), (40, -2.0), (7, 0.5)),
    bad_words=((9,), (3, 4), (50, 51, 52)),
    wants_logits=True,
    wants_drafts=True,
)


def open_directly(directory: Path) -> OrtSession:
    return OrtSession(directory, EngineConfig.load(directory), num_threads=1)


def adjusted(logits: np.ndarray, text: list[int], sampling: SlotSampling) -> np.ndarray:
    """Return a row's logits by the reference, for a text."""
    ids, values = np.zeros((1, 8), np.int32), np.zeros((1, 8), np.float32)
    words = np.zeros((1, 4, 5), np.int32)
    sampling.write_lists({"bias_ids": ids[0], "bias_values": values[0], "bad_words": words[0]})
    arrays = {"bias_ids": ids, "bias_values": values, "bad_words": words}
    arrays |= {"logits": logits[None, None], "prompt_len": np.array([sampling.prompt_len])}
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        arrays[name] = np.array([getattr(sampling, name)], np.float32)
    return reference._row(arrays, 0, 0, text, sampling.adjusts)


def test_tokens_are_the_references_along_drafts(built_engine: Path) -> None:
    """Of the model's own logits, which the step gives too: those are not adjusted."""
    session = open_directly(built_engine)
    text = [7, 8, 9, 7, 8, 3, 5, 5, 6, 7, 8, 9]
    session.open_slot(1, ALL_KINDS)
    for chunk in (text[:8], text[8:]):
        session.prefill(1, np.array(chunk))
        result = session.collect()
    differ = 0
    text.append(int(result.new_ids[0, 0]))
    session.move_slot(1, 0)
    for width in (4, 2, 4, 1, 4, 4, 3, 4, 4, 4, 4, 4):
        session.decode(1, width)
        result = session.collect()
        assert result.logits is not None
        for place in range(int(result.num_new[0])):
            logits = result.logits[0, place]
            token = int(result.new_ids[0, place])
            assert token == adjusted(logits, text, ALL_KINDS).argmax()
            differ += token != logits.argmax()
            text.append(token)
    assert differ > 3


def rule(length: int, words: int) -> np.ndarray:
    """Return what a grammar of the length alone allows at the token of that place."""
    random = np.random.default_rng(length)
    return random.integers(-(2**31), 2**31, words, dtype=np.int64).astype(np.int32)


def constrained(
    session: OrtSession, slot: int, prompt: list[int], width: int, **own: Any
) -> Any:
    """Decode with a mask for each row, and sometimes with other drafts."""
    words = -(-session._config.vocab_size // 32)
    session.open_slot(slot, SlotSampling(**own))
    session.constrain(slot, rule(len(prompt), words)[None])
    session.prefill(slot, np.array(prompt))
    text = [*prompt, int(session.collect().new_ids[0, 0])]
    while len(text) < len(prompt) + 30:
        masks = np.stack([rule(len(text) + row, words) for row in range(width)])
        drafts = np.array([len(text) % 90, 3]) if width > 2 and len(text) % 5 == 0 else None
        session.constrain(slot, masks, drafts)
        session.decode(slot + 1, width)
        result = session.collect()
        new = result.new_ids[slot, : result.num_new[slot]].tolist()
        for token in new:
            mask = rule(len(text), words)
            assert mask[token // 32] >> (token % 32) & 1
            text.append(token)
        yield result
    yield text[: len(prompt) + 30]


def last_of(steps: Any) -> list[int]:
    *_, text = steps
    return list(text)


@pytest.mark.parametrize("own", [{}, {"repetition_penalty": 1.3}], ids=["alone", "penalized"])
def test_masks_of_every_row_give_the_tokens_of_plain_steps(
    built_engine: Path, own: dict[str, Any]
) -> None:
    session = open_directly(built_engine)
    prompt = [3, 4, 5, 3, 4]
    plain = last_of(constrained(session, 0, prompt, 1, **own))
    for width in (2, 4):
        assert last_of(constrained(session, 0, prompt, width, **own)) == plain


def test_neighbours_of_a_constrained_slot_lose_nothing(built_engine: Path) -> None:
    session = open_directly(built_engine)
    greedy = SlotSampling()

    def neighbour() -> int:
        session.open_slot(0, greedy)
        session.prefill(0, np.array([8, 9, 8, 9]))
        return int(session.collect().new_ids[0, 0])

    first = neighbour()
    alone: list[int] = []
    for _ in range(12):
        session.decode(1, 4)
        result = session.collect()
        alone += result.new_ids[0, : result.num_new[0]].tolist()
    assert neighbour() == first
    beside: list[int] = []
    steps = [
        s for s in constrained(session, 1, [3, 4, 5, 3, 4], 4) if isinstance(s, StepResult)
    ]
    for result in steps:
        beside += result.new_ids[0, : result.num_new[0]].tolist()
    count = min(len(alone), len(beside))
    assert alone[:count] == beside[:count]


def test_a_mask_counts_for_one_step(built_engine: Path) -> None:
    """The next step decides freely, and one that allows nothing gives no token."""
    session = open_directly(built_engine)
    greedy = SlotSampling(wants_drafts=True)
    free, masked = [], []
    nothing = np.zeros((1, 4), np.int32)
    for found, allowed in ((free, None), (masked, nothing)):
        session.open_slot(0, greedy)
        session.prefill(0, np.array([3, 4, 5]))
        found.append(session.collect().new_ids.tolist())
        session.constrain(0, allowed)
        session.open_slot(0, greedy)  # which forgets it
        session.prefill(0, np.array([3, 4, 5]))
        found.append(session.collect().new_ids.tolist())
    assert free == masked
    session.constrain(0, nothing)
    session.decode(1, 4)
    assert session.collect().new_ids[0].tolist() == [-1] * 4


def test_the_host_gets_and_gives_drafts(built_engine: Path) -> None:
    session = open_directly(built_engine)
    session.open_slot(0, SlotSampling(wants_drafts=True))
    session.prefill(0, np.array([3, 4, 5]))
    result = session.collect()
    assert result.next_ids is not None
    assert result.next_ids.shape == (1, 4)
    assert result.next_ids[0, 0] == result.new_ids[0, 0]
    session.constrain(0, None, np.array([1, 2]))
    assert session._slots["next_ids"][0, 1:3].tolist() == [1, 2]
    with pytest.raises(EngineError, match="4 drafts are given, and a block has 3"):
        session.constrain(0, None, np.arange(4))
    with pytest.raises(EngineError, match=r"the shape \[1, 9\], expected \[rows, 4\]"):
        session.constrain(0, np.zeros((1, 9), np.int32))


def test_a_known_prefix_counts_as_the_whole_prompt(built_engine: Path) -> None:
    """Penalties of tokens that no step of this request has read."""
    cold = Engine.load(built_engine, num_threads=1, prefix_cache_mib=0)
    warm = Engine.load(built_engine, num_threads=1, prefix_cache_mib=16)
    random = np.random.default_rng(4)
    prompt = random.integers(3, VOCAB, 100).tolist()
    options: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "stop_token_ids": [],
        "max_tokens": 30,
    }
    (expected,) = cold.generate([prompt], **options)
    (free,) = cold.generate([prompt], stop_token_ids=[], max_tokens=30)
    assert expected.token_ids != free.token_ids
    for _ in range(2):
        (found,) = warm.generate([prompt], **options)
        assert found.token_ids == expected.token_ids
    assert found.cached_tokens > 0


def test_what_an_engine_does_not_have_is_refused(built_engine: Path) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    with pytest.raises(
        UsageError, match=r"logit_bias has the token 97, outside .* \(0 to 96\)"
    ):
        engine.generate([[3]], logit_bias={97: 1})
    with pytest.raises(UsageError, match="bad_words is for engines with a tokenizer"):
        engine.generate([[3]], bad_words="no")
