"""The plain C library of the kernels through ctypes: built, called with NumPy arrays, and watched.

The emulated library (g++ alone) and the real one (nvcc, a GPU and torch) have the same functions.
Every array goes into memory of its own with a guard on both sides, so that what a kernel writes
outside its arrays is found.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from tests.fixtures.sampling import CHOICE_NAMES

PLUGINS = Path(__file__).parents[2] / "plugins"
SHARED_BYTES = 228 << 10  # of an H200's multiprocessor
HEAD_DIMS = (64, 96, 128, 256)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = {
    BFLOAT16: 0,
    np.dtype(np.float32): 1,
    np.dtype(np.int32): 2,
    np.dtype(np.int64): 3,
    FP8: 4,
}
STATUS = {0: "ok", 1: "invalid argument", 2: "launch failed"}
INVALID_ARGUMENT, LAUNCH_FAILED = 1, 2
GUARD = 256  # bytes
POISON = 0xFF  # NaN as bfloat16, FP8 and float32, -1 as an integer

GXX = ("g++", "-std=c++17", "-O2", "-fPIC", "-fno-strict-aliasing", "-DDFLASH_EMULATOR")
CONVERSIONS = "-DDFLASH_EMULATED_CONVERSIONS"  # codes as Blackwell's families convert them
GXX_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
INCLUDES = [f"-I{PLUGINS / folder}" for folder in ("emulator", "kernels", "library")]


class Tensor(ctypes.Structure):
    """DFlashTensor of dflash.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("stride", ctypes.c_int64 * 4),
    )


class AttentionOptions(ctypes.Structure):
    """DFlashAttentionOptions of dflash.h."""

    _fields_ = (
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        ("ring", ctypes.c_int32),
        ("processors", ctypes.c_int32),
        ("processor_shared_bytes", ctypes.c_int32),
        ("key_scale", ctypes.c_float),
        ("value_scale", ctypes.c_float),
    )


class AttentionPlan(ctypes.Structure):
    """DFlashAttentionPlan of dflash.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("tile_rows", "tile_warps", "tile_keys")),
        *((name, ctypes.c_int32) for name in ("row_tiles", "ctas", "even_splits")),
        *((name, ctypes.c_int32) for name in ("split_limit", "shared_bytes")),
        ("workspace_bytes", ctypes.c_int64),
    )


class AcceptPlan(ctypes.Structure):
    """DFlashAcceptPlan of dflash.h."""

    _fields_ = (
        ("chunks", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("workspace_bytes", ctypes.c_int64),
    )


class MoeOptions(ctypes.Structure):
    """DFlashMoeOptions of dflash.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("top_k", "normalize", "interleaved", "weight_format", "block_rows")
        ),
        *((name, ctypes.c_float) for name in ("limit", "alpha", "shift")),
    )


class BlockLinearPlan(ctypes.Structure):
    """DFlashBlockLinearPlan of dflash.h."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in ("tile_tokens", "tile_row_warps", "token_tiles", "row_blocks")
    )


class MoePlan(ctypes.Structure):
    """DFlashMoePlan of dflash.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("tile_tokens", "tile_row_warps", "groups", "gate_up_blocks")
        ),
        *(
            (name, ctypes.c_int32)
            for name in ("down_blocks", "sum_blocks", "shared_bytes", "reserved")
        ),
        ("workspace_bytes", ctypes.c_int64),
    )


MOE_INPUTS = (
    *("x", "router_logits", "gate_up", "gate_up_bias", "down", "down_bias"),
    *("gate_up_scale", "down_scale", "gate_up_scale_2", "down_scale_2"),
)


class LibraryError(Exception):
    """A function of the library returned `status`; the message is its dflash_last_error()."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{STATUS.get(status, status)}: {message}")
        self.status = status


class Memory(Protocol):
    """Where a library's tensors live."""

    def put(self, data: np.ndarray) -> tuple[int, Any]:
        """Address of a copy of `data` (bytes), and what keeps it alive."""

    def get(self, kept: Any) -> np.ndarray:
        """Return the bytes of such a copy after the launch."""


class HostMemory:
    """Arrays of NumPy, for the emulated library."""

    def put(self, data: np.ndarray) -> tuple[int, Any]:
        aligned = np.empty(data.size + 64, np.uint8)
        aligned = aligned[-aligned.ctypes.data % 64 :][: data.size]
        aligned[:] = data
        return aligned.ctypes.data, aligned

    def get(self, kept: Any) -> np.ndarray:
        return np.asarray(kept)


