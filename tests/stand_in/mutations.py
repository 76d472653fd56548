"""Faults of the GPU path, each put into it on purpose for as long as a `with` block lasts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.hardware.cuda_module import CudaModule, Launch
from trtllm_dflash.runtime.sessions import trt
from trtllm_dflash.runtime.sessions.trt import TrtSession
from trtllm_dflash.runtime.sessions.trt_slots import TrtSlots
from trtllm_dflash.trt_plugins import plugin
from trtllm_dflash.trt_plugins.launch_config import OPERATIONS

Mutation = Callable[[], AbstractContextManager[Any]]
_HEAD_DIM = 64  # of the pair of splits
_DRAFTS = 8  # rows: a prompt's steps have more, others fewer


def under(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function with a fault in the path."""
    with {**MUTATIONS, **SPLIT_MUTATIONS, **OTHER_MUTATIONS}[name]():
        return function(*arguments, **options)


def _wrapped(owner: Any, name: str, change: Callable[..., Any]) -> Mutation:
    """Replace a method by `change(original, self, *arguments)`."""

    @contextmanager
    def apply() -> Iterator[None]:
        original = getattr(owner, name)

        def changed(*arguments: Any, **options: Any) -> Any:
            return change(original, *arguments, **options)

        with mock.patch.object(owner, name, changed):
            yield

    return apply


def _skipped(owner: Any, name: str) -> Mutation:
    return lambda: mock.patch.object(owner, name, return_value=None)


def _params(kernel: str, change: Callable[[Any], None]) -> Mutation:
    """Change the parameters of all launches of kernels whose name has `kernel` in it."""

    def changed(launch: Launch) -> Launch:
        if kernel not in launch.kernel:
            return launch
        params = type(launch.params).from_buffer_copy(bytes(launch.params))
        change(params)
        return replace(launch, params=params)

    return _launches(lambda launches: [changed(launch) for launch in launches])


def _launches(change: Callable[[Sequence[Launch]], Sequence[Launch]]) -> Mutation:
    def launch(original: Any, module: Any, launches: Sequence[Launch], stream: int) -> None:
        original(module, change(launches), stream)

    return _wrapped(CudaModule, "launch", launch)


def _add(name: str, count: int) -> Callable[[Any], None]:
    def change(params: ctypes.Structure) -> None:
        setattr(params, name, getattr(params, name) + count)

    return change


def _set(name: str, value: float) -> Callable[[Any], None]:
    return lambda params: setattr(params, name, value)


def _stride(original: Any, slots: TrtSlots, name: str, slot: int = 0) -> int:
    wrong = slot * 256 if name == "target_key.1" else 0
    return int(original(slots, name, slot)) - wrong


def _drafter_stays(original: Any, slots: TrtSlots, src: int, dst: int, used: int) -> None:
    kept = {name: size for name, size in slots._slot_bytes.items() if "draft" not in name}
    with mock.patch.object(slots, "_slot_bytes", kept):
        original(slots, src, dst, used)


def _stale(original: Any, session: TrtSession, count: int, width: int) -> Any:
    """Use the first graph of a width for all numbers of slots."""
    same = [step for (_, other), step in session._decode_steps.items() if other == width]
    return same[0] if same else original(session, count, width)


def _early_capture(original: Any, step: Any) -> None:
    step._has_run = True
    original(step)


def _chunk_behind(original: Any, session: TrtSession, step: Any, *rest: Any) -> None:
    slot, input_ids, past_len = rest
    original(session, step, slot, input_ids, past_len + 1)


def _small_results(original: Any, cuda: Cuda, nbytes: int, purpose: str) -> int:
    return int(original(cuda, nbytes - 8 if purpose == "results" else nbytes, purpose))


def _same_pitch(
    original: Any, cuda: Cuda, dst: int, dst_pitch: int, *rest: Any, **by: Any
) -> None:
    src, _ = rest
    original(cuda, dst, dst_pitch, src, dst_pitch, **by)


def _swapped(original: Any, made: plugin.StepPlugin, *rest: Any) -> None:
    inputs, outputs, read, *others = rest
    if "Attention" in made.spec.name:
        read = [read[0], read[2], read[1], *read[3:]]
    original(made, inputs, outputs, read, *others)


def _without_workspace(operation: str) -> Mutation:
    without = replace(OPERATIONS[operation], workspace_bytes=lambda *_: 0)
    return lambda: mock.patch.dict(OPERATIONS, {operation: without})


