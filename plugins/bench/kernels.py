"""The plain C library on torch tensors: the part of plugins/library/dflash.h that is timed."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

PLUGINS = Path(__file__).resolve().parents[1]
DTYPES = {torch.bfloat16: 0, torch.float32: 1, torch.int32: 2, torch.int64: 3}
ATTENTION_TENSORS = ("q", "k", "v", "key_cache", "value_cache", "positions", "sinks", "out")
ACCEPT_TENSORS = (
    *("logits", "input_ids", "num_known", "past_len"),
    *(row.name for row in SAMPLING_INPUTS),
    "uniforms",
    *("new_ids", "num_new", "next_len", "bonus"),
)
MOE_TENSORS = (
    *("x", "router_logits", "gate_up", "gate_up_bias", "down", "down_bias"),
    *("gate_up_scale", "down_scale", "gate_up_scale_2", "down_scale_2", "out"),
)
GATED_DELTA_TENSORS = (
    *("qkv", "gates", "conv_weight", "a_log", "dt_bias", "window", "state"),
    *("past_len", "state_len", "num_known", "out"),
)
Tensors = dict[str, torch.Tensor]  # by the names above; without sinks where there are none


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("stride", ctypes.c_int64 * 4),
    )


class _Options(ctypes.Structure):
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


class _MoeOptions(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("top_k", "normalize", "interleaved", "weight_format", "block_rows")
        ),
        *((name, ctypes.c_float) for name in ("limit", "alpha", "shift")),
    )


class _MoePlan(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_int32 * 8), ("workspace_bytes", ctypes.c_int64))


class _GatedDeltaPlan(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_int32 * 6), ("workspace_bytes", ctypes.c_int64))


class _AttentionPlan(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_int32 * 8), ("workspace_bytes", ctypes.c_int64))


class _AcceptPlan(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_int32 * 2), ("workspace_bytes", ctypes.c_int64))


def build(folder: Path) -> Path:
    """Build the library for this GPU into `folder` with CMake and nvcc; return its path."""
    configure = [
        "cmake",
        "-S",
        str(PLUGINS),
        "-B",
        str(folder),
        "-DCMAKE_CUDA_ARCHITECTURES=native",
    ]
    compile_all = ["cmake", "--build", str(folder), "--target", "dflash_kernels", "--parallel"]
    for command in (configure, compile_all):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, encoding="utf-8"
        )
        if done.returncode:
            raise SystemExit(
                f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )
    return folder / "libdflash_kernels.so"


class Kernels:
    """The library's functions; they launch on torch's current stream, and graphs capture them."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        self._c.dflash_last_error.restype = ctypes.c_char_p

    def attention_workspace(self, tensors: Tensors, window: int) -> torch.Tensor:
        """Allocate the workspace of attention on these tensors; without a window it is 0."""
        q, cache = tensors["q"], tensors["key_cache"]
        processors, shared_bytes, plan = ctypes.c_int32(), ctypes.c_int32(), _AttentionPlan()
        self._check(
            self._c.dflash_processors(ctypes.byref(processors), ctypes.byref(shared_bytes))
        )
        sizes = (
            q.shape[0],
            q.shape[1],
            q.shape[2],
            cache.shape[1],
            q.shape[3],
            cache.shape[2],
            window,
            processors.value,
            shared_bytes.value,
        )
        self._check(
            self._c.dflash_attention_plan(*map(ctypes.c_int32, sizes), ctypes.byref(plan))
        )
        return torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=q.device)

    def verify_attention(
        self, tensors: Tensors, workspace: torch.Tensor, *, scale: float, window: int
    ) -> None:
        """Write k and v into the caches and attend; the result is tensors["out"]."""
        options = ctypes.byref(_Options(scale, window, causal=1))
        arguments = [*self._references(tensors, ATTENTION_TENSORS), options]
        self._check(self._c.dflash_verify_attention(*arguments, *self._end(workspace)))

    def accept_workspace(self, logits: torch.Tensor) -> torch.Tensor:
        """Allocate the workspace for logits [B, R, V]."""
        plan = _AcceptPlan()
        self._check(
            self._c.dflash_accept_plan(*map(ctypes.c_int32, logits.shape), ctypes.byref(plan))
        )
        return torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=logits.device)

    def accept(self, tensors: Tensors, workspace: torch.Tensor) -> None:
        """Sample and accept; the results are the last four of ACCEPT_TENSORS."""
        self._check(
            self._c.dflash_accept(
                *self._references(tensors, ACCEPT_TENSORS), *self._end(workspace)
            )
        )

    def moe_workspace(self, tensors: Tensors, top_k: int) -> torch.Tensor:
        """Allocate the workspace of MXFP4 experts on these tensors."""
        plan, (tokens, hidden) = _MoePlan(), tensors["x"].shape
        experts, rows = tensors["gate_up_bias"].shape
        sizes = (tokens, hidden, rows // 2, experts, top_k, 1)
        self._check(self._c.dflash_moe_plan(*map(ctypes.c_int32, sizes), ctypes.byref(plan)))
        return torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=tensors["x"].device)

    def moe(
        self,
        tensors: Tensors,
        workspace: torch.Tensor,
        *,
        top_k: int,
        limit: float,
        alpha: float,
        shift: float,
    ) -> None:
        """Write the weighted sum of MXFP4 experts, rows of gate and up alternating, to "out"."""
        options = ctypes.byref(_MoeOptions(top_k, 1, 1, 1, 0, limit, alpha, shift))
        self._check(
            self._c.dflash_moe(
                *self._references(tensors, MOE_TENSORS), options, *self._end(workspace)
            )
        )

    def gated_delta_workspace(self, tensors: Tensors, key_heads: int) -> torch.Tensor:
        """Allocate the workspace of gated delta on these tensors."""
        plan, (batch, rows, _) = _GatedDeltaPlan(), tensors["qkv"].shape
        sizes = (batch, rows, tensors["window"].shape[2], key_heads, len(tensors["a_log"]))
        self._check(
            self._c.dflash_gated_delta_plan(*map(ctypes.c_int32, sizes), ctypes.byref(plan))
        )
        device = tensors["qkv"].device
        return torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)

    def gated_delta(self, tensors: Tensors, workspace: torch.Tensor, *, key_heads: int) -> None:
        """Run a step's rows; the result is "out", and "window" and "state" go on."""
        options = ctypes.byref(ctypes.c_int32(key_heads))
        arguments = [*self._references(tensors, GATED_DELTA_TENSORS), options]
        self._check(self._c.dflash_gated_delta(*arguments, *self._end(workspace)))

    @staticmethod
    def _references(tensors: Tensors, names: Iterable[str]) -> list[object]:
        found: list[object] = []
        for name in names:
            tensor = tensors.get(name)
            if tensor is None:
                found.append(None)
                continue
            shape = (ctypes.c_int64 * 4)(*tensor.shape)
            stride = (ctypes.c_int64 * 4)(*tensor.stride())
            made = _Tensor(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.ndim, shape, stride)
            found.append(ctypes.byref(made))
        return found

    @staticmethod
    def _end(workspace: torch.Tensor) -> tuple[object, ...]:
        stream = torch.cuda.current_stream().cuda_stream if workspace.is_cuda else None
        return (
            ctypes.c_void_p(workspace.data_ptr()),
            ctypes.c_int64(workspace.numel()),
            ctypes.c_void_p(stream),
        )

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._c.dflash_last_error().decode())
