"""CPU sessions: ONNX Runtime over caches that are allocated once and updated in place.

Nearly all inputs and outputs of a graph belong to the slots: caches, lengths, sampling. Each is
bound once for every run of slots that is stepped. A cache is the same memory as input and output,
so that TensorScatter writes only the step's rows. A step itself writes two small arrays and copies
three out, and rebinds one only if its shape has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MODEL_FILE
from trtllm_dflash.engine_dir.io_tensors import (
    ADJUST_SETTINGS,
    ADJUSTS,
    BATCH,
    BLOCK,
    BLOCK_ROWS,
    CONTEXT,
    DRAFT_SOURCES,
    LOGITS,
    NOISE_KEY,
    ROWS,
    TOKEN_MASK,
    WIDTH,
    IoTensor,
)
from trtllm_dflash.errors import EngineError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.options.logit_adjustments import MASK, mask_words
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.runtime.sessions.base import (
    CARRIED,
    TALLY,
    Int32,
    Int64,
    SlotSampling,
    StepResult,
    check_constraint,
    context_length,
)
from trtllm_dflash.runtime.sessions.integer_rows import has_lone_rows, without_lone_row
from trtllm_dflash.runtime.sessions.io_checks import PresentTensor, check_present
from trtllm_dflash.runtime.sessions.slot_copy import Prefix, SlotCopy
from trtllm_dflash.runtime.threads import resolve_num_threads
from trtllm_dflash.utf8_path import utf8_path

# How long an idle worker thread spins before it sleeps: long enough for the gaps between a step's
# kernels, short enough to leave the core to others. Tokens/s of SmolLM2-135M without drafter with 2
# threads on 2 cores, alone / beside two busy processes: no spinning 51 / 18, 20 µs 57 / 21,
# 100 µs 61 / 19, 500 µs 64 / 16, ONNX Runtime's default 57 / 14; one thread 36 / 25.
SPIN_MICROSECONDS = 100
# Fatal alone: errors are raised, and then told in our words. Tests listen to its warnings, 2.
LOG_SEVERITY = 4

# A slot's own tensors besides its caches; a step finds and leaves them in the slot's memory.
_SLOT_TENSORS = (
    *CARRIED,
    *(row.name for row in SAMPLING_INPUTS),
    DRAFT_SOURCES,
    ADJUSTS,
    *(port.name for port in ADJUST_SETTINGS),
    NOISE_KEY,
    "next_ids",
)
_DTYPES = {  # of the table by ONNX Runtime's names
    "tensor(float)": "float32",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8e4m3fn",
}
_COUNTING_TENSORS = ("kv_positions", "decided", BLOCK_ROWS.name)  # 0, 1, 2, …


class OrtSession:
    """A `Session` on this machine's processors. A step is done when its launch returns."""

    lookahead = 0

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        *,
        num_threads: int | None = None,
        draft_lens: Iterable[int] | None = None,  # noqa: ARG002 - of GPU sessions
        prefix_bytes: int = 0,
        trace: Path | None = None,
    ) -> None:
        """Load `directory`/model.onnx and allocate all slots' caches.

        The system commits that memory as it is used. `trace`: record the time of every node, in a
        file that `end_trace` writes and whose path begins with this one. `prefix_bytes`: the most
        that copies of slots may take.
        """
        self._config = config
        self.may_skip_drafter = config.may_skip_drafter
        self.num_threads = resolve_num_threads(num_threads)
        self._lone_rows = has_lone_rows(config.weight_only_precision)
        self._session = _load(directory / MODEL_FILE, self.num_threads, trace)
        _check_io(directory, config.io, self._session)
        self._slots: dict[str, NDArray[Any]] = {}
        # Caches that are no rows by position.
        self._recurrent = {tensor.name for tensor in config.io if tensor.recurrent}
        for tensor in config.io:
            if tensor.name in _SLOT_TENSORS or (tensor.cache and tensor.direction == "input"):
                shape = (config.max_batch_size, *_resolve(tensor.shape[1:], {}))
                self._slots[tensor.name] = _zeros(shape, tensor, directory)
        # By the input, the output that it is after a step.
        self._carried = {name: out for name, out in CARRIED.items() if name in self._slots}
        self._bindings: dict[tuple[int, int, bool], _SlotBinding] = {}
        self._wants_logits = [False] * config.max_batch_size
        self._wants_drafts = [False] * config.max_batch_size
        self._allowed: dict[int, Int32] = {}  # by slot, in its next step
        self._results: deque[StepResult] = deque()
        self._prefix_bytes = prefix_bytes  # left for copies

    @property
    def max_batch_size(self) -> int:
        """Return the number of slots."""
        return self._config.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        """Return the width of the widest step, which is the largest prompt chunk."""
        return self._config.max_num_tokens

    def open_slot(
        self, slot: int, sampling: SlotSampling, prefix: Prefix | None = None
    ) -> None:
        """Empty a slot for a new sequence, or let it begin with what is known of a prefix."""
        length = 0 if prefix is None else prefix.length
        for name in self._carried:
            self._slots[name][slot] = 0 if name == TALLY else length
        if prefix is not None:
            for name, array in prefix.copy.place.items():
                self._rows(name, slot, length)[...] = array[
                    ..., : self._num_rows(name, length), :
                ]
        for name in self._config.slot_settings:
            self._slots[name][slot] = getattr(sampling, name)
        sampling.write_lists({name: array[slot] for name, array in self._slots.items()})
        self._wants_logits[slot] = sampling.wants_logits
        self._wants_drafts[slot] = sampling.wants_drafts
        self._allowed.pop(slot, None)

    def prefill(self, slot: int, input_ids: Int64, *, draft: bool = True) -> None:
        """Append tokens [S] to those that one slot holds."""
        self._step(slot, input_ids[np.newaxis], len(input_ids), rows=1, draft=draft)

    def step_width(self, width: int) -> int:
        """Return `width`: every width is as ready as others."""
        return width

    def decode(self, count: int, width: int, *, draft: bool = True) -> None:
        """Verify and decide in slots 0 … count - 1."""
        self._step(0, self._slots["next_ids"][:count, :width], 1, rows=width, draft=draft)

    def constrain(self, slot: int, allowed: Int32 | None, drafts: Int64 | None = None) -> None:
        """Limit what a slot's next step may decide."""
        check_constraint(self._config, allowed, drafts)
        if drafts is not None:
            self._slots["next_ids"][slot, 1 : 1 + len(drafts)] = drafts
        if allowed is not None:
            self._allowed[slot] = allowed

    def collect(self) -> StepResult:
        """Return the result of the oldest step that was not collected."""
        return self._results.popleft()

    def move_slot(self, src: int, dst: int) -> None:
        """Copy a slot's state, and of its caches the rows in use, recurrent ones whole."""
        used = int(self._slots["past_len"][src])
        self._wants_logits[dst] = self._wants_logits[src]
        self._wants_drafts[dst] = self._wants_drafts[src]
        for name, array in self._slots.items():
            if name in _SLOT_TENSORS:
                array[dst] = array[src]
            else:
                self._rows(name, dst, used)[...] = self._rows(name, src, used)

    def save_slot(self, slot: int, length: int) -> SlotCopy | None:
        """Copy what a slot holds of its first `length` positions; None if there is no room."""
        names = [name for name in self._slots if name not in _SLOT_TENSORS]
        rows = {name: self._rows(name, slot, length) for name in names}
        nbytes = sum(array.nbytes for array in rows.values())
        if nbytes > self._prefix_bytes:
            return None
        self._prefix_bytes -= nbytes
        return SlotCopy(length, nbytes, {name: array.copy() for name, array in rows.items()})

    def drop_copy(self, copy: SlotCopy) -> None:
        """Give a copy's room back."""
        self._prefix_bytes += copy.nbytes

    def _rows(self, name: str, slot: int, used: int) -> NDArray[Any]:
        """Return what a slot's cache has of its first `used` positions, recurrent ones whole."""
        return self._slots[name][slot, :, : self._num_rows(name, used)]

    def _num_rows(self, name: str, used: int) -> int:
        rows: int = self._slots[name].shape[2]
        return rows if name in self._recurrent else min(used, rows)  # a ring may be full

    def keep(self) -> None:
        """Keep nothing: the next start has no use for anything."""

    def discard(self) -> None:
        """Drop the results that were not collected."""
        self._results.clear()
        self._allowed.clear()

    def end_trace(self) -> Path:
        """Write what was recorded so far as a Chrome trace, and return its path."""
        return Path(self._session.end_profiling())

    def _step(self, first: int, ids: Int64, num_known: int, *, rows: int, draft: bool) -> None:
        count, width = ids.shape
        slots = slice(first, first + count)
        spare = without_lone_row(count, width) - width if self._lone_rows else 0
        ids = np.pad(ids, ((0, 0), (0, spare))) if spare else ids
        context = context_length(self._slots["past_len"][slots], width, self._config, spare)
        with_logits = any(self._wants_logits[slots])
        binding = self._binding_of(first, count, with_logits=with_logits)
        sizes = {BATCH: count, WIDTH: width + spare, ROWS: rows, CONTEXT: context}
        sizes[BLOCK] = self._config.block_size if draft else 0
        inputs: dict[str, NDArray[Any] | int] = {"input_ids": ids, "num_known": num_known}
        masked, mask = self._take_masks(first, count, rows)
        if masked:
            inputs[TOKEN_MASK] = mask
            self._slots[ADJUSTS][masked] |= MASK
        try:
            outputs = binding.run(sizes, inputs)
        finally:
            if masked:
                self._slots[ADJUSTS][masked] &= ~MASK
        after = {}
        for name, output in self._carried.items():
            self._slots[name][slots] = outputs[output]
            after[output] = outputs[output].copy()
        new_ids, num_new = outputs["new_ids"].copy(), outputs["num_new"].copy()
        logits = outputs[LOGITS].copy() if with_logits else None
        wanted = any(self._wants_drafts[slots])
        drafts = self._slots["next_ids"][slots].copy() if wanted else None
        result = StepResult(new_ids, num_new, logits=logits, next_ids=drafts, **after)
        self._results.append(result)

    def _take_masks(self, first_slot: int, count: int, rows: int) -> tuple[list[int], Int32]:
        """Return the constrained ones of a step's slots, and the masks [count, rows, W] of all."""
        masked = [n for n in range(first_slot, first_slot + count) if n in self._allowed]
        if not masked:
            return [], np.zeros(0, np.int32)
        words = mask_words(self._config.vocab_size)
        mask = np.full((count, rows, words), -1, np.int32)
        for slot in masked:
            allowed = self._allowed.pop(slot)[:rows]
            mask[slot - first_slot, : len(allowed)] = allowed
        return masked, mask

    def _binding_of(self, first_slot: int, count: int, *, with_logits: bool) -> _SlotBinding:
        key = (first_slot, count, with_logits)
        if key not in self._bindings:
            end = first_slot + count
            slots = {name: array[first_slot:end] for name, array in self._slots.items()}
            # An output that is not bound is not fetched either.
            io_tensors = [t for t in self._config.io if with_logits or t.name != LOGITS]
            counting = np.arange(self._config.cache_len, dtype=np.int64)
            self._bindings[key] = _SlotBinding(self._session, io_tensors, slots, counting)
        return self._bindings[key]