class GpuMemory:
    """Tensors of torch on the current CUDA device."""

    def put(self, data: np.ndarray) -> tuple[int, Any]:
        import torch

        tensor = torch.from_numpy(data).cuda()
        return tensor.data_ptr(), tensor

    def get(self, kept: Any) -> np.ndarray:
        import torch

        torch.cuda.synchronize()
        return kept.cpu().numpy()


class Placed:
    """An array in a library's memory, between guards."""

    def __init__(self, memory: Memory, array: np.ndarray) -> None:
        self._memory, self._array = memory, array
        guard = np.full(GUARD, POISON, np.uint8)
        self._bytes = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        address, self._kept = memory.put(np.concatenate([guard, self._bytes, guard]))
        self.address = address + GUARD

    def tensor(self) -> Tensor:
        made = Tensor(self.address, DTYPES[self._array.dtype], self._array.ndim)
        stride = 1
        for i in reversed(range(self._array.ndim)):
            made.shape[i], made.stride[i] = self._array.shape[i], stride
            stride *= self._array.shape[i]
        return made

    def fetch(self, name: str, *, written: bool) -> np.ndarray:
        """Return the array after the launch.

        AssertionError if its guards, or a tensor only read, have changed.
        """
        found = self._memory.get(self._kept)
        inside = found[GUARD:-GUARD]
        assert (found[:GUARD] == POISON).all(), f"{name}: written in front of it"
        assert (found[-GUARD:] == POISON).all(), f"{name}: written behind it"
        assert written or np.array_equal(inside, self._bytes), f"{name}: an input was written"
        return inside.copy().view(self._array.dtype).reshape(self._array.shape)


