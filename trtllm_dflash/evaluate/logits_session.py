"""A session that reads a given text, for the logits at every position and the linears' outputs.

The text enters as a prompt, all of it known, so that states take it in at once. Every row has
logits all the same: those that decide are counted from the last known one, back to the first.
Acceptance is not computed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MODEL_FILE
from trtllm_dflash.engine_dir.io_tensors import BATCH, CONTEXT, NOISE_KEY, ROWS, WIDTH, IoTensor
from trtllm_dflash.errors import EngineError
from trtllm_dflash.evaluate.target_graph import HEAD, TargetGraph
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.runtime.sessions.base import Float32, Int64, context_length
from trtllm_dflash.runtime.threads import resolve_num_threads
from trtllm_dflash.utf8_path import utf8_path

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_SETTINGS = {NOISE_KEY: 0} | {row.name: row.default for row in SAMPLING_INPUTS}
_LENGTHS = ("past_len", "state_len")  # the same, where all tokens are known


class LogitsSession:
    """One sequence of a CPU engine whose tokens are given, not generated."""

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        graph: TargetGraph,
        *,
        linears: Collection[str] = (),
        num_threads: int | None = None,
    ) -> None:
        """Load the engine with its graph `graph`, which changes; `linears` become outputs."""
        self._target_sizes = replace(config, block_size=1)  # the graph has no drafter
        self._io_tensors = {tensor.name: tensor for tensor in config.io}
        self._outputs: dict[str, tuple[str, tuple[int, ...]]] = {
            HEAD: (str(graph.logits.name), (1, config.vocab_size))
        }
        for name in linears:
            linear = graph.linears[name]
            self._outputs[name] = (str(linear.output.name), (linear.size,))
        model = graph.serialized(config, linears)
        self._session = _load(directory, model, resolve_num_threads(num_threads))
        self._inputs = [
            self._known_input(directory, node.name) for node in self._session.get_inputs()
        ]
        self._binding = self._session.io_binding()
        self._bound: list[Any] = []  # keeps alive what ONNX Runtime only points to
        self._bind_caches()
        self._past_len = 0

    def restart(self) -> None:
        """Forget the text so far."""
        self._past_len = 0

    def step(self, token_ids: Int64) -> dict[str, Float32]:
        """Read the next tokens [S], at most max_num_tokens, and max_seq_len since the last restart.

        Returns:
            float32 [S, size] of every wanted linear, and the logits [S, V] as lm_head.
        """
        width = len(token_ids)
        past_len = np.array([self._past_len], np.int32)
        sizes = {
            BATCH: 1,
            WIDTH: width,
            ROWS: width,
            CONTEXT: context_length(past_len, width, self._target_sizes),
        }
        inputs = [tensor for tensor in self._inputs if not tensor.cache]
        bound = [self._bind_input(tensor, token_ids, past_len, sizes) for tensor in inputs]
        results = {}
        for name, (output, shape) in self._outputs.items():
            *leading, size = shape
            array = np.empty((*leading, width, size), np.float32)
            value = ort.OrtValue.ortvalue_from_numpy(array)
            bound.append(value)
            self._binding.bind_ortvalue_output(output, value)
            results[name] = array.reshape(width, size)
        self._session.run_with_iobinding(self._binding)
        self._past_len += width
        return results

    def _bind_input(
        self,
        tensor: IoTensor,
        token_ids: Int64,
        past_len: NDArray[np.int32],
        sizes: dict[str, int],
    ) -> Any:
        """Bind an input of the step that is no cache."""
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
        width = len(token_ids)
        if tensor.name == "kv_positions":
            array: NDArray[Any] = np.arange(shape[0], dtype=tensor.dtype)
        elif tensor.name == "decided":
            array = np.arange(1 - width, 1, dtype=tensor.dtype)
        elif tensor.name == "num_known":
            array = np.full(shape, width, tensor.dtype)
        elif tensor.name in _SETTINGS:
            array = np.full(shape, _SETTINGS[tensor.name], tensor.dtype)
        elif tensor.name == "input_ids":
            array = token_ids.reshape(shape)
        else:
            array = past_len.reshape(shape)
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        self._binding.bind_ortvalue_input(tensor.name, value)
        return value

    def _bind_caches(self) -> None:
        """Bind the same memory as input and output of every cache, as when the engine runs."""
        outputs = {}
        for tensor in self._io_tensors.values():
            if tensor.aliases:
                outputs[tensor.aliases] = tensor.name
        for tensor in self._inputs:
            if tensor.cache:
                slot_shape = [int(size) for size in tensor.shape[1:]]
                array = np.zeros((1, *slot_shape), tensor.dtype)
                value = ort.OrtValue.ortvalue_from_numpy(array)
                self._bound += [array, value]
                self._binding.bind_ortvalue_input(tensor.name, value)
                self._binding.bind_ortvalue_output(outputs[tensor.name], value)

    def _known_input(self, directory: Path, name: str) -> IoTensor:
        """Return the description of an input, or raise EngineError."""
        tensor = self._io_tensors.get(name)
        known = {"input_ids", "num_known", "kv_positions", "decided", *_LENGTHS, *_SETTINGS}
        if tensor is None or not (tensor.cache or name in known):
            raise EngineError(
                f"{directory}: this version of dflash-trt does not know the input {name!r} of the"
                " engine's step. Build the engine again with this version."
            )
        return tensor


def _load(directory: Path, model: bytes, num_threads: int) -> Any:
    """Load a model whose weights are in the files of the engine directory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    try:
        with utf8_path(directory.resolve() / MODEL_FILE) as name:
            folder = str(Path(name).parent)
            options.add_session_config_entry(_WEIGHTS_FOLDER, folder)
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise EngineError(
            f"{directory}: ONNX Runtime {ort.__version__} cannot load this engine's graph with its"
            f" logits as an output ({error}). Build the engine again with what is installed."
        ) from error
