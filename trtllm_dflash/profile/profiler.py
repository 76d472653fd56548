"""Measuring: refuse early, warm up, let the systems take turns, and add up."""

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
    BUILTIN_NAME,
    EncodedPrompt,
    Prompt,
    builtin_prompts,
    encode,
    fit_length,
    limit_per_category,
)
from trtllm_dflash.profile.result import SCHEMA, Profile, StepBreakdown, SystemResult
from trtllm_dflash.profile.step_breakdown import breakdown_by_differences
from trtllm_dflash.profile.summaries import SystemRun, point, system_result
from trtllm_dflash.profile.systems import BatchRun, System, engine_system
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import PromptError, make_requests
from trtllm_dflash.runtime.threads import resolve_num_threads

PLAIN = "plain"
WARM_UP_TOKENS = 8  # enough steps for every shape to have been run, and to be captured on a GPU
PROMPTS_A_SLOT = (
    4  # of a round: few enough for systems to alternate often, enough for most steps to be full
)
# Names of options in the JSON, where they differ.
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
        " the system is not ours, an answer's generation over its steps"
    ),
    "tokens_per_second_with_prefill": (
        "everything from the first prompt's token ids to the last answer's tokens"
    ),
    "never": "loading, tokenizing, warming up",
}


@dataclass(frozen=True)
class PromptSet:
    """The prompts to ask; `name` says where they stand, `chat` whether texts go into the model's
    chat format.
    """

    name: str
    prompts: tuple[Prompt, ...]
    chat: bool = True

    @classmethod
    def own(cls, *, chat: bool = True) -> PromptSet:
        """The package's prompts."""
        return cls(BUILTIN_NAME, tuple(builtin_prompts()), chat)


def profile(
    config: ProfileConfig,
    asked: PromptSet | None = None,
    *,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> Profile:
    """Measure an engine, a plain one beside it, and what else `config` names; `argv` (default: the
    process's) is recorded.

    Raises: DFlashError: if engines, prompts or options cannot be used, before anything is measured;
    or if all answers end before a step has its whole batch.
    """
    asked = asked or PromptSet.own()
    engine_config = EngineConfig.load(config.engine)
    plan = _Sweep.make(config, engine_config)
    machine = provenance.machine_facts(resolve_num_threads(config.num_threads))
    with plain_engine(
        config.engine, engine_config, given=config.plain, target=config.target, progress=progress
    ) as plain_path:
        engine, plain = (
            Engine.load(path, num_threads=config.num_threads)
            for path in (config.engine, plain_path)
        )
        questions = _questions(config, asked, (engine, plain), plan)
        measured = _measure(
            config, plan, _systems(config, plan, engine, plain), questions, progress
        )
        step_breakdowns = _step_breakdowns(config, plan, plain_path, questions, progress)
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
        config,
        plan,
        measured,
        questions,
        step_breakdowns,
        facts,
        sys.argv if argv is None else argv,
    )


@dataclass(frozen=True)
class _Sweep:
    """What is measured of the engines."""

    engine: Path
    config: EngineConfig
    batches: tuple[int, ...]
    draft_lens: tuple[int, ...]

    @classmethod
    def make(cls, config: ProfileConfig, engine: EngineConfig) -> _Sweep:
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
        """A DFlash system's name."""
        return f"DFlash {draft_len}"


def _questions(
    config: ProfileConfig, asked: PromptSet, engines: Sequence[Engine], plan: _Sweep
) -> list[EncodedPrompt]:
    """Token ids of the prompts, once all engines are known to take them."""
    if not asked.prompts:
        raise UsageError("there is no prompt to ask.")
    prompts = limit_per_category(asked.prompts, config.per_category)
    questions = fit_length(encode(prompts, engines[0].tokenizer, chat=asked.chat), config.input_len)
    for engine in engines:
        if plan.batches[-1] > engine.config.max_batch_size:
            raise UsageError(
                f"--batch {plan.batches[-1]}: the plain engine has {engine.config.max_batch_size}"
                " slots (its --max-batch-size). Leave --plain out, and one is built that has as"
                " many as the DFlash engine."
            )
        sampling = SamplingParams(max_tokens=config.max_tokens)
        try:
            make_requests([question.token_ids for question in questions], sampling, engine.config)
        except PromptError as error:
            where = prompts[error.index].where or f"prompt {error.index}"
            raise UsageError(f"{where}: the prompt {error.problem}") from error
    return questions


def _systems(config: ProfileConfig, plan: _Sweep, engine: Engine, plain: Engine) -> list[System]:
    sampling: dict[str, Any] = {
        name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "seed")
    }
    stops = () if config.ignore_eos else engine.config.eos_token_ids
    sampling |= {"stop_token_ids": stops}
    systems = [engine_system(PLAIN, PLAIN, plain, 0, **sampling)]
    systems += [
        engine_system(plan.name(length), "dflash", engine, length, **sampling)
        for length in plan.draft_lens
    ]
    if not config.peers:
        return systems
    from trtllm_dflash.profile.external_systems import load_external_systems

    drafter = (
        checkpoint(config.engine, "drafter", config.drafter)
        if "reference" in config.peers
        else None
    )
    return systems + load_external_systems(
        config.peers,
        checkpoint(config.engine, "target", config.target),
        drafter,
        block_size=engine.config.block_size,
        stops=stops,
        num_threads=resolve_num_threads(config.num_threads),
    )


