"""Where a step's time goes on the CPU: ONNX Runtime times every kernel, and kernels are named by the graph's scopes.

The nodes of our operators' bodies are inlined, and their names say only which operator and which of its calls they are
of. Each call ends after the one before it, since layers follow each other, so their order gives the layers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.result import LayerTime, Split
from trtllm_dflash.runtime.config import EngineConfig
from trtllm_dflash.runtime.ort_session import OrtSession
from trtllm_dflash.runtime.session import SlotSampling

STEPS = 8  # tried for each split, of which the fastest counts; the first of a new shape is run before
PARTS = {"target": "verify", "accept": "accept", "drafter": "draft"}  # scope of the graph -> part of the step
_KERNEL = "_kernel_time"
_INLINED = re.compile(r"_inlfunc_(?P<call>DFlash(?P<op>[A-Za-z]+?)(?:_token_\d+)?)_/")
_OPERATORS = {  # operator -> scope of its calls, and whether each layer has one
    "VerifyAttention": ("target", True),
    "DraftAttention": ("drafter", True),
    "Accept": ("accept", False),
}
_GREEDY = SlotSampling(0.0, 1.0, 0, np.zeros(0, np.float32))


@dataclass(frozen=True)
class _Twins:
    """A run of the traced graph: whose it is (None: not to be counted), how long its step took, and how long the same
    step took right after it in a session that times nothing."""

    key: tuple[int, int] | None  # (batch, draft_len)
    traced_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Run:
    """What ONNX Runtime noted of one run of the graph: its own time, and the kernels' events in time's order."""

    seconds: float
    kernels: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Observation:
    """One step: its time, that of the host in it, and the kernels' by layer, which come from a twin of it."""

    seconds: float
    host_seconds: float
    layers: Mapping[str, float]


def trace_splits(
    directory: Path,
    config: EngineConfig,
    side: Mapping[int, str],
    *,
    batches: Sequence[int],
    prompts: Sequence[Sequence[int]],
    num_threads: int | None,
) -> list[Split]:
    """Split generation steps of a CPU engine, whose slots hold `prompts` in turn; `side`: names by draft_len.

    Timing kernels makes a step much longer. So every step is done twice, the second time by a session that times
    nothing; its time is divided as that of the kernels of the first. The host's part is what a step takes outside of
    ONNX Runtime.
    """
    with TemporaryDirectory(prefix="dflash-trace-") as folder:
        traced = OrtSession(directory, config, num_threads=num_threads, trace=Path(folder) / "trace")
        bare = OrtSession(directory, config, num_threads=num_threads)
        steps = [
            step for batch in batches for draft_len in side for step in _run(traced, bare, batch, draft_len, prompts)
        ]
        runs = _by_run(json.loads(traced.end_trace().read_bytes()))
    if len(runs) != len(steps):
        raise EngineError(
            f"{directory}: {len(steps)} steps ran, and ONNX Runtime's trace has {len(runs)}. "
            "This is a fault of dflash-trt, or of this version of ONNX Runtime."
        )
    gathered: dict[tuple[int, int], list[Observation]] = defaultdict(list)
    for step, run in zip(steps, runs, strict=True):
        if step.key is not None:
            host = step.traced_seconds - run.seconds
            gathered[step.key].append(Observation(step.seconds, host, seconds_by_layer(run.kernels)))
    return [split_of(side[draft_len], batch, draft_len, found) for (batch, draft_len), found in gathered.items()]


