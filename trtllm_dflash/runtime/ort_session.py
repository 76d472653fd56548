"""CPU sessions: ONNX Runtime over caches that are allocated once and updated in place.

A graph has some hundred inputs and outputs, nearly all of them caches. Each is bound once for every run of slots that
is ever stepped, with the same memory as input and output, so that TensorScatter writes only the step's rows. A step
itself writes seven small arrays, and rebinds one only where its shape has changed: about 50 µs in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.io import BATCH, CONTEXT, ROWS, WIDTH, Port
from trtllm_dflash.runtime.config import EngineConfig
from trtllm_dflash.runtime.session import StepInputs, StepOutputs, context_length
from trtllm_dflash.runtime.threads import resolve_num_threads

MODEL_FILE = "model.onnx"
# How long an idle worker thread spins before it sleeps: long enough to bridge the gaps between a step's kernels, short
# enough to leave the core to others. SmolLM2-135M without drafter, 2 threads on 2 cores, tokens/s where nothing else
# runs / where two other processes do: no spinning 51 / 18, 20 µs 57 / 21, 100 µs 61 / 19, 500 µs 64 / 16, the default
# of ONNX Runtime 57 / 14; one thread 36 / 25.
SPIN_MICROSECONDS = 100

_LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
_STEP_INPUTS = ("input_ids", "num_known", "past_len", "temperature", "top_p", "top_k", "uniforms")
_STEP_OUTPUTS = ("next_ids", "new_ids", "num_new", "next_len")


class OrtSession:
    """A `Session` on this machine's processors."""

    def __init__(self, directory: Path, config: EngineConfig, *, num_threads: int | None = None) -> None:
        """Load `directory`/model.onnx and allocate all slots' caches (memory that the system commits as it is used)."""
        self._config = config
        self.num_threads = resolve_num_threads(num_threads)
        self._session = _load(directory / MODEL_FILE, self.num_threads)
        _check_ports(directory, config.ports, self._session)
        self._caches = {
            port.name: np.zeros((config.max_batch_size, *_resolve(port.shape[1:], {})), port.dtype)
            for port in config.ports
            if port.cache and port.direction == "input"
        }
        self._positions = np.arange(config.cache_len, dtype=np.int64)
        self._bindings: dict[tuple[int, int], _SlotBinding] = {}

    @property
    def max_batch_size(self) -> int:
        """How many slots there are."""
        return self._config.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        """The widest step, so the largest prompt chunk."""
        return self._config.max_num_tokens

    def step(self, inputs: StepInputs) -> StepOutputs:
        """Run one step and update the caches of its slots in place."""
        batch, width = inputs.input_ids.shape
        context = context_length(
            inputs.past_len, width=width, block_size=self._config.block_size, cache_len=self._config.cache_len
        )
        sizes = {BATCH: batch, WIDTH: width, ROWS: inputs.uniforms.shape[1], CONTEXT: context}
        slots = (inputs.first_slot, batch)
        if slots not in self._bindings:
            self._bindings[slots] = self._bind(*slots)
        arrays = {name: getattr(inputs, name) for name in _STEP_INPUTS}
        return self._bindings[slots].run(sizes, arrays, self._positions[:context])

    def move_slot(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` positions of every cache from one slot to another."""
        for cache in self._caches.values():
            cache[target, :, :rows] = cache[source, :, :rows]

    def _bind(self, first_slot: int, count: int) -> _SlotBinding:
        slots = {name: cache[first_slot : first_slot + count] for name, cache in self._caches.items()}
        return _SlotBinding(self._session, self._config.ports, slots)


class _SlotBinding:
    """ONNX Runtime's view of one run of slots: caches bound for good, other ports to buffers of the current sizes."""

    def __init__(self, session: Any, ports: Iterable[Port], caches: Mapping[str, NDArray[Any]]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._small_ports = [port for port in ports if not port.cache]
        self._sizes: dict[str, int] = {}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._bound: dict[str, Any] = {}  # keeps alive what ONNX Runtime only points to
        for port in ports:
            if port.cache:
                self._bind(port, caches[port.aliases or port.name])

    def run(
        self, sizes: dict[str, int], inputs: Mapping[str, NDArray[Any]], kv_positions: NDArray[np.int64]
    ) -> StepOutputs:
        if sizes != self._sizes:
            self._resize(sizes, kv_positions)
        for name, array in inputs.items():
            self._buffers[name][...] = array
        self._session.run_with_iobinding(self._binding)
        return StepOutputs(**{name: self._buffers[name].copy() for name in _STEP_OUTPUTS})

    def _resize(self, sizes: dict[str, int], kv_positions: NDArray[np.int64]) -> None:
        for port in self._small_ports:
            if port.name == "kv_positions":
                self._bind(port, kv_positions)
                continue
            shape = _resolve(port.shape, sizes)
            if port.name not in self._buffers or self._buffers[port.name].shape != shape:
                self._buffers[port.name] = np.zeros(shape, port.dtype)
                self._bind(port, self._buffers[port.name])
        self._sizes = sizes

    def _bind(self, port: Port, array: NDArray[Any]) -> None:
        value = self._bound[port.name] = ort.OrtValue.ortvalue_from_numpy(array)
        if port.direction == "input":
            self._binding.bind_ortvalue_input(port.name, value)
        else:
            self._binding.bind_ortvalue_output(port.name, value)


def _resolve(shape: Iterable[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def _load(path: Path, num_threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _LOAD_ERRORS as error:
        raise EngineError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load this graph ({error}). "
            "dflash-trt inspect shows whether the directory is intact; if it is, build it again with what is installed."
        ) from error


def _check_ports(directory: Path, ports: Iterable[Port], session: Any) -> None:
    described = {(port.direction, port.name) for port in ports}
    present = {("input", node.name) for node in session.get_inputs()}
    present |= {("output", node.name) for node in session.get_outputs()}
    if described != present:
        differing = ", ".join(sorted(name for _, name in described ^ present))
        raise EngineError(
            f"{directory}: config.json and {MODEL_FILE} disagree on the inputs and outputs {differing}. "
            "Build the engine again."
        )