class _SlotBinding:
    """ONNX Runtime's view of one run of slots.

    What the slots own is bound for good, the rest to buffers of the current sizes.
    """

    def __init__(
        self,
        session: Any,
        io_tensors: Iterable[IoTensor],
        slots: Mapping[str, NDArray[Any]],
        counting: Int64,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._counting = counting
        self._small_tensors: list[IoTensor] = []
        self._sizes: dict[str, int] = {}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._bound: dict[str, Any] = {}  # keeps alive what ONNX Runtime only points to
        for tensor in io_tensors:
            owner = tensor.aliases or tensor.name
            if owner in slots:
                self._bind(tensor, slots[owner])
            else:
                self._small_tensors.append(tensor)

    def run(
        self, sizes: dict[str, int], inputs: Mapping[str, NDArray[Any] | int]
    ) -> dict[str, NDArray[Any]]:
        """Run one step and return its small tensors, which the next step overwrites."""
        if sizes != self._sizes:
            self._resize(sizes)
        for name, values in inputs.items():
            self._buffers[name][...] = values
        try:
            self._session.run_with_iobinding(self._binding)
        except MemoryError:
            raise
        except Exception as error:  # its errors have no class in common
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot run this engine's step: {error}. dflash-trt"
                " inspect shows whether the directory is intact; if it is, build the engine again."
            ) from error
        return self._buffers

    def _resize(self, sizes: dict[str, int]) -> None:
        for tensor in self._small_tensors:
            shape = _resolve(tensor.shape, sizes)
            if tensor.name in self._buffers and self._buffers[tensor.name].shape == shape:
                continue
            if tensor.name in _COUNTING_TENSORS:
                self._buffers[tensor.name] = self._counting[: shape[0]]
            else:
                self._buffers[tensor.name] = np.zeros(shape, tensor.dtype)
            self._bind(tensor, self._buffers[tensor.name])
        self._sizes = sizes

    def _bind(self, tensor: IoTensor, array: NDArray[Any]) -> None:
        value = self._bound[tensor.name] = ort.OrtValue.ortvalue_from_numpy(array)
        if tensor.direction == "input":
            self._binding.bind_ortvalue_input(tensor.name, value)
        else:
            self._binding.bind_ortvalue_output(tensor.name, value)