def _a_split_early(params: Any) -> None:
    params.partial_stats -= 4 * params.batch * params.rows * params.q_heads * _HEAD_DIM


def _all_known(params: Any) -> None:
    params.state_len = params.past_len


def _twice_in_prompts(params: Any) -> None:
    params.value_scale *= 2 if params.rows > _DRAFTS else 1


MUTATIONS: Mapping[str, Mutation] = {
    "lengths are not fed back": lambda: mock.patch.object(
        TrtSlots, "carried_bytes", return_value=0
    ),
    "a slot's stride is wrong": _wrapped(TrtSlots, "address", _stride),
    "slots are moved the wrong way": _wrapped(
        TrtSlots, "move", lambda move, slots, src, dst, used: move(slots, dst, src, used)
    ),
    "a move forgets the drafter's caches": _wrapped(TrtSlots, "move", _drafter_stays),
    "a move copies a row less": _wrapped(
        TrtSlots, "move", lambda move, slots, src, dst, used: move(slots, src, dst, used - 1)
    ),
    "a graph of another batch": _wrapped(TrtSession, "_make_decode_step", _stale),
    "a capture before the first run": _wrapped(trt.DecodeStep, "launch", _early_capture),
    "a chunk begins one position late": _wrapped(TrtSession, "_send_chunk", _chunk_behind),
    "contexts are not set": _skipped(Cuda, "make_current"),
    "results are read before they are there": _skipped(Cuda, "wait_event"),
    "a buffer is too small": _wrapped(Cuda, "allocate", _small_results),
    "rows are copied with one pitch": _wrapped(Cuda, "copy_rows", _same_pitch),
    "keys and values are swapped": _wrapped(plugin.StepPlugin, "enqueue", _swapped),
    "acceptance has no workspace": _without_workspace("accept"),
    "a context row too few": _params("attention", _add("context_rows", -1)),
    "a cache row too many": _params("attention", _add("cache_len", 1)),
    "rings are taken for whole caches": _params("attention", _set("ring", 0)),
    "windows are one key wider": _params("attention", _add("window", 1)),
    "a window is forgotten": _params("attention", _set("window", 0)),
    "the drafter's mask is the target's": _params("attention", _set("causal", 1)),
    "positions are one late": _params("attention", _add("positions", 8)),
    "scores are scaled twice": _params("attention", _set("scale", 1 / 64)),
    "acceptance reads rows of another width": _params("accept", _add("width", -1)),
    "an id of the vocabulary is left out": _params("accept", _add("vocab", -1)),
    "lookup leaves a draft out": _params("lookup", _add("num_drafts", -1)),
    "the history forgets the step's tokens": _params("adjust", _set("width", 0)),
    "kernels go to another stream": _wrapped(
        CudaModule, "launch", lambda launch, module, launches, _: launch(module, launches, 0)
    ),
}

SPLIT_MUTATIONS: Mapping[str, Mutation] = {
    "splits are not merged": _launches(
        lambda launches: [one for one in launches if "merge" not in one.kernel]
    ),
    "splits are merged before they are there": _launches(
        lambda launches: [*launches[::-1]] if "merge" in launches[-1].kernel else launches
    ),
    "the last split is not merged": _params("attention_merge", _add("split_limit", -1)),
    "splits are merged that nobody made": _params("attention_d", _set("even_splits", 1)),
    "sums of splits lie where results are": _params("attention", _a_split_early),
    "splits have no workspace": _without_workspace("attention"),
    "a slot is not merged": _params("attention_merge", _add("batch", -1)),
}
"""Of attention that splits a sequence's keys."""

OTHER_MUTATIONS: Mapping[str, Mutation] = {
    "fp8_caches: codes of prompts are worth less": _params("attention", _twice_in_prompts),
    "gpt_oss: an expert too few": _params("moe", _add("top_k", -1)),
    "gpt_oss: experts have no limit": _params("moe", _set("limit", 0)),
    "nvfp4_experts: shares are of all experts": _params("moe", _set("normalize", 0)),
    "fp8_blocks: a row's scale is a block's": _params("moe", _set("block_rows", 1)),
    "fp8_blocks: columns are left out": _params("linear", _add("in_size", -16)),
    "dflash2: codebooks have another rank": _params("select", _add("rank", -4)),
    "qwen3_5: accepted drafts miss the state": _params("gated_delta", _all_known),
}
"""Of operators that few pairs have; a name begins with the pair's."""
