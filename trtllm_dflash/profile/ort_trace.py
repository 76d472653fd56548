"""Where a step's time goes on the CPU, from the kernel times that ONNX Runtime traces."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from trtllm_dflash.atomic.work_folder import work_folder
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.kernel_layers import KERNEL_SUFFIX, PARTS, layer_times, layers_of
from trtllm_dflash.profile.result import StepBreakdown
from trtllm_dflash.runtime.sessions.base import Int32, SlotSampling
from trtllm_dflash.runtime.sessions.ort import OrtSession
from trtllm_dflash.utf8_path import utf8_path

# Steps tried for each breakdown, of which the fastest counts. One more of every new shape runs
# before.
STEPS = 8
_CONTROL_FLOW = ("If", "Loop", "Scan")
_GREEDY = SlotSampling()


@dataclass(frozen=True)
class _PairedRun:
    """A run of the traced graph, and the same step right after it in a session without a trace."""

    key: tuple[int, int] | None  # (batch, draft_len); None: does not count
    traced_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class TracedRun:
    """One run of the graph in ONNX Runtime's trace: its time, and its kernels' events in order."""

    seconds: float
    kernels: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Observation:
    """One step: its time, the host's part of it, and the traced kernels' times by layer."""

    seconds: float
    host_seconds: float
    layers: Mapping[str, float]


def trace_step_breakdowns(
    directory: Path,
    config: EngineConfig,
    names: Mapping[int, str],
    *,
    batches: Sequence[int],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    num_threads: int | None,
) -> list[StepBreakdown]:
    """Break down decode steps of a CPU engine; `names` are the systems by draft_len.

    The slots hold `prompts` in turn, and answers of up to `max_tokens` (at least 2) tokens.

    Tracing makes a step much longer. So every step is done twice, the second time in a session
    without a trace. Its time is divided in proportion to the first one's kernel times. The host's
    part is what a step takes outside of ONNX Runtime.

    Raises:
        EngineError: if the trace lacks steps.
    """
    with (
        work_folder("dflash-trace-") as folder,
        utf8_path(folder / "trace") as trace,
    ):
        traced = OrtSession(directory, config, num_threads=num_threads, trace=Path(trace))
        untraced = OrtSession(directory, config, num_threads=num_threads)
        steps: list[_PairedRun] = []
        for batch in batches:
            for draft_len in names:
                steps += _decode((traced, untraced), batch, draft_len, prompts, max_tokens)
        runs = traced_runs(json.loads(traced.end_trace().read_bytes()))
    if len(runs) != len(steps):
        raise EngineError(
            f"{directory}: {len(steps)} steps ran, and ONNX Runtime's trace has {len(runs)}. "
            "This is a bug in dflash-trt, or in this version of ONNX Runtime."
        )
    observations: dict[tuple[int, int], list[Observation]] = defaultdict(list)
    for step, run in zip(steps, runs, strict=True):
        if step.key is not None:
            host_seconds = step.traced_seconds - run.seconds
            layers = seconds_by_layer(run.kernels)
            observations[step.key].append(Observation(step.seconds, host_seconds, layers))
    return [
        merge_observations(names[draft_len], batch, draft_len, found)
        for (batch, draft_len), found in observations.items()
    ]


def _decode(
    sessions: tuple[OrtSession, OrtSession],
    batch: int,
    draft_len: int,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
) -> Iterator[_PairedRun]:
    """Run decode steps: once for the new shapes, and STEPS times for the clock.

    A slot whose answer has ended begins again, since the caches end at the longest sequence.
    """
    remaining = [0] * batch  # tokens that a slot's answer still lacks
    for number in range(1 + STEPS):
        for slot in range(batch):
            if remaining[slot] <= 0:
                yield from _prefill(sessions, slot, prompts[slot % len(prompts)])
                remaining[slot] = max_tokens - 1  # prefill gives the first
        (traced_seconds, gained), (seconds, _) = (
            _timed_step(session, batch, draft_len) for session in sessions
        )
        for slot in range(batch):
            remaining[slot] -= int(gained[slot])
        yield _PairedRun((batch, draft_len) if number else None, traced_seconds, seconds)


def _prefill(
    sessions: tuple[OrtSession, OrtSession], slot: int, prompt: Sequence[int]
) -> Iterator[_PairedRun]:
    """Put a prompt into an emptied slot."""
    input_ids = np.array(prompt, np.int64)
    width = sessions[0].max_num_tokens
    starts = range(0, len(input_ids), width)
    for session in sessions:
        session.open_slot(slot, _GREEDY)
        for start in starts:
            session.prefill(slot, input_ids[start : start + width])
            session.collect()
    for _ in starts:
        yield _PairedRun(None)


def _timed_step(session: OrtSession, batch: int, draft_len: int) -> tuple[float, Int32]:
    """Return a step's seconds, and how many tokens each slot gained."""
    start = perf_counter()
    session.decode(batch, 1 + draft_len)
    gained = session.collect().num_new
    return perf_counter() - start, gained


