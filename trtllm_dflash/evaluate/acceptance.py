"""The acceptance length of an engine on the user's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.log import Progress
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.outputs import mean
from trtllm_dflash.runtime.preprocess import make_requests

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class PromptAcceptance:
    """The outcome of greedy decoding of some prompts with the engine's own number of drafts.

    An engine that takes as many as pay here verifies all of its block, so that the steps are the
    same in every run.

    `acceptance_length` is the mean number of tokens that a decode step yields, bonus included; 0.0
    where no step was needed.
    """

    prompts: int
    draft_len: int
    steps: int
    tokens: int
    acceptance_length: float


def check_prompts(prompts: Prompts, config: EngineConfig, max_tokens: int) -> None:
    """Raise PromptError for a prompt that the engine cannot take."""
    make_requests(prompts, SamplingParams(max_tokens=max_tokens), config)


def measure_acceptance(
    directory: Path,
    prompts: Prompts,
    *,
    max_tokens: int,
    num_threads: int | None,
    progress: Progress,
) -> PromptAcceptance:
    """Answer all prompts with an engine that has a drafter."""
    engine = Engine.load(directory, num_threads=num_threads)
    draft_len = engine.config.draft_len
    # Of the drafter alone: it is the pair that is judged.
    stream = engine.stream(prompts, max_tokens=max_tokens, drafts="dflash", draft_len=draft_len)
    phase = f"answering with {directory.name}"
    for _ in stream:
        progress(phase, len(stream.finished), len(prompts))
    lengths = []
    for answer in stream.generations():
        lengths += answer.acceptance_lengths
    return PromptAcceptance(len(prompts), draft_len, len(lengths), sum(lengths), mean(lengths))