def _measure(
    config: ProfileConfig,
    plan: _Sweep,
    systems: Sequence[System],
    questions: Sequence[EncodedPrompt],
    progress: Progress,
) -> list[SystemRun]:
    """All systems on all questions at every batch size; in each round another system begins."""
    measured = []
    for batch in plan.batches:
        taking = [system for system in systems if system.takes(batch)]
        # With fewer questions than slots they are asked several times, all equally often.
        repeated = [question.token_ids for question in questions] * -(-batch // len(questions))
        for system in taking:
            system.run(repeated[:batch], batch, min(WARM_UP_TOKENS, config.max_tokens))
        rounds: dict[str, list[BatchRun]] = {system.name: [] for system in taking}
        parts = split_into_rounds(repeated, batch)
        for number, part in enumerate(parts):
            first = number % len(taking)
            for system in [*taking[first:], *taking[:first]]:
                rounds[system.name].append(system.run(part, batch, config.max_tokens))
            progress(f"batch {batch}", number + 1, len(parts))
        measured += [SystemRun(system, batch, rounds[system.name]) for system in taking]
    return measured


def split_into_rounds(prompts: Sequence[Any], batch: int) -> list[Sequence[Any]]:
    """The prompts in rounds of nearly equal size: one each for a batch of 1, else enough to fill
    the batch for long.
    """
    size = 1 if batch == 1 else PROMPTS_A_SLOT * batch
    count = max(1, len(prompts) // size)
    bounds = [len(prompts) * index // count for index in range(count + 1)]
    return [prompts[begin:end] for begin, end in pairwise(bounds)]


def _step_breakdowns(
    config: ProfileConfig,
    plan: _Sweep,
    plain: Path,
    questions: Sequence[EncodedPrompt],
    progress: Progress,
) -> list[StepBreakdown]:
    """Kernel times, where the backend has them."""
    if plan.config.backend != "onnxruntime":
        return []
    from trtllm_dflash.profile.ort_trace import trace_step_breakdowns

    options: dict[str, Any] = {
        "batches": plan.batches,
        "prompts": [question.token_ids for question in questions],
        "output_len": config.max_tokens,
        "num_threads": config.num_threads,
    }
    names = {length: plan.name(length) for length in plan.draft_lens}
    step_breakdowns = []
    for done, (directory, systems) in enumerate(((plan.engine, names), (plain, {0: PLAIN}))):
        progress("timing kernels", done, 2)
        step_breakdowns += trace_step_breakdowns(
            directory, EngineConfig.load(directory), systems, **options
        )
    progress("timing kernels", 2, 2)
    return sorted(
        step_breakdowns,
        key=lambda breakdown: (breakdown.batch, breakdown.system != PLAIN, breakdown.draft_len),
    )


def _profile(
    config: ProfileConfig,
    plan: _Sweep,
    measured: Sequence[SystemRun],
    questions: Sequence[EncodedPrompt],
    step_breakdowns: list[StepBreakdown],
    facts: Mapping[str, Any],
    argv: Sequence[str],
) -> Profile:
    plain = {one.batch: one.answers for one in measured if one.system.name == PLAIN}
    results = []
    for one in measured:
        repeated = list(questions) * (len(one.answers) // len(questions))
        found = system_result(one, repeated, plain[one.batch])
        results += [found] if found is not None else []
    curves = _curves(measured)
    implementations = {one.system.name: one.system.implementation for one in measured}
    dflash = [
        spot for curve in curves if implementations[curve.name] == "dflash" for spot in curve.points
    ]
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
        step_breakdowns=step_breakdowns or breakdown_by_differences(_own_results(results)),
        advice=advise(dflash, baseline),
        **facts,
    )


def _curves(measured: Sequence[SystemRun]) -> list[Curve]:
    names = list(dict.fromkeys(one.system.name for one in measured))
    curves = []
    for name in names:
        spots = [point(one) for one in measured if one.system.name == name]
        curves.append(Curve(name, tuple(spot for spot in spots if spot is not None)))
    return [curve for curve in curves if curve.points]


def _own_results(results: Sequence[SystemResult]) -> list[SystemResult]:
    """Those of our own engines, which have the same step."""
    return [result for result in results if result.implementation in ("dflash", PLAIN)]


def _prompt_facts(asked: PromptSet, questions: Sequence[EncodedPrompt]) -> dict[str, Any]:
    return {
        "name": asked.name,
        "chat": asked.chat,
        "token_ids_sha256": digest([question.token_ids for question in questions]),
        "count": len(questions),
        "tokens": sum(len(question.token_ids) for question in questions),
        "categories": dict(Counter(question.category for question in questions)),
    }
