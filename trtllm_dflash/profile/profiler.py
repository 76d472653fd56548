"""Measuring: refuse early, warm up, let the sides take turns, and add up."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.log import Progress, ignore_progress
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.profile import provenance
from trtllm_dflash.profile.advice import advise
from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.plain_engine import checkpoint, digest, engine_facts, plain_engine
from trtllm_dflash.profile.prompts import (
    OWN_NAME,
    Prompt,
    Question,
    encode,
    fit,
    limit_per_category,
    own_prompts,
)
from trtllm_dflash.profile.result import SCHEMA, Profile, SideResult, Split
from trtllm_dflash.profile.step_breakdown import split_by_differences
from trtllm_dflash.profile.summaries import Measured, point, side_result
from trtllm_dflash.profile.systems import Round, Side, engine_side
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.request import PromptError, make_requests
from trtllm_dflash.runtime.threads import resolve_num_threads

PLAIN = "plain"
WARM_UP_TOKENS = 8  # enough steps for every shape to have been run, and to be captured on a GPU
PROMPTS_A_SLOT = (
    4  # of a round: few enough for sides to alternate often, enough for most steps to be full
)
CLOCK = {
    "ttft_seconds": (
        "a prompt's own steps, from the first one's begin to the first token; not the wait for a"
        " slot"
    ),
    "tpot_seconds": (
        "the generation steps that an answer took part in, over its tokens after the first; not the"
        " time in which they wait for another prompt's steps"
    ),
    "step_seconds": (
        "a generation step's inputs, engine and outputs, while the whole batch takes part; where"
        " the side is not ours, an answer's generation over its steps"
    ),
    "tokens_per_second_with_prompts": (
        "everything from the first prompt's token ids to the last answer's tokens"
    ),
    "never": "loading, tokenizing, warming up",
}


@dataclass(frozen=True)
class Asked:
    """The prompts to ask; `name` says where they stand, `chat` whether texts go into the model's
    chat format.
    """

    name: str
    prompts: tuple[Prompt, ...]
    chat: bool = True

    @classmethod
    def own(cls, *, chat: bool = True) -> Asked:
        """The package's prompts."""
        return cls(OWN_NAME, tuple(own_prompts()), chat)


