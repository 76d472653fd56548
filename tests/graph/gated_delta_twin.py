"""A gated delta net's rule over whole sequences, row by row in float64, and slots that a session's
steps go through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.graph.run_op import op_model

GARBAGE = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)


@dataclass(frozen=True)
class Sizes:
    """Heads of keys and values, their dimensions, taps of the convolution, open rows at most."""

    key_heads: int = 2
    value_heads: int = 6
    key_dim: int = 12
    value_dim: int = 10
    taps: int = 4
    pending: int = 5

    @property
    def channels(self) -> int:
        """Return the channels of the convolution."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def window(self) -> tuple[int, int, int]:
        """Return the shape of a slot's window."""
        return (1, self.taps - 1 + self.pending, self.channels + 2 * self.value_heads)

    @property
    def state(self) -> tuple[int, int, int]:
        """Return the shape of a slot's state."""
        return (self.value_heads, self.key_dim, self.value_dim)


def random_weights(rng: np.random.Generator, sizes: Sizes) -> dict[str, np.ndarray]:
    """Return what a layer's operator has for weights, with decays of 0.2 to 1 a row."""
    return {
        "conv_weight": rng.normal(size=(sizes.channels, 1, sizes.taps)).astype(np.float32),
        "a_log": np.log(rng.uniform(0.01, 1, sizes.value_heads)).astype(np.float32),
        "dt_bias": rng.normal(size=sizes.value_heads).astype(np.float32),
    }


def twin(
    rows: np.ndarray, weights: dict[str, np.ndarray], sizes: Sizes
) -> tuple[np.ndarray, np.ndarray]:
    """Return results [N, Hv, Dv] and the states behind each row [N, Hv, Dk, Dv] of raw rows
    [N, C + 2·Hv] from position 0 on.
    """
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    rows = rows.astype(np.float64)
    share = sizes.value_heads // sizes.key_heads
    keys = sizes.key_heads * sizes.key_dim
    state = np.zeros(sizes.state)
    outs, states = [], []
    for position in range(len(rows)):
        mixed = np.zeros(sizes.channels)
        for tap in range(sizes.taps):
            source = position - (sizes.taps - 1) + tap
            if source >= 0:
                mixed += wide["conv_weight"][:, 0, tap] * rows[source, : sizes.channels]
        mixed /= 1 + np.exp(-mixed)
        q, k = mixed[: 2 * keys].reshape(2, sizes.key_heads, sizes.key_dim)
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
        v = mixed[2 * keys :].reshape(sizes.value_heads, sizes.value_dim)
        b, a = rows[position, sizes.channels :].reshape(2, sizes.value_heads)
        decay = np.exp(-np.exp(wide["a_log"]) * np.logaddexp(0, a + wide["dt_bias"]))
        out = np.zeros(v.shape)
        for head in range(sizes.value_heads):
            key = k[head // share]
            s = state[head] * decay[head]
            correction = (v[head] - key @ s) / (1 + np.exp(-b[head]))
            state[head] = s + np.outer(key, correction)
            out[head] = q[head // share] @ state[head] / np.sqrt(sizes.key_dim)
        outs.append(out)
        states.append(state.copy())
    return np.array(outs), np.array(states)


@dataclass
class Slots:
    """Slots of one layer, stepped in ONNX Runtime with windows and states in place.

    Their memory is full of garbage at first.
    """

    sizes: Sizes
    weights: dict[str, np.ndarray]
    count: int
    form: str | None = None  # row_order, for_cpu; None: as for TensorRT
    past: np.ndarray = field(init=False)
    state_len: np.ndarray = field(init=False)
    memory: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        import onnxruntime

        self.past, self.state_len = np.zeros((2, self.count), np.int32)
        shapes = {"window": self.sizes.window, "state": self.sizes.state}
        self.memory = {
            name: np.resize(GARBAGE, (self.count, *shape)) for name, shape in shapes.items()
        }
        attributes = {"num_key_heads": self.sizes.key_heads}
        attributes |= {self.form: 1} if self.form else {}
        arrays = self._arrays(np.zeros((self.count, 1, self.sizes.window[2]), np.float32))
        model = op_model("DFlashGatedDelta", arrays, **attributes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def step(
        self, rows: np.ndarray, known: Any, slots: slice | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return results [B, S, Hv, Dv] of raw rows [B, S, C + 2·Hv], and the states written.

        The positions move on by the known rows alone; `accept` adds drafts.
        """
        from onnxruntime import OrtValue

        slots = slots or slice(None)
        binding, held = self._session.io_binding(), {}
        for name, array in self._arrays(rows, known, slots).items():
            held[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            binding.bind_ortvalue_input(name, held[name])
        binding.bind_output("out")
        for name in self.memory:
            binding.bind_ortvalue_output(f"{name}_out", held[name])
        self._session.run_with_iobinding(binding)
        out = binding.get_outputs()[0].numpy().copy()
        for name, array in self.memory.items():
            array[slots] = held[name].numpy()
        self.past[slots] += np.asarray(known, np.int32)
        self.state_len[slots] = self.past[slots]
        return out, self.memory["state"][slots].copy()

    def accept(self, count: Any) -> None:
        """Move every slot's position over so many of its last drafts."""
        self.past += np.asarray(count, np.int32)

    def _arrays(
        self, rows: np.ndarray, known: Any = 1, slots: slice | None = None
    ) -> dict[str, np.ndarray]:
        slots = slots or slice(None)
        batch = len(self.past[slots])
        channels = self.sizes.channels
        return {
            "qkv": rows[:, :, :channels],
            "gates": rows[:, :, channels:],
            **self.weights,
            **{name: array[slots] for name, array in self.memory.items()},
            "past_len": self.past[slots],
            "state_len": self.state_len[slots],
            "num_known": np.broadcast_to(np.asarray(known, np.int32), batch).copy(),
        }
