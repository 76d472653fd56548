"""A whole profile: its figures, their repetition, and a comparison with another clock."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.profile.conftest import PROMPTS, MakeProfile, Stopwatch, sentence
from trtllm_dflash import Engine
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile import profiler
from trtllm_dflash.profile.formatting import recommended_result
from trtllm_dflash.profile.profiler import profile, split_into_rounds
from trtllm_dflash.profile.prompts import Prompt, PromptSet
from trtllm_dflash.profile.result import Profile, SystemResult

pytestmark = pytest.mark.slow


def by_name(found: Profile) -> dict[tuple[str, int], SystemResult]:
    """Results by system and batch size."""
    return {(result.system, result.batch): result for result in found.results}


def test_profile_has_systems_by_batch(found: Profile) -> None:
    systems = ("plain", "DFlash 0", "DFlash 5", "DFlash 7")
    assert list(by_name(found)) == [(system, batch) for batch in (1, 3) for system in systems]
    assert [curve.name for curve in found.curves] == list(systems)


def test_profile_answers_are_the_plain_engines(found: Profile, plain: Path) -> None:
    answers = Engine.load(plain, num_threads=1).generate(
        [prompt.content for prompt in PROMPTS.prompts], max_tokens=24
    )
    for result in found.results:
        assert result.same_tokens == len(PROMPTS.prompts) == len(result.by_prompt)
        assert [prompt.tokens for prompt in result.by_prompt] == [
            len(answer.token_ids) for answer in answers
        ]
        assert [prompt.category for prompt in result.by_prompt] == [
            prompt.category for prompt in PROMPTS.prompts
        ]
    assert len({result.tokens_sha256 for result in found.results}) == 1


def test_profile_acceptance_is_the_engines_own(found: Profile, engine: Path) -> None:
    """τ, its histogram and its categories, from acceptance lengths of other calls of the engine."""
    loaded = Engine.load(engine, num_threads=1)
    for batch in (1, 3):
        for drafts in (0, 5, 7):
            answers = loaded.generate(
                [p.content for p in PROMPTS.prompts], max_tokens=24, draft_len=drafts
            )
            lengths = [length for answer in answers for length in answer.acceptance_lengths]
            acceptance = by_name(found)[f"DFlash {drafts}", batch].acceptance
            assert acceptance.steps == len(lengths)
            assert acceptance.acceptance_length == pytest.approx(sum(lengths) / len(lengths))
            assert dict(enumerate(acceptance.histogram)) == {
                n: Counter(lengths)[n] for n in range(drafts + 2)
            }
            uncut = [length for answer in answers for length in answer.acceptance_lengths[:-1]]
            counts = [
                sum(length > drafted for length in uncut) for drafted in range(1, drafts + 1)
            ]
            shares = [count / len(uncut) for count in counts]
            assert acceptance.by_position == pytest.approx(shares)
            if drafts:
                rate = sum(length - 1 for length in uncut) / (drafts * len(uncut))
                assert acceptance.draft_acceptance_rate == pytest.approx(rate)
            else:
                assert acceptance.draft_acceptance_rate is None
                assert acceptance.acceptance_length == 1.0


def test_profile_categories_differ(found: Profile) -> None:
    result = by_name(found)["DFlash 7", 1]
    categories = {row.category: row for row in result.by_category}
    counts = {name: row.prompts for name, row in categories.items()}
    assert counts == {"sentence": 4, "noise": 2}
    lengths = {name: row.acceptance.acceptance_length for name, row in categories.items()}
    assert lengths["sentence"] > lengths["noise"] > 1
    by_prompt = sum(row.tokens - 1 for row in result.by_prompt)
    assert sum(row.tokens for row in categories.values()) == by_prompt


def test_profile_rates_are_consistent(found: Profile) -> None:
    for result in found.results:
        assert result.tokens_per_second == pytest.approx(
            result.batch * result.tokens_per_second_per_user
        )
        assert result.tokens_per_second_with_prefill > 0
        step = result.step_seconds
        assert [0, step.min, step.p50, step.p90, step.p99, step.max] == sorted(
            [0, step.min, step.p50, step.p90, step.p99, step.max]
        )
        if result.batch == 1:  # every step is a step of the whole batch
            assert result.full_steps == result.acceptance.steps
            rate = result.acceptance.acceptance_length / result.step_seconds.mean
            assert result.tokens_per_second_per_user == pytest.approx(rate)
        else:
            assert 0 < result.full_steps < result.acceptance.steps / 2


def _tokens_and_acceptance(found: Profile) -> list[tuple[Any, ...]]:
    rows = []
    for result in found.results:
        categories = [(row.category, row.acceptance) for row in result.by_category]
        rows.append((result.system, result.tokens_sha256, result.acceptance, categories))
    return rows


def test_as_many_drafts_as_pay_are_a_system_of_their_own(make_profile: MakeProfile) -> None:
    """It gives the same texts, and the advice, which compares numbers, is without it."""
    found = make_profile(batch="1", draft_lens="5,auto", drafts="dflash,both")
    names = ["DFlash 5, drafter alone", "DFlash 5"]
    names += ["DFlash auto, drafter alone", "DFlash auto"]
    assert [result.system for result in found.results] == ["plain", *names]
    assert [result.auto for result in found.results] == [False, False, False, True, True]
    assert found.settings["draft_lens"] == [5, "auto"]
    for result in found.results[3:]:
        assert (result.draft_len, result.same_tokens) == (7, len(PROMPTS.prompts))
        assert result.acceptance.draft_acceptance_rate is None
    assert [row.draft_len for row in found.advice.batches] == [5]
    assert {one.draft_len for one in found.step_breakdowns} == {0, 5}
    assert recommended_result(found).system == "DFlash 5"


def test_profile_repeats_with_the_same_seed(make_profile: MakeProfile) -> None:
    options: dict[str, Any] = {
        "batch": "2",
        "draft_lens": "7",
        "temperature": 0.9,
        "top_k": 20,
        "max_tokens": 16,
    }
    first, second, other = (make_profile(**options, seed=seed) for seed in (4, 4, 5))
    facts = [_tokens_and_acceptance(found) for found in (first, second, other)]
    assert facts[0] == facts[1]
    assert facts[0][0][1] != facts[2][0][1]
    for result in [*first.results, *other.results]:
        assert result.same_tokens == len(PROMPTS.prompts)
    assert first.prompts["token_ids_sha256"] == other.prompts["token_ids_sha256"]


@pytest.mark.parametrize("batch", [1, 2])
def test_profile_agrees_with_another_clock(
    batch: int, make_profile: MakeProfile, stopwatch: Stopwatch
) -> None:
    """In the same run: the profile sees the session's steps, and little besides."""
    for result in make_profile(batch=str(batch), draft_lens="5", max_tokens=40).results:
        watched, told = stopwatch.total(result), result.step_seconds.mean * result.full_steps
        # The loop's own work is a few percent of these tiny steps; the rest of the margin is for a
        # busy machine.
        assert watched <= told <= 1.5 * watched