def profile(
    config: ProfileConfig,
    asked: Asked | None = None,
    *,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> Profile:
    """Measure an engine, a plain one beside it, and what else `config` names; `argv` (default: the
    process's) is recorded.

    Raises: DFlashError: if engines, prompts or options cannot be used, before anything is measured;
    or if all answers end before a step has its whole batch.
    """
    asked = asked or Asked.own()
    engine_config = EngineConfig.load(config.engine)
    plan = _Plan.make(config, engine_config)
    machine = provenance.machine_facts(resolve_num_threads(config.num_threads))
    with plain_engine(
        config.engine, engine_config, given=config.plain, target=config.target, progress=progress
    ) as plain_path:
        engine, plain = (
            Engine.load(path, num_threads=config.num_threads)
            for path in (config.engine, plain_path)
        )
        questions = _questions(config, asked, (engine, plain), plan)
        measured = _measure(config, plan, _sides(config, plan, engine, plain), questions, progress)
        splits = _splits(config, plan, plain_path, questions, progress)
        facts = {
            "machine": machine,
            "engine": engine_facts(config.engine, engine.config),
            "plain": (
                engine_facts(plain_path, plain.config)
                | ({} if config.plain else {"directory": None})
            ),
            "prompts": _prompt_facts(asked, questions),
        }
    return _profile(
        config, plan, measured, questions, splits, facts, sys.argv if argv is None else argv
    )


@dataclass(frozen=True)
class _Plan:
    """What is measured of the engines."""

    engine: Path
    config: EngineConfig
    batches: tuple[int, ...]
    draft_lens: tuple[int, ...]

    @classmethod
    def make(cls, config: ProfileConfig, engine: EngineConfig) -> _Plan:
        """Resolve the defaults; what the engine cannot do raises UsageError."""
        if not engine.speculates:
            raise UsageError(
                f"{config.engine}: this engine has no drafter, so there is nothing to compare it"
                " with. Give the DFlash engine, and this one as --plain."
            )
        most = engine.max_batch_size
        batches = config.batches or tuple(
            2**power for power in range(most.bit_length()) if 2**power <= most
        )
        if batches[-1] > most:
            raise UsageError(
                f"--batch {batches[-1]}: {config.engine} has {most} slots (its --max-batch-size)."
            )
        lengths = config.lengths or tuple(sorted({0, engine.draft_len, engine.block_size - 1}))
        if lengths[-1] >= engine.block_size:
            raise UsageError(
                f"--draft-lens {lengths[-1]}: a block of {engine.block_size} holds"
                f" {engine.block_size - 1} drafts."
            )
        return cls(config.engine, engine, batches, lengths)

    def name(self, draft_len: int) -> str:
        """A DFlash side's name."""
        return f"DFlash {draft_len}"


def _questions(
    config: ProfileConfig, asked: Asked, engines: Sequence[Engine], plan: _Plan
) -> list[Question]:
    """Token ids of the prompts, once all engines are known to take them."""
    if not asked.prompts:
        raise UsageError("there is no prompt to ask.")
    prompts = limit_per_category(asked.prompts, config.per_kind)
    questions = fit(encode(prompts, engines[0].tokenizer, chat=asked.chat), config.input_len)
    for engine in engines:
        if plan.batches[-1] > engine.config.max_batch_size:
            raise UsageError(
                f"--batch {plan.batches[-1]}: the plain engine has {engine.config.max_batch_size}"
                " slots (its --max-batch-size). Leave --plain out, and one is built that has as"
                " many as the DFlash engine."
            )
        sampling = SamplingParams(max_tokens=config.output_len)
        try:
            make_requests([question.token_ids for question in questions], sampling, engine.config)
        except PromptError as error:
            where = prompts[error.index].where or f"prompt {error.index}"
            raise UsageError(f"{where}: the prompt {error.problem}") from error
    return questions


def _sides(config: ProfileConfig, plan: _Plan, engine: Engine, plain: Engine) -> list[Side]:
    sampling: dict[str, Any] = {
        name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "seed")
    }
    stops = () if config.ignore_eos else engine.config.eos_token_ids
    sampling |= {"stop_token_ids": stops}
    sides = [engine_side(PLAIN, PLAIN, plain, 0, **sampling)]
    sides += [
        engine_side(plan.name(length), "dflash", engine, length, **sampling)
        for length in plan.draft_lens
    ]
    if not config.peers:
        return sides
    from trtllm_dflash.profile.external_systems import peer_sides

    drafter = (
        checkpoint(config.engine, "drafter", config.drafter)
        if "reference" in config.peers
        else None
    )
    return sides + peer_sides(
        config.peers,
        checkpoint(config.engine, "target", config.target),
        drafter,
        block_size=engine.config.block_size,
        stops=stops,
        num_threads=resolve_num_threads(config.num_threads),
    )


