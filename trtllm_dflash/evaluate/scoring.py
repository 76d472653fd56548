"""One or two engines read a text, side by side and a few tokens at a time, so that no more logits
are ever held.
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

# Wide enough for fast products, narrow enough for the outputs of all linears of a large model to be
# held twice.
MAX_ROWS = 64


@dataclass(frozen=True)
class Scores:
    """Perplexities in the order of the engines, and what the first changes against the second, if
    there is one.
    """

    perplexities: tuple[float, ...]
    comparison: EngineComparison | None


def score(
    engines: Sequence[EvaluatedEngine],
    windows: Sequence[Int64],
    *,
    num_threads: int | None,
    progress: Progress,
) -> Scores:
    """Predict every token of every window [n] but its first, with one engine or with two."""
    graphs = [TargetGraph.load(engine.directory / MODEL_FILE) for engine in engines]
    matched, unmatched = _match(graphs) if len(graphs) > 1 else ([], [])
    sessions = [
        LogitsSession(
            engine.directory, engine.config, graph, linears=matched, num_threads=num_threads
        )
        for engine, graph in zip(engines, graphs, strict=True)
    ]
    losses, divergence, errors = (
        [NegLogLikelihood() for _ in sessions],
        Divergence(),
        OutputErrors(),
    )
    total, done = sum(map(len, windows)), 0
    for chunk, following in _chunks(
        sessions, windows, min(MAX_ROWS, *(s.config.max_num_tokens for s in engines))
    ):
        outputs = [session.step(chunk) for session in sessions]
        predicted = [_predictions(s, o[HEAD], done) for s, o in zip(engines, outputs, strict=True)]
        for loss, rows in zip(losses, predicted, strict=True):
            loss.add(rows, following)
        if len(sessions) > 1:
            divergence.add(*predicted)
            for name in outputs[0]:
                errors.add(name, outputs[0][name], outputs[1][name])
        done += len(chunk)
        progress("reading the text", done, total)
    perplexities = tuple(loss.perplexity for loss in losses)
    if len(sessions) == 1:
        return Scores(perplexities, None)
    return Scores(perplexities, _comparison(perplexities, divergence, errors, unmatched))


def _match(graphs: Sequence[TargetGraph]) -> tuple[list[str], list[str]]:
    """Names of linears that both have in one size, in the order of the first; and the others."""
    sizes = [{name: linear.size for name, linear in graph.linears.items()} for graph in graphs]
    both = [name for name, size in sizes[0].items() if sizes[1].get(name) == size]
    return both, [name for name in {**sizes[0], **sizes[1]} if name not in set(both)]


def _chunks(
    sessions: Sequence[LogitsSession], windows: Sequence[Int64], width: int
) -> Iterator[tuple[Int64, Int64]]:
    """Tokens to read and those that follow them in the same window (one fewer at its end); sessions
    start each anew.
    """
    for window in windows:
        for session in sessions:
            session.restart()
        for start in range(0, len(window), width):
            yield window[start : start + width], window[start + 1 : start + width + 1]


def _predictions(engine: EvaluatedEngine, logits: Float32, done: int) -> Float64:
    if not np.isfinite(logits).all():
        place = done + int(np.argmin(np.isfinite(logits).all(-1)))
        raise EngineError(
            f"{engine.directory}: the logits behind token {place} of the text are not finite"
            " numbers, so this engine is of no use. If it is quantized, look at the checkpoint's"
            " scales; else at its weights."
        )
    return log_probabilities(logits)


def _comparison(
    perplexities: tuple[float, ...],
    divergence: Divergence,
    errors: OutputErrors,
    unmatched: list[str],
) -> EngineComparison:
    kl, relative = divergence.kl, errors.relative()
    return EngineComparison(
        positions=divergence.positions,
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1=divergence.top1,
        perplexity_increase=perplexities[0] / perplexities[1] - 1,
        linear_errors={
            name: relative[name] for name in [*(n for n in relative if n != HEAD), HEAD]
        },
        unmatched=tuple(unmatched),
    )