def traced_runs(events: Sequence[Mapping[str, Any]]) -> list[TracedRun]:
    """Return all runs of the graph in a trace, in order."""

    def start(event: Mapping[str, Any]) -> Any:
        return event["ts"]

    model_runs = [event for event in events if event["name"] == "model_run"]
    model_runs.sort(key=start)
    kernels = [event for event in events if _is_kernel(event)]
    kernels.sort(key=start)
    runs = [TracedRun(event["dur"] * 1e-6, []) for event in model_runs]
    next_starts = [start(event) for event in model_runs[1:]]
    index = 0
    for event in _outermost(kernels):
        while index < len(next_starts) and start(event) >= next_starts[index]:
            index += 1
        runs[index].kernels.append(event)
    return runs


def _outermost(kernels: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield kernels in order without those inside of a loop, whose time is in the loop's own."""
    end = -1
    for event in kernels:
        if event["ts"] < end:
            continue
        if event.get("args", {}).get("op_name") in _CONTROL_FLOW:
            end = event["ts"] + event["dur"]
        yield event


def _is_kernel(event: Mapping[str, Any]) -> bool:
    if event.get("cat") != "Node":
        return False
    name: str = event["name"]
    return name.endswith(KERNEL_SUFFIX)


def seconds_by_layer(kernels: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the kernel seconds of one run by layer, as `layers_of` names them."""
    seconds: dict[str, float] = defaultdict(float)
    layers = layers_of([event["name"] for event in kernels])
    for event, layer in zip(kernels, layers, strict=True):
        seconds[layer] += event["dur"] * 1e-6
    return dict(seconds)


def merge_observations(
    system: str, batch: int, draft_len: int, steps: Sequence[Observation]
) -> StepBreakdown:
    """Break down a step from the least disturbed of some equal steps.

    Disturbances only add time, so each figure is the smallest of all steps.
    """
    step_seconds = min(step.seconds for step in steps)
    host_seconds = min(step.host_seconds for step in steps)
    kernels = {}
    for layer in steps[0].layers:
        kernels[layer] = min(step.layers[layer] for step in steps)
    scale = (step_seconds - host_seconds) / sum(kernels.values())
    seconds = {layer: traced * scale for layer, traced in kernels.items()}
    layers = layer_times(seconds)
    parts = dict.fromkeys(PARTS.values(), 0.0)
    for row in layers:
        parts[row.part] += row.seconds
    return StepBreakdown(
        system=system,
        batch=batch,
        draft_len=draft_len,
        method="kernels",
        step_seconds=step_seconds,
        verify_seconds=parts["verify"],
        accept_seconds=parts["accept"],
        draft_seconds=parts["draft"],
        host_seconds=host_seconds + seconds.get("", 0.0),
        layers=layers,
    )