def _measure(
    config: ProfileConfig,
    plan: _Plan,
    sides: Sequence[Side],
    questions: Sequence[Question],
    progress: Progress,
) -> list[Measured]:
    """All sides on all questions at every batch size; in each round another side begins."""
    measured = []
    for batch in plan.batches:
        taking = [side for side in sides if side.takes(batch)]
        # With fewer questions than slots they are asked several times, all equally often.
        repeated = [question.token_ids for question in questions] * -(-batch // len(questions))
        for side in taking:
            side.run(repeated[:batch], batch, min(WARM_UP_TOKENS, config.output_len))
        rounds: dict[str, list[Round]] = {side.name: [] for side in taking}
        parts = rounds_of(repeated, batch)
        for number, part in enumerate(parts):
            first = number % len(taking)
            for side in [*taking[first:], *taking[:first]]:
                rounds[side.name].append(side.run(part, batch, config.output_len))
            progress(f"batch {batch}", number + 1, len(parts))
        measured += [Measured(side, batch, rounds[side.name]) for side in taking]
    return measured


def rounds_of(prompts: Sequence[Any], batch: int) -> list[Sequence[Any]]:
    """The prompts in rounds of nearly equal size: one each for a batch of 1, else enough to fill
    the batch for long.
    """
    size = 1 if batch == 1 else PROMPTS_A_SLOT * batch
    count = max(1, len(prompts) // size)
    bounds = [len(prompts) * index // count for index in range(count + 1)]
    return [prompts[begin:end] for begin, end in pairwise(bounds)]


def _splits(
    config: ProfileConfig,
    plan: _Plan,
    plain: Path,
    questions: Sequence[Question],
    progress: Progress,
) -> list[Split]:
    """Kernel times, where the backend has them."""
    if plan.config.backend != "onnxruntime":
        return []
    from trtllm_dflash.profile.ort_trace import trace_splits

    options: dict[str, Any] = {
        "batches": plan.batches,
        "prompts": [question.token_ids for question in questions],
        "output_len": config.output_len,
        "num_threads": config.num_threads,
    }
    names = {length: plan.name(length) for length in plan.draft_lens}
    splits = []
    for done, (directory, sides) in enumerate(((plan.engine, names), (plain, {0: PLAIN}))):
        progress("timing kernels", done, 2)
        splits += trace_splits(directory, EngineConfig.load(directory), sides, **options)
    progress("timing kernels", 2, 2)
    return sorted(splits, key=lambda split: (split.batch, split.side != PLAIN, split.draft_len))


def _profile(
    config: ProfileConfig,
    plan: _Plan,
    measured: Sequence[Measured],
    questions: Sequence[Question],
    splits: list[Split],
    facts: Mapping[str, Any],
    argv: Sequence[str],
) -> Profile:
    plain = {one.batch: one.answers for one in measured if one.side.name == PLAIN}
    results = []
    for one in measured:
        repeated = list(questions) * (len(one.answers) // len(questions))
        found = side_result(one, repeated, plain[one.batch])
        results += [found] if found is not None else []
    curves = _curves(measured)
    makers = {one.side.name: one.side.maker for one in measured}
    dflash = [spot for curve in curves if makers[curve.name] == "dflash" for spot in curve.points]
    baseline = [spot for curve in curves if curve.name == PLAIN for spot in curve.points]
    if not {spot.batch for spot in dflash} & {spot.batch for spot in baseline}:
        raise EngineError(
            "no generation step had its whole batch: all answers ended at once. Give other"
            " --prompts, or --ignore-eos."
        )
    settings = {
        name: value for name, value in asdict(config).items() if not isinstance(value, Path | None)
    }
    return Profile(
        schema=SCHEMA,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=list(argv),
        commit=provenance.commit(),
        versions=versions_of(provenance.PACKAGES),
        settings=settings | {"batch": list(plan.batches), "draft_lens": list(plan.draft_lens)},
        clock=CLOCK,
        results=results,
        curves=curves,
        splits=splits or split_by_differences(_by_side(results)),
        advice=advise(dflash, baseline),
        **facts,
    )


def _curves(measured: Sequence[Measured]) -> list[Curve]:
    names = list(dict.fromkeys(one.side.name for one in measured))
    curves = []
    for name in names:
        spots = [point(one) for one in measured if one.side.name == name]
        curves.append(Curve(name, tuple(spot for spot in spots if spot is not None)))
    return [curve for curve in curves if curve.points]


def _by_side(results: Sequence[SideResult]) -> list[SideResult]:
    """Those of our own engines, which have the same step."""
    return [result for result in results if result.maker in ("dflash", PLAIN)]


def _prompt_facts(asked: Asked, questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "name": asked.name,
        "chat": asked.chat,
        "token_ids_sha256": digest([question.token_ids for question in questions]),
        "count": len(questions),
        "tokens": sum(len(question.token_ids) for question in questions),
        "kinds": dict(Counter(question.kind for question in questions)),
    }
