"""Measuring: check everything early, warm up, and let the systems take turns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import Progress, ignore_progress
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.profile.assemble import assemble, prompt_facts
from trtllm_dflash.profile.engine_origin import engine_facts, find_checkpoint
from trtllm_dflash.profile.plain_engine import plain_engine
from trtllm_dflash.profile.prompts import (
    EncodedPrompt,
    PromptSet,
    encode,
    fit_length,
    limit_per_category,
)
from trtllm_dflash.profile.provenance import machine_facts
from trtllm_dflash.profile.result import DFLASH, PLAIN, REFERENCE, Profile, StepBreakdown
from trtllm_dflash.profile.summaries import SystemRun
from trtllm_dflash.profile.sweep import Sweep
from trtllm_dflash.profile.systems import BatchRun, System, engine_system
from trtllm_dflash.runtime.engine import Engine, check_engine
from trtllm_dflash.runtime.preprocess import PromptError, make_requests
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.threads import resolve_num_threads

# Enough steps for every shape to have been run, and to be captured on a GPU.
WARM_UP_TOKENS = 8
# In a round: few enough for systems to alternate often, enough for most steps to be full.
PROMPTS_PER_SLOT = 4
_TIMING_KERNELS = "timing kernels"


def profile(
    config: ProfileConfig,
    prompt_set: PromptSet | None = None,
    *,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> Profile:
    """Measure an engine, a plain one beside it, and the other systems that `config` names.

    `prompt_set` defaults to the package's prompts, `argv`, which is recorded, to the process's.

    Raises:
        DFlashError: if engines, prompts or options cannot be used, before anything is measured; or
            if all answers end before a step has its whole batch.
    """
    prompt_set = prompt_set or PromptSet.builtin()
    engine_config = check_engine(config.engine)
    sweep = Sweep.resolve(config, engine_config)
    num_threads = resolve_num_threads(config.num_threads)
    if config.plain is not None:
        check_engine(config.plain)
    tokenizer = Tokenizer.of_engine(config.engine, engine_config)
    prompts = _encode_prompts(config, prompt_set, engine_config, tokenizer)
    _require_external_systems(config, engine_config)
    facts = {"machine": machine_facts(num_threads)}
    with plain_engine(
        config.engine,
        engine_config,
        given=config.plain,
        target=config.target,
        progress=progress,
    ) as plain_path:
        engine = Engine.load(
            config.engine, num_threads=config.num_threads, draft_lens=sweep.ready_draft_lens
        )
        plain = Engine.load(plain_path, num_threads=config.num_threads)
        _check_plain_fits(plain.config, sweep, prompts, config.max_tokens)
        systems = _systems(config, sweep, engine, plain)
        runs = _measure(config, sweep, systems, prompts, progress)
        breakdowns = _kernel_breakdowns(config, sweep, plain_path, prompts, progress)
        facts |= {
            "engine": engine_facts(config.engine, engine.config),
            "plain": engine_facts(plain_path, plain.config),
            "prompts": prompt_facts(prompt_set, prompts, tokenizer),
        }
    if config.plain is None:
        facts["plain"]["directory"] = None  # it was temporary
    argv = sys.argv if argv is None else argv
    return assemble(config, sweep, runs, prompts, breakdowns, facts=facts, argv=argv)


def _encode_prompts(
    config: ProfileConfig,
    prompt_set: PromptSet,
    engine_config: EngineConfig,
    tokenizer: Tokenizer | None,
) -> list[EncodedPrompt]:
    """Encode the prompts, and check that the DFlash engine takes them."""
    if not prompt_set.prompts:
        raise UsageError("there is no prompt to answer.")
    given = limit_per_category(prompt_set.prompts, config.per_category)
    encoded = encode(given, tokenizer, prompt_set.chat_format)
    longest = engine_config.max_input_len
    if config.input_len is not None and config.input_len > longest:
        raise UsageError(
            f"--input-len {config.input_len}: prompts of this engine hold at most {longest} tokens"
            " (max_input_len). Give less, or build with a larger --max-input-len."
        )
    prompts = fit_length(encoded, config.input_len)
    try:
        _check_prompts(prompts, engine_config, config.max_tokens)
    except PromptError as error:
        where = given[error.index].where or f"prompt {error.index}"
        raise UsageError(f"{where}: the prompt {error.problem}") from error
    return prompts


def _check_plain_fits(
    plain: EngineConfig, sweep: Sweep, prompts: Sequence[EncodedPrompt], max_tokens: int
) -> None:
    """Raise UsageError for a plain engine with too few slots, or too short for the prompts."""
    slots = plain.max_batch_size
    if sweep.batches[-1] > slots:
        raise UsageError(
            f"--batch {sweep.batches[-1]}: the plain engine has {slots} slots (its"
            " --max-batch-size). Leave --plain out, and one is built that has as many as the"
            " DFlash engine."
        )
    try:
        _check_prompts(prompts, plain, max_tokens)
    except PromptError as error:
        raise UsageError(f"--plain: prompt {error.index} {error.problem}") from error


def _check_prompts(
    prompts: Sequence[EncodedPrompt], config: EngineConfig, max_tokens: int
) -> None:
    """Raise PromptError for the first prompt that an engine does not take."""
    sampling = SamplingParams(max_tokens=max_tokens)
    make_requests([prompt.input_ids for prompt in prompts], sampling, config)


def _require_external_systems(config: ProfileConfig, engine_config: EngineConfig) -> None:
    """Import what --against needs, and find the drafter's checkpoint, before the long work.

    Raises:
        UsageError: for the reference beside a target whose state it cannot take back, and for
            checkpoints that the packages would compute otherwise.
    """
    if not config.external_baselines:
        return
    if REFERENCE in config.external_baselines and engine_config.has_states:
        raise UsageError(
            "--against reference: this target has linear attention. The package dflash 0.1.0 takes"
            " rejected drafts back with `crop` of the cache, which leaves a recurrent state as it"
            " is, so that its texts are wrong. Use --against plain,hf"
        )
    from trtllm_dflash.profile.external_systems import require_packages
    from trtllm_dflash.profile.reference_models import check_target, reference_class

    require_packages(config.external_baselines)
    target = find_checkpoint(config.engine, "target", config.target)
    check_target(target)
    if REFERENCE in config.external_baselines:
        reference_class(target, find_checkpoint(config.engine, "drafter", config.drafter))


def _systems(
    config: ProfileConfig, sweep: Sweep, engine: Engine, plain: Engine
) -> list[System]:
    """Return the plain engine, the DFlash engine by draft_len, and external systems."""
    stop_token_ids = () if config.ignore_eos else engine.config.eos_token_ids
    sampling: dict[str, Any] = {
        **config.row_values(),
        "seed": config.seed,
        "stop_token_ids": stop_token_ids,
    }
    systems = [engine_system(PLAIN, PLAIN, plain, 0, **sampling)]
    for draft_len, sources in sweep.systems:
        name = sweep.name_of(draft_len, sources)
        options = {**sampling, "drafts": sources}
        systems.append(engine_system(name, DFLASH, engine, draft_len, **options))
    if not config.external_baselines:
        return systems
    from trtllm_dflash.profile.external_systems import load_external_systems

    drafter = None
    if REFERENCE in config.external_baselines:
        drafter = find_checkpoint(config.engine, "drafter", config.drafter)
    return systems + load_external_systems(
        config.external_baselines,
        find_checkpoint(config.engine, "target", config.target),
        drafter,
        block_size=engine.config.block_size,
        stop_token_ids=stop_token_ids,
        num_threads=resolve_num_threads(config.num_threads),
    )


def _measure(
    config: ProfileConfig,
    sweep: Sweep,
    systems: Sequence[System],
    prompts: Sequence[EncodedPrompt],
    progress: Progress,
) -> list[SystemRun]:
    """Run all systems on all prompts at every batch size; another system begins each round."""
    system_runs = []
    for batch in sweep.batches:
        supported = [system for system in systems if system.supports(batch)]
        # With fewer prompts than slots they are answered several times, all equally often.
        repeated = [prompt.input_ids for prompt in prompts] * -(-batch // len(prompts))
        for system in supported:
            system.run(repeated[:batch], batch, min(WARM_UP_TOKENS, config.max_tokens))
        runs: dict[str, list[BatchRun]] = {system.name: [] for system in supported}
        rounds = split_into_rounds(repeated, batch)
        for number, part in enumerate(rounds):
            first = number % len(supported)
            for system in [*supported[first:], *supported[:first]]:
                runs[system.name].append(system.run(part, batch, config.max_tokens))
            progress(f"batch {batch}", number + 1, len(rounds))
        system_runs += [SystemRun(system, batch, runs[system.name]) for system in supported]
    return system_runs


def split_into_rounds(prompts: Sequence[Any], batch: int) -> list[Sequence[Any]]:
    """Split the prompts into rounds of nearly equal size.

    A round has one prompt for a batch of 1, else enough to keep the batch full for long.
    """
    size = 1 if batch == 1 else PROMPTS_PER_SLOT * batch
    count = max(1, len(prompts) // size)
    bounds = [len(prompts) * index // count for index in range(count + 1)]
    return [prompts[begin:end] for begin, end in pairwise(bounds)]


def _kernel_breakdowns(
    config: ProfileConfig,
    sweep: Sweep,
    plain: Path,
    prompts: Sequence[EncodedPrompt],
    progress: Progress,
) -> list[StepBreakdown]:
    """Break steps down by kernel times; [] where the backend does not time kernels."""
    if sweep.engine.backend != "onnxruntime":
        return []
    from trtllm_dflash.profile.ort_trace import trace_step_breakdowns

    engines = ((sweep.directory, sweep.system_names), (plain, {0: PLAIN}))
    breakdowns: list[StepBreakdown] = []
    for done, (directory, names) in enumerate(engines):
        progress(_TIMING_KERNELS, done, len(engines))
        breakdowns += trace_step_breakdowns(
            directory,
            EngineConfig.load(directory),
            names,
            batches=sweep.batches,
            prompts=[prompt.input_ids for prompt in prompts],
            max_tokens=config.max_tokens,
            num_threads=config.num_threads,
        )
    progress(_TIMING_KERNELS, len(engines), len(engines))
    return sorted(breakdowns, key=lambda one: (one.batch, one.system != PLAIN, one.draft_len))
