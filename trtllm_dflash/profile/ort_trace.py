"""Where a step's time goes on the CPU: ONNX Runtime times every kernel, and kernels are named by
the graph's scopes.

The nodes of functions' bodies are inlined, and their names say only which function and which of its
calls they are of. Each call of attention ends after the one before it, since layers follow each
other, so their order gives the layers. Of other functions (experts, which a layer may lack;
roundings, of which it has several) a call belongs where its result is used: to the layer of the
next kernel with a name of its own. So do kernels that ONNX Runtime's optimizer has put in.
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

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.result import LayerTime, StepBreakdown
from trtllm_dflash.runtime.sessions.base import Int32, SlotSampling
from trtllm_dflash.runtime.sessions.ort import OrtSession

STEPS = 8  # tried for each breakdown, of which the fastest counts; the first of a new shape is run before
PARTS = {
    "target": "verify",
    "accept": "accept",
    "drafter": "draft",
}  # scope of the graph -> part of the step
_KERNEL = "_kernel_time"
_INLINED = re.compile(r"_inlfunc_(?P<call>(?P<function>[A-Za-z0-9]+?)(?:_token_\d+)?)_/")
_IN_ORDER = {
    "DFlashVerifyAttention": "target",
    "DFlashDraftAttention": "drafter",
}  # one in each layer of the scope
_ACCEPT = "DFlashAccept"
_GREEDY = SlotSampling(0.0, 1.0, 0, np.zeros(0, np.float32))


@dataclass(frozen=True)
class _PairedRun:
    """A run of the traced graph: whose it is (None: not to be counted), how long its step took, and
    how long the same step took right after it in a session that times nothing.
    """

    key: tuple[int, int] | None  # (batch, draft_len)
    traced_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _TracedRun:
    """What ONNX Runtime noted of one run of the graph: its own time, and the kernels' events in
    time's order.
    """

    seconds: float
    kernels: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Observation:
    """One step: its time, that of the host in it, and the kernels' by layer, which come from a twin
    of it.
    """

    seconds: float
    host_seconds: float
    layers: Mapping[str, float]


def trace_step_breakdowns(
    directory: Path,
    config: EngineConfig,
    system: Mapping[int, str],
    *,
    batches: Sequence[int],
    prompts: Sequence[Sequence[int]],
    output_len: int,
    num_threads: int | None,
) -> list[StepBreakdown]:
    """StepBreakdown generation steps of a CPU engine, whose slots hold `prompts` in turn and as many new
    tokens as answers of at most `output_len` (at least 2) have; `system`: names by draft_len.

    Timing kernels makes a step much longer. So every step is done twice, the second time by a
    session that times nothing; its time is divided as that of the kernels of the first. The host's
    part is what a step takes outside of ONNX Runtime.
    """
    with TemporaryDirectory(prefix="dflash-trace-") as folder:
        traced = OrtSession(
            directory, config, num_threads=num_threads, trace=Path(folder) / "trace"
        )
        bare = OrtSession(directory, config, num_threads=num_threads)
        steps = [
            step
            for batch in batches
            for draft_len in system
            for step in _run((traced, bare), batch, draft_len, prompts, output_len)
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
            gathered[step.key].append(
                Observation(step.seconds, host, seconds_by_layer(run.kernels))
            )
    return [
        merge_observations(system[draft_len], batch, draft_len, found)
        for (batch, draft_len), found in gathered.items()
    ]


def _run(
    sessions: tuple[OrtSession, OrtSession],
    batch: int,
    draft_len: int,
    prompts: Sequence[Sequence[int]],
    output_len: int,
) -> Iterator[_PairedRun]:
    """Generate: once for the new shapes, and STEPS times for the clock. A slot whose answer has
    ended begins again: the caches have no room behind the longest sequence.
    """
    left = [0] * batch  # tokens that a slot's answer still lacks
    for number in range(1 + STEPS):
        for slot in range(batch):
            if left[slot] <= 0:
                yield from _fill(sessions, slot, prompts[slot % len(prompts)])
                left[slot] = output_len - 1  # a prompt's own steps decide the first
        (first, gained), (second, _) = (
            _timed_step(session, batch, draft_len) for session in sessions
        )
        left = [tokens - int(new) for tokens, new in zip(left, gained, strict=True)]
        yield _PairedRun((batch, draft_len) if number else None, first, second)


def _fill(
    sessions: tuple[OrtSession, OrtSession], slot: int, prompt: Sequence[int]
) -> Iterator[_PairedRun]:
    """Put a prompt into an emptied slot."""
    token_ids, width = np.array(prompt, np.int64), sessions[0].max_num_tokens
    for session in sessions:
        session.open_slot(slot, _GREEDY)
        for begin in range(0, len(token_ids), width):
            session.prefill(slot, token_ids[begin : begin + width])
            session.collect()
    yield from [_PairedRun(None)] * -(-len(token_ids) // width)


def _timed_step(session: OrtSession, batch: int, draft_len: int) -> tuple[float, Int32]:
    """A step's seconds, and how many tokens each slot gained."""
    start = perf_counter()
    session.decode(batch, 1 + draft_len)
    gained = session.collect().num_new
    return perf_counter() - start, gained