def test_profile_with_prompts_of_one_length(make_profile: MakeProfile) -> None:
    found = make_profile(batch="1", draft_lens="5", input_len=13, max_tokens=4)
    assert {row.prompt_tokens for row in found.results[0].by_prompt} == {13}
    assert found.prompts["tokens"] == 13 * len(PROMPTS.prompts)


def test_profile_with_fewer_prompts_than_slots(make_profile: MakeProfile) -> None:
    """The prompts are repeated to fill the slots, all equally often."""
    found = make_profile(
        PromptSet("one", (Prompt(sentence(3, 2, 7), "sentence"),)), batch="3", draft_lens="5"
    )
    for result in found.results:
        assert [row.index for row in result.by_prompt] == [0, 1, 2]
        assert result.full_steps == result.acceptance.steps / 3
        assert result.same_tokens == 3


def test_profile_builds_and_removes_a_plain_engine(
    make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = make_profile(plain=None, batch="3", draft_lens="5", max_tokens=4)
    assert found.plain["directory"] is None
    assert found.plain["max_batch_size"] == 3
    assert found.plain["weights"][0]["model"] == "target"
    assert list(tmp_path.iterdir()) == []


def test_profile_refuses_answers_without_decode_steps(
    engine: Path, plain: Path, make_profile: MakeProfile
) -> None:
    """Answers that end with their first token have no decode step."""
    prompt = sentence(3, 2, 7)
    with pytest.raises(UsageError, match="there is no prompt to answer"):
        make_profile(PromptSet("none", ()))
    with pytest.raises(UsageError, match="prompt 0: the prompt is empty"):
        make_profile(PromptSet("empty", (Prompt([]),)), input_len=5)
    config = ProfileConfig(
        engine, batch="1", draft_lens="5", plain=plain, max_tokens=2, num_threads=1
    )
    (first,) = Engine.load(engine, num_threads=1).generate([prompt], max_tokens=1)

    class StopAtOnce(Engine):
        """The same engine, whose model would end every answer with its first token."""

    loaded = Engine.load

    prepared = []

    def load(path: Path, **options: Any) -> Engine:
        prepared.append(options.get("draft_lens"))
        engine = loaded(path, **options)
        object.__setattr__(engine.config, "eos_token_ids", (first.token_ids[0],))
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler.Engine, "load", load)
        with pytest.raises(EngineError, match="no decode step had its whole batch"):
            profile(config, PromptSet("one", (Prompt(prompt),)))
    assert prepared == [(5,), None]  # the plain one has no drafts


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(5, 1, [1] * 5), (48, 4, [16] * 3), (20, 2, [10, 10]), (3, 4, [3])],
)
def test_split_into_rounds_of_equal_size(count: int, batch: int, sizes: list[int]) -> None:
    rounds = split_into_rounds(list(range(count)), batch)
    assert [len(part) for part in rounds] == sizes
    assert [item for part in rounds for item in part] == list(range(count))