def _run(
    traced: OrtSession, bare: OrtSession, batch: int, draft_len: int, prompts: Sequence[Sequence[int]]
) -> Iterator[_Twins]:
    """Fill the slots, then generate: once for the new shapes, and STEPS times for the clock."""
    for slot in range(batch):
        prompt = np.array(prompts[slot % len(prompts)], np.int64)
        for session in (traced, bare):
            session.open_slot(slot, _GREEDY)
            for begin in range(0, len(prompt), session.max_num_tokens):
                session.prompt(slot, prompt[begin : begin + session.max_num_tokens])
                session.collect()
        yield from [_Twins(None)] * -(-len(prompt) // traced.max_num_tokens)
    for number in range(1 + STEPS):
        first, second = (_step_seconds(session, batch, draft_len) for session in (traced, bare))
        yield _Twins((batch, draft_len) if number else None, first, second)


def _step_seconds(session: OrtSession, batch: int, draft_len: int) -> float:
    start = perf_counter()
    session.generate(batch, 1 + draft_len)
    session.collect()
    return perf_counter() - start


def _by_run(events: Sequence[Mapping[str, Any]]) -> list[_Run]:
    """All runs of the graph, in time's order."""
    spans = sorted((event["ts"], event["dur"]) for event in events if event["name"] == "model_run")
    runs = [_Run(microseconds * 1e-6, []) for _, microseconds in spans]
    kernels = (event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL))
    place = 0
    for event in sorted(kernels, key=lambda event: event["ts"]):
        while place + 1 < len(spans) and event["ts"] >= spans[place + 1][0]:
            place += 1
        runs[place].kernels.append(event)
    return runs


def seconds_by_layer(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Kernel seconds of one run by layer ("target/layers.0", "target/lm_head", "accept", …); "" is none's."""
    calls = _calls(events)
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        inlined = _INLINED.search(event["name"])
        layer = calls[inlined["call"]] if inlined else _layer(event["name"].removesuffix(_KERNEL))
        seconds[layer] += event["dur"] * 1e-6
    return dict(seconds)


def _calls(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Layer by inlined call, in the order in which calls of an operator end."""
    ends: dict[str, tuple[int, str]] = {}
    for event in events:
        inlined = _INLINED.search(event["name"])
        if inlined:
            ends[inlined["call"]] = event["ts"], inlined["op"]
    counts: dict[str, int] = defaultdict(int)
    layers = {}
    for call, (_, operator) in sorted(ends.items(), key=lambda item: item[1]):
        scope, layered = _OPERATORS[operator]
        layers[call] = f"{scope}/layers.{counts[operator]}" if layered else scope
        counts[operator] += 1
    return layers


def _layer(name: str) -> str:
    """target/layers.0 of /target/layers.0/mlp/MatMul; the scope alone for what belongs to no layer."""
    scope, *inner = name.strip("/").split("/")
    if scope not in PARTS:
        return ""
    return f"{scope}/{inner[0]}" if len(inner) > 1 and scope != "accept" else scope


def split_of(side: str, batch: int, draft_len: int, steps: Sequence[Observation]) -> Split:
    """From the least disturbed of some equal steps, since a disturbance only adds time."""
    total, host = min(step.seconds for step in steps), min(step.host_seconds for step in steps)
    kernels = {layer: min(step.layers[layer] for step in steps) for layer in steps[0].layers}
    scale = (total - host) / sum(kernels.values())
    layers = [
        LayerTime(_part(layer), layer, kernels[layer] * scale) for layer in sorted(kernels, key=_graph_order) if layer
    ]
    parts = {part: sum(layer.seconds for layer in layers if layer.part == part) for part in PARTS.values()}
    return Split(
        side=side,
        batch=batch,
        draft_len=draft_len,
        method="kernels",
        step_seconds=total,
        verify_seconds=parts["verify"],
        accept_seconds=parts["accept"],
        draft_seconds=parts["draft"],
        host_seconds=host + kernels.get("", 0.0) * scale,
        layers=layers,
    )


def _part(layer: str) -> str:
    return PARTS[layer.split("/")[0]]


def _graph_order(layer: str) -> tuple[int, str, int]:
    """By part, and layers by number."""
    scope, _, inner = layer.partition("/")
    name, _, number = inner.rpartition(".")
    place = list(PARTS).index(scope) if scope in PARTS else -1
    return (place, name, int(number)) if number.isdecimal() else (place, inner, -1)