def poisoned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return an array full of NaN, or of -1."""
    dtype = np.dtype(dtype)
    return (
        np.full(int(np.prod(shape)) * dtype.itemsize, POISON, np.uint8)
        .view(dtype)
        .reshape(shape)
    )


class Library:
    """The functions of dflash.h on NumPy arrays. Inputs are not changed; all that is written comes
    back by name.
    """

    def __init__(self, path: Path, memory: Memory, *, emulated: bool) -> None:
        self.c, self._memory, self.emulated = ctypes.CDLL(str(path)), memory, emulated
        self.c.dflash_last_error.restype = ctypes.c_char_p
        for name in (
            "dflash_attention_params_bytes",
            "dflash_accept_params_bytes",
            "dflash_moe_params_bytes",
            "dflash_block_linear_params_bytes",
        ):
            getattr(self.c, name).restype = ctypes.c_int64

    def order(self, order: str, seed: int = 0) -> None:
        """Set the emulator's order of CTAs, warps and lanes: "forward", "reverse" or "random".

        A GPU has its own order.
        """
        if self.emulated:
            number = ("forward", "reverse", "random").index(order)
            self._check(
                self.c.dflash_emulator_order(ctypes.c_int32(number), ctypes.c_int64(seed))
            )

    def processors(self) -> tuple[int, int]:
        """Return the device's multiprocessors, and the shared memory of each."""
        count, shared_bytes = ctypes.c_int32(), ctypes.c_int32()
        self._check(self.c.dflash_processors(ctypes.byref(count), ctypes.byref(shared_bytes)))
        return count.value, shared_bytes.value

    def attention_plan(self, *sizes: int) -> AttentionPlan:
        """Plan for (batch, rows, q_heads, kv_heads, head_dim, cache_len, window, processors)."""
        plan = AttentionPlan()
        numbers = map(ctypes.c_int32, (*sizes, SHARED_BYTES))
        self._check(self.c.dflash_attention_plan(*numbers, ctypes.byref(plan)))
        return plan

    def accept_plan(self, batch: int, rows: int, vocab: int) -> AcceptPlan:
        plan = AcceptPlan()
        self._check(
            self.c.dflash_accept_plan(
                *map(ctypes.c_int32, (batch, rows, vocab)), ctypes.byref(plan)
            )
        )
        return plan

    def attention(
        self,
        operation: str,
        inputs: dict[str, np.ndarray],
        *,
        scale: float,
        window: int = 0,
        causal: bool = True,
        ring: bool = False,
        processors: int = 0,
        cache_scales: tuple[float, float] | None = None,
    ) -> dict[str, np.ndarray]:
        """operation: "verify" or "draft"; inputs: q, k, v, key_cache, value_cache, positions[,
        sinks].

        FP8 caches have scales, of keys and of values.

        Gives out, key_cache and value_cache.
        """
        q, cache = inputs["q"], inputs["key_cache"]
        sizes = (q.shape[0], q.shape[1], q.shape[2], cache.shape[1], q.shape[3], cache.shape[2])
        device, _ = self.processors()
        plan = self.attention_plan(*sizes, window, processors or device)
        given = scale, window, int(causal), int(ring), processors, SHARED_BYTES
        options = AttentionOptions(*given, *(cache_scales or (0, 0)))
        arrays = {**inputs, "out": poisoned(q.shape, q.dtype)}
        names = ("q", "k", "v", "key_cache", "value_cache", "positions", "sinks", "out")
        written = ("key_cache", "value_cache", "out")
        return self.call(
            f"dflash_{operation}_attention",
            arrays,
            names,
            written,
            plan.workspace_bytes,
            options,
        )

    def accept(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what dflash_accept writes; `inputs` are those of DFlashAccept by name."""
        batch, rows, vocab = inputs["logits"].shape
        outputs = {
            "new_ids": poisoned([batch, rows], np.int64),
            "num_new": poisoned([batch], np.int32),
            "next_len": poisoned([batch], np.int32),
            "bonus": poisoned([batch, 1], np.int64),
        }
        names = ("logits", "input_ids", "num_known", "past_len", *CHOICE_NAMES, "noise_key")
        names = (*names, "adjusted", "adjusts", *outputs)
        plan = self.accept_plan(batch, rows, vocab)
        return self.call(
            "dflash_accept", {**inputs, **outputs}, names, tuple(outputs), plan.workspace_bytes
        )

    def moe_plan(self, *sizes: int) -> MoePlan:
        """Plan for (tokens, hidden, inner_size, experts, top_k, weight_format)."""
        plan = MoePlan()
        self._check(self.c.dflash_moe_plan(*map(ctypes.c_int32, sizes), ctypes.byref(plan)))
        return plan

    def moe(
        self,
        inputs: dict[str, np.ndarray],
        options: MoeOptions,
        leftover: Sequence[int] | None = None,
    ) -> np.ndarray:
        """inputs: MOE_INPUTS, without the scales that the format does not have; gives out.

        leftover: int32 numbers that the workspace is full of, instead of the poison.
        """
        x, experts, inner = inputs["x"], len(inputs["gate_up"]), inputs["gate_up"].shape[1] // 2
        plan = self.moe_plan(*x.shape, inner, experts, options.top_k, options.weight_format)
        arrays, names = {**inputs, "out": poisoned(x.shape, x.dtype)}, (*MOE_INPUTS, "out")
        return self.call(
            "dflash_moe", arrays, names, ("out",), plan.workspace_bytes, options, leftover
        )["out"]

    def block_linear_plan(self, tokens: int, out_size: int) -> BlockLinearPlan:
        plan = BlockLinearPlan()
        sizes = map(ctypes.c_int32, (tokens, out_size))
        self._check(self.c.dflash_block_linear_plan(*sizes, ctypes.byref(plan)))
        return plan

    def block_linear(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """inputs: x, weight, scales[, bias]; gives out."""
        x, weight = inputs["x"], inputs["weight"]
        arrays = {**inputs, "out": poisoned((len(x), len(weight)), x.dtype)}
        names = ("x", "weight", "scales", "bias", "out")
        return self.call("dflash_block_linear", arrays, names, ("out",), 0)["out"]

    def call(
        self,
        function: str,
        arrays: dict[str, np.ndarray],
        names: Sequence[str],
        written: Sequence[str],
        workspace_bytes: int,
        options: ctypes.Structure | None = None,
        leftover: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Call `function` with the arrays `names`, null where there is none; default stream. Gives
        those `written`.
        """
        placed = {name: Placed(self._memory, array) for name, array in arrays.items()}
        space_array = poisoned([workspace_bytes // 4], np.int32)
        if leftover:
            space_array = np.resize(np.array(leftover, np.int32), space_array.shape)
        workspace = Placed(self._memory, space_array)
        tensors = [
            ctypes.byref(placed[name].tensor()) if name in placed else None for name in names
        ]
        extra = [ctypes.byref(options)] if options is not None else []
        space = (ctypes.c_void_p(workspace.address), ctypes.c_int64(workspace_bytes))
        self._check(getattr(self.c, function)(*tensors, *extra, *space, ctypes.c_void_p(None)))
        workspace.fetch("workspace", written=True)
        found = {
            name: array.fetch(name, written=name in written) for name, array in placed.items()
        }
        return {name: found[name] for name in written}

    def _check(self, status: int) -> None:
        if status:
            raise LibraryError(status, self.c.dflash_last_error().decode())


def run(command: Sequence[str]) -> str:
    """Run a command and return what it prints; AssertionError with its output when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