def _zeros(shape: tuple[int, ...], tensor: IoTensor, directory: Path) -> NDArray[Any]:
    try:
        return np.zeros(shape, tensor.dtype)
    except (MemoryError, ValueError) as error:
        size = human_bytes(prod(shape) * tensor.item_bytes)
        raise EngineError(
            f"{directory}: this machine has no {size} for {tensor.name} of {shape[0]} slots. Build"
            " with a smaller --max-batch-size or --max-seq-len."
        ) from error


def _resolve(shape: Iterable[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def _load(path: Path, num_threads: int, trace: Path | None) -> Any:
    options = ort.SessionOptions()
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    options.log_severity_level = LOG_SEVERITY
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry(
        "session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS)
    )
    try:
        with utf8_path(path) as name:
            # It would try the same provider again, and print that.
            once = {"enable_fallback": 0}
            return ort.InferenceSession(
                name, options, providers=["CPUExecutionProvider"], **once
            )
    # Its own classes, and Python's for a graph whose names are no text.
    except Exception as error:
        raise EngineError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load this graph ({error}). dflash-trt"
            " inspect shows whether the directory is intact; if it is, build it again with what is"
            " installed."
        ) from error


def _check_io(directory: Path, io_tensors: Iterable[IoTensor], session: Any) -> None:
    """Compare the table in config.json with the graph's own inputs and outputs."""
    present = {}
    for direction, nodes in (
        ("input", session.get_inputs()),
        ("output", session.get_outputs()),
    ):
        for node in nodes:
            dtype = _DTYPES.get(node.type, node.type)
            present[node.name] = PresentTensor(direction, dtype, tuple(node.shape))
    check_present(io_tensors, present, where=f"{directory}: {MODEL_FILE}")
