"""Drafts from the drafter, from the text itself, and from both: the tokens are the same.

Random requests share an engine's slots. Each allows other sources and widths, some are cancelled,
and slots are used again and moved. Prompts repeat themselves, so that lookup finds matches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.builds import build_here
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.draft_sources import ALLOWED
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.scheduler import Scheduler

MOST_TOKENS = 40
VOCAB = 60  # ids of all tiny models


def repetitive(random: np.random.Generator) -> list[int]:
    """Return a prompt in which a few phrases come again and again."""
    phrases = [random.integers(3, VOCAB, random.integers(2, 9)).tolist() for _ in range(3)]
    order = random.integers(0, 3, random.integers(1, 9))
    return [token for phrase in order for token in phrases[phrase]]


def random_options(random: np.random.Generator, block_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_tokens": int(random.integers(1, MOST_TOKENS)),
        "drafts": str(random.choice(ALLOWED)),
        "draft_len": int(random.integers(0, block_size)),
        "stop_token_ids": [],
    }
    if random.random() < 0.3:
        options |= {"temperature": 0.8, "seed": int(random.integers(1 << 30))}
    return options


def run_together(
    engine: Engine, cases: list[tuple[list[int], dict[str, Any]]], random: np.random.Generator
) -> list[tuple[Request, bool]]:
    """Run requests in as many slots as random allows; tell of each whether it was cancelled."""
    config = engine.config
    scheduler = Scheduler(
        engine._session,
        vocab_size=config.vocab_size,
        prompt_tokens_per_step=int(random.integers(2, 9)) if random.random() < 0.5 else None,
        slots=int(random.integers(1, config.max_batch_size + 1)),
    )
    scheduler.discard()
    made = [make_requests([prompt], SamplingParams(**o), config)[0] for prompt, o in cases]
    waiting = list(made)
    cancelled = set()
    while waiting or scheduler.busy:
        if waiting and random.random() < 0.5:
            scheduler.add(waiting.pop(0))
        running = [one for one in scheduler.in_slots if one.finish_reason is None]
        if running and random.random() < 0.02:
            request = running[int(random.integers(len(running)))]
            scheduler.end(request, "cancelled")
            cancelled.add(request)
        if scheduler.busy:
            scheduler.step()
    return [(request, request in cancelled) for request in made]


def check_combinations(engine: Engine, *, seed: int, rounds: int) -> dict[str, int]:
    """Check random combinations against plain decoding alone; return accepted drafts by source."""
    random = np.random.default_rng(seed)
    accepted = dict.fromkeys(("dflash", "lookup"), 0)
    for _ in range(rounds):
        count = int(random.integers(2, 7))
        block_size = engine.config.block_size
        cases = [(repetitive(random), random_options(random, block_size)) for _ in range(count)]
        found = run_together(engine, cases, random)
        for (prompt, options), (request, was_cancelled) in zip(cases, found, strict=True):
            plain = options | {"draft": False, "draft_len": None}
            (expected,) = engine.generate([prompt], **plain)
            count = len(request.output_ids) if was_cancelled else len(expected.token_ids)
            assert request.output_ids == expected.token_ids[:count], options
            check_counts(request, options["drafts"])
            for source, drafts in request.drafts_by_source.items():
                accepted[source] += drafts.accepted
    return accepted


def check_counts(request: Request, allowed: str) -> None:
    """Check that drafts by source add up, and that no source drafted that may not.

    Where a request wants no drafts, lookup fills the block that its neighbours' width verifies.
    """
    found = request.drafts_by_source
    if allowed != "both" and request.widths.max_width > 1:
        assert set(found) <= {allowed}
    steps = len(request.acceptance_lengths)
    if request.widths.max_width > 1 or not steps:
        total = sum(request.acceptance_lengths) - steps
        assert sum(count.accepted for count in found.values()) == total
    assert sum(count.verified for count in found.values()) == request.num_verified.total()
    assert all(count.accepted <= count.verified for count in found.values())


def test_random_combinations(built_engine: Path) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    accepted = check_combinations(engine, seed=0, rounds=6)
    assert accepted["lookup"] > 20


@pytest.mark.slow
def test_many_random_combinations(built_engine: Path, ring_engine: Path) -> None:
    """With steps read late in the second half."""
    for directory in (built_engine, ring_engine):
        engine = Engine.load(directory, num_threads=1)
        for lookahead in (0, 1):
            engine._session.lookahead = lookahead
            accepted = check_combinations(engine, seed=lookahead, rounds=40)
            assert accepted["lookup"] > 60


FAMILIES: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "qwen3_5": lambda folder: _pair(folder, tiny_hybrid(folder / "target", "qwen3_5")),
    "qwen3_next": lambda folder: _pair(folder, tiny_hybrid(folder / "target", "qwen3_next")),
    "gpt_oss": lambda folder: _pair(
        folder, tiny_gpt_oss(folder / "target", sizes={"layers": 5})
    ),
    "llama": lambda folder: _pair(folder, tiny_target(folder / "target", "llama")),
    "dflash2": lambda folder: _pair(
        folder, tiny_target(folder / "target", "qwen3"), drafter=tiny_dflash2
    ),
}


def _pair(folder: Path, target: Path, drafter: Any = tiny_drafter) -> tuple[Path, Path]:
    return target, drafter(folder / "drafter", target, variant="mixed")


def family_engine(name: str, folder: Path) -> Engine:
    """Build and load a tiny CPU engine of a family, with a drafter of its kind."""
    target, drafter = FAMILIES[name](folder)
    sizes: dict[str, Any] = {"max_batch_size": 3, "max_seq_len": 192, "max_num_tokens": 8}
    build_here(BuildConfig(str(target), folder / "cpu", drafter=str(drafter), **sizes))
    return Engine.load(folder / "cpu", num_threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_combinations_of_families(name: str, tmp_path: Path) -> None:
    engine = family_engine(name, tmp_path)
    accepted = check_combinations(engine, seed=5, rounds=12)
    assert accepted["lookup"]


def test_a_batch_is_like_alone(built_engine: Path) -> None:
    """A slot's choice of sources depends on its own text alone: so do acceptance lengths."""
    engine = Engine.load(built_engine, num_threads=1)
    random = np.random.default_rng(3)
    prompts = [repetitive(random) for _ in range(4)]
    options: dict[str, Any] = {"max_tokens": 30, "stop_token_ids": []}
    for drafts in ALLOWED:
        together = engine.generate(prompts, drafts=drafts, **options)
        for prompt, batched in zip(prompts, together, strict=True):
            (alone,) = engine.generate([prompt], drafts=drafts, **options)
            assert alone.acceptance_lengths == batched.acceptance_lengths
            assert alone.drafts_by_source == batched.drafts_by_source


def test_lookup_finds_what_repeats(built_engine: Path) -> None:
    """A text that the model repeats is drafted whole, where the random drafter guesses."""
    engine = Engine.load(built_engine, num_threads=1)
    prompt = repetitive(np.random.default_rng(8))
    lengths = {}
    for drafts in ALLOWED:
        (answer,) = engine.generate([prompt], drafts=drafts, max_tokens=120, stop_token_ids=[])
        lengths[drafts] = answer.acceptance_length
    assert lengths["lookup"] > 1.5 * lengths["dflash"]
    assert lengths["both"] > 1.5 * lengths["dflash"]


def test_a_plain_engine_refuses_lookup_alone(build_tiny: Callable[..., Path]) -> None:
    engine = Engine.load(build_tiny(draft=False), num_threads=1)
    with pytest.raises(UsageError, match=r"drafts is .lookup., .* it has no drafter"):
        engine.generate([[3]], drafts="lookup")
    for drafts in ("dflash", "both"):
        assert engine.generate([[3]], drafts=drafts, max_tokens=2)[0].drafts_by_source == {}


def test_other_words_are_refused() -> None:
    with pytest.raises(UsageError, match="drafts 'ngram' is not known; choose one of dflash"):
        SamplingParams(drafts="ngram")
