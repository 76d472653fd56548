"""One or two engines read a text, side by side and a few tokens at a time, so that no more logits
are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_dflash.errors import EngineError
from trtllm_dflash.evaluate.engine_under_test import Subject
from trtllm_dflash.evaluate.logits_session import MODEL_FILE, Probe
from trtllm_dflash.evaluate.metrics import (
    Divergence,
    Float64,
    Losses,
    OutputErrors,
    log_probabilities,
)
from trtllm_dflash.evaluate.result import Comparison
from trtllm_dflash.evaluate.target_graph import HEAD, TargetGraph
from trtllm_dflash.log import Progress
from trtllm_dflash.runtime.sessions.base import Float32, Int64

# Wide enough for fast products, narrow enough for the outputs of all linears of a large model to be
# held twice.
MOST_ROWS = 64


@dataclass(frozen=True)
class Reading:
    """Perplexities in the order of the engines, and what the first changes against the second, if
    there is one.
    """

    perplexities: tuple[float, ...]
    comparison: Comparison | None


def read(
    subjects: Sequence[Subject],
    windows: Sequence[Int64],
    *,
    num_threads: int | None,
    progress: Progress,
) -> Reading:
    """Predict every token of every window [n] but its first, with one engine or with two."""
    graphs = [TargetGraph.load(subject.directory / MODEL_FILE) for subject in subjects]
    matched, unmatched = _match(graphs) if len(graphs) > 1 else ([], [])
    probes = [
        Probe(subject.directory, subject.config, graph, linears=matched, num_threads=num_threads)
        for subject, graph in zip(subjects, graphs, strict=True)
    ]
    losses, divergence, errors = [Losses() for _ in probes], Divergence(), OutputErrors()
    total, done = sum(map(len, windows)), 0
    for chunk, following in _chunks(
        probes, windows, min(MOST_ROWS, *(s.config.max_num_tokens for s in subjects))
    ):
        outputs = [probe.step(chunk) for probe in probes]
        predicted = [_predictions(s, o[HEAD], done) for s, o in zip(subjects, outputs, strict=True)]
        for loss, rows in zip(losses, predicted, strict=True):
            loss.add(rows, following)
        if len(probes) > 1:
            divergence.add(*predicted)
            for name in outputs[0]:
                errors.add(name, outputs[0][name], outputs[1][name])
        done += len(chunk)
        progress("reading the text", done, total)
    perplexities = tuple(loss.perplexity for loss in losses)
    if len(probes) == 1:
        return Reading(perplexities, None)
    return Reading(perplexities, _comparison(perplexities, divergence, errors, unmatched))


def _match(graphs: Sequence[TargetGraph]) -> tuple[list[str], list[str]]:
    """Names of linears that both have in one size, in the order of the first; and the others."""
    sizes = [{name: linear.size for name, linear in graph.linears.items()} for graph in graphs]
    both = [name for name, size in sizes[0].items() if sizes[1].get(name) == size]
    return both, [name for name in {**sizes[0], **sizes[1]} if name not in set(both)]


def _chunks(
    probes: Sequence[Probe], windows: Sequence[Int64], width: int
) -> Iterator[tuple[Int64, Int64]]:
    """Tokens to read and those that follow them in the same window (one fewer at its end); probes
    start each anew.
    """
    for window in windows:
        for probe in probes:
            probe.restart()
        for start in range(0, len(window), width):
            yield window[start : start + width], window[start + 1 : start + width + 1]


def _predictions(subject: Subject, logits: Float32, done: int) -> Float64:
    if not np.isfinite(logits).all():
        place = done + int(np.argmin(np.isfinite(logits).all(-1)))
        raise EngineError(
            f"{subject.directory}: the logits behind token {place} of the text are not finite"
            " numbers, so this engine is of no use. If it is quantized, look at the checkpoint's"
            " scales; else at its weights."
        )
    return log_probabilities(logits)


def _comparison(
    perplexities: tuple[float, ...],
    divergence: Divergence,
    errors: OutputErrors,
    unmatched: list[str],
) -> Comparison:
    kl, relative = divergence.kl, errors.relative()
    return Comparison(
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
