"""Predicting a text with one or two engines, a few tokens at a time.

Two engines go through the text together, so that only the logits of one chunk are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_dflash.engine_dir.files import MODEL_FILE
from trtllm_dflash.errors import EngineError
from trtllm_dflash.evaluate.engine_under_test import EvaluatedEngine
from trtllm_dflash.evaluate.logits_session import LogitsSession
from trtllm_dflash.evaluate.metrics import (
    Divergence,
    Float64,
    NegLogLikelihood,
    OutputErrors,
    log_probabilities,
)
from trtllm_dflash.evaluate.result import EngineComparison
from trtllm_dflash.evaluate.target_graph import HEAD, TargetGraph
from trtllm_dflash.log import Progress
from trtllm_dflash.runtime.sessions.base import Float32, Int64

# Wide enough for fast products, narrow enough to hold the outputs of all linears of a large model
# twice.
MAX_ROWS = 64


@dataclass(frozen=True)
class Scores:
    """Perplexities in the order of the engines, and the comparison of two engines."""

    perplexities: tuple[float, ...]
    comparison: EngineComparison | None


def score(
    engines: Sequence[EvaluatedEngine],
    windows: Sequence[Int64],
    *,
    num_threads: int | None,
    progress: Progress,
) -> Scores:
    """Predict every token of every window [n] but its first, with one engine or with two.

    Raises:
        EngineError: for logits that are not finite.
    """
    graphs = [TargetGraph.load(engine.directory / MODEL_FILE) for engine in engines]
    compared = len(engines) > 1
    matched, unmatched = _match_linears(graphs[0], graphs[1]) if compared else ([], [])
    sessions = []
    for engine, graph in zip(engines, graphs, strict=True):
        session = LogitsSession(
            engine.directory, engine.config, graph, linears=matched, num_threads=num_threads
        )
        sessions.append(session)
    likelihoods = [NegLogLikelihood() for _ in sessions]
    divergence = Divergence()
    errors = OutputErrors()
    width = min(MAX_ROWS, *(engine.config.max_num_tokens for engine in engines))
    total = sum(map(len, windows))
    done = 0
    for chunk, following in _chunks(sessions, windows, width):
        outputs = [session.step(chunk) for session in sessions]
        predicted = [
            _predictions(engine, output[HEAD], done)
            for engine, output in zip(engines, outputs, strict=True)
        ]
        for likelihood, rows in zip(likelihoods, predicted, strict=True):
            likelihood.add(rows, following)
        if compared:
            divergence.add(*predicted)
            for name, output in outputs[0].items():
                errors.add(name, output, outputs[1][name])
        done += len(chunk)
        progress("reading the text", done, total)
    perplexities = tuple(likelihood.perplexity for likelihood in likelihoods)
    comparison = _comparison(perplexities, divergence, errors, unmatched) if compared else None
    return Scores(perplexities, comparison)


def _match_linears(ours: TargetGraph, other: TargetGraph) -> tuple[list[str], list[str]]:
    """Return the names of linears that both have in one size, and the other names."""
    sizes = [
        {name: linear.size for name, linear in graph.linears.items()} for graph in (ours, other)
    ]
    matched = [name for name, size in sizes[0].items() if sizes[1].get(name) == size]
    return matched, [name for name in sizes[0] | sizes[1] if name not in set(matched)]


def _chunks(
    sessions: Sequence[LogitsSession], windows: Sequence[Int64], width: int
) -> Iterator[tuple[Int64, Int64]]:
    """Yield token ids to read, and those that follow them in the same window.

    The last chunk of a window has one fewer of these. Sessions restart with each window.
    """
    for window in windows:
        for session in sessions:
            session.restart()
        for start in range(0, len(window), width):
            end = start + width
            yield window[start:end], window[start + 1 : end + 1]


def _predictions(engine: EvaluatedEngine, logits: Float32, done: int) -> Float64:
    """Return log probabilities, or raise EngineError for logits that are not finite."""
    finite = np.isfinite(logits).all(-1)
    if not finite.all():
        position = done + int(np.argmin(finite))
        raise EngineError(
            f"{engine.directory}: the logits after token {position} of the text are not finite"
            " numbers, so this engine is unusable. If it is quantized, check the checkpoint's"
            " scales, otherwise its weights."
        )
    return log_probabilities(logits)


def _comparison(
    perplexities: tuple[float, ...],
    divergence: Divergence,
    errors: OutputErrors,
    unmatched: list[str],
) -> EngineComparison:
    """Return the comparison of two engines over the whole text."""
    kl = divergence.kl
    relative = errors.relative()
    relative[HEAD] = relative.pop(HEAD)  # the head comes last
    return EngineComparison(
        positions=divergence.positions,
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1=divergence.top1,
        perplexity_increase=perplexities[0] / perplexities[1] - 1,
        linear_errors=relative,
        unmatched=tuple(unmatched),
    )