def _by_run(events: Sequence[Mapping[str, Any]]) -> list[_TracedRun]:
    """All runs of the graph, in time's order."""
    spans = sorted((event["ts"], event["dur"]) for event in events if event["name"] == "model_run")
    runs = [_TracedRun(microseconds * 1e-6, []) for _, microseconds in spans]
    kernels = (
        event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    )
    place = 0
    for event in sorted(kernels, key=lambda event: event["ts"]):
        while place + 1 < len(spans) and event["ts"] >= spans[place + 1][0]:
            place += 1
        runs[place].kernels.append(event)
    return runs


def seconds_by_layer(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Kernel seconds of one run by layer ("target/layers.0", "target/lm_head", "accept", …); "" is
    none's.
    """
    seconds: dict[str, float] = defaultdict(float)
    for event, layer in zip(events, layers_of([event["name"] for event in events]), strict=True):
        seconds[layer] += event["dur"] * 1e-6
    return dict(seconds)


def layers_of(names: Sequence[str]) -> list[str]:
    """The layer of each kernel of a run, from their names in the order in which they ran."""
    inlined = [_INLINED.search(name) for name in names]
    following = _following(names, inlined)
    last = {
        found["call"]: index for index, found in enumerate(inlined) if found
    }  # by the order of their ends
    counts: dict[str, int] = defaultdict(int)
    calls = {}
    for call, index in sorted(last.items(), key=lambda item: item[1]):
        found = inlined[index]
        function = found["function"] if found else ""
        if function in _IN_ORDER:
            calls[call] = f"{_IN_ORDER[function]}/layers.{counts[function]}"
            counts[function] += 1
        else:
            calls[call] = "accept" if function == _ACCEPT else following[index]
    return [
        calls[found["call"]] if found else layer
        for found, layer in zip(inlined, following, strict=True)
    ]


def _following(names: Sequence[str], inlined: Sequence[re.Match[str] | None]) -> list[str]:
    """The layer of each kernel that has a name in the graph; of any other, that of the next one
    that has.
    """
    layers, layer = [], ""
    for name, found in zip(reversed(names), reversed(inlined), strict=True):
        named = found is None and name.startswith("/")
        own = _layer(name.removesuffix(_KERNEL)) if named else layer
        layer = own or layer
        layers.append(own)
    return layers[::-1]


def _layer(name: str) -> str:
    """target/layers.0 of /target/layers.0/mlp/MatMul; the scope alone for what belongs to no
    layer.
    """
    scope, *inner = name.strip("/").split("/")
    if scope not in PARTS:
        return ""
    return f"{scope}/{inner[0]}" if len(inner) > 1 and scope != "accept" else scope


def merge_observations(
    system: str, batch: int, draft_len: int, steps: Sequence[Observation]
) -> StepBreakdown:
    """From the least disturbed of some equal steps, since a disturbance only adds time."""
    total, host = min(step.seconds for step in steps), min(step.host_seconds for step in steps)
    kernels = {layer: min(step.layers[layer] for step in steps) for layer in steps[0].layers}
    scale = (total - host) / sum(kernels.values())
    layers = [
        LayerTime(_part(layer), layer, kernels[layer] * scale)
        for layer in sorted(kernels, key=_graph_order)
        if layer
    ]
    parts = {
        part: sum(layer.seconds for layer in layers if layer.part == part)
        for part in PARTS.values()
    }
    return StepBreakdown(
        system=system,
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
