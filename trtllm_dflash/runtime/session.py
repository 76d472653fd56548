"""A session runs steps: the caches of all slots, and one call that advances some of them. One kind for each backend.

The step itself is a pure function of its inputs and the caches (see `graph/io.py`); everything that decides what to
feed it is in `decode.py`, so a session holds no sequence state.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.config.build import ARCHS
from trtllm_dflash.errors import EngineError

if TYPE_CHECKING:
    from trtllm_dflash.runtime.config import EngineConfig

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# Attention's work grows with the context that the host asks for; whole multiples keep the number of shapes small.
CONTEXT_BUCKET = 64


@dataclass(frozen=True)
class StepInputs:
    """One step of the slots first_slot … first_slot + B - 1: S tokens and R decided rows in each (`graph/io.py`)."""

    first_slot: int
    input_ids: Int64  # [B, S]
    num_known: Int32  # [B]
    past_len: Int32  # [B]
    temperature: Float32  # [B]
    top_p: Float32  # [B]
    top_k: Int32  # [B]
    uniforms: Float32  # [B, R]


@dataclass(frozen=True)
class StepOutputs:
    """What a step decided; the arrays are the caller's own."""

    next_ids: Int64  # [B, block]
    new_ids: Int64  # [B, R]
    num_new: Int32  # [B]
    next_len: Int32  # [B]


class Session(Protocol):
    """What the decode loop needs of a backend."""

    @property
    def max_batch_size(self) -> int:
        """How many slots there are."""
        ...

    @property
    def max_num_tokens(self) -> int:
        """The widest step, so the largest prompt chunk."""
        ...

    def step(self, inputs: StepInputs) -> StepOutputs:
        """Run one step and update the caches of its slots in place."""
        ...

    def move_slot(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` positions of every cache from one slot to another."""
        ...


def context_length(past_len: Int32, *, width: int, block_size: int, cache_len: int) -> int:
    """Cache rows that a step looks at: all that it reads or writes, rounded up to a whole bucket, at most cache_len.

    A step writes `width` rows behind the longest past; with a drafter (block_size > 1) it writes a block behind those.
    """
    needed = int(past_len.max()) + width + (block_size if block_size > 1 else 0)
    if needed > cache_len:
        raise EngineError(
            f"a step of width {width} at position {int(past_len.max())} needs {needed} cache rows, "
            f"and this engine has {cache_len}. Sequences must end at max_seq_len; the session's caller is at fault."
        )
    return min(-(-needed // CONTEXT_BUCKET) * CONTEXT_BUCKET, cache_len)


# A backend, as in config.json -> "module:class" with the constructor (directory, config, *, num_threads).
SESSIONS = {
    "onnxruntime": "trtllm_dflash.runtime.ort_session:OrtSession",
}


def open_session(directory: Path, config: EngineConfig, *, num_threads: int | None = None) -> Session:
    """Open the session for the engine's backend; a backend that this version cannot run raises EngineError."""
    if config.backend not in SESSIONS:
        raise EngineError(_cannot_run(directory, config))
    module, name = SESSIONS[config.backend].split(":")
    session: Any = getattr(import_module(module), name)
    opened: Session = session(directory, config, num_threads=num_threads)
    return opened


def _cannot_run(directory: Path, config: EngineConfig) -> str:
    runnable = [arch.name for arch in ARCHS.values() if arch.backend in SESSIONS]
    hardware = f" ({ARCHS[config.arch].hardware})" if config.arch in ARCHS else ""
    return (
        f"{directory}: this engine was built with {config.backend} for {config.arch}{hardware} and needs such a GPU; "
        f"this version of dflash-trt runs engines for {', '.join(runnable)} only. "
        "Build one with --arch cpu to run it here; dflash-trt doctor shows what this machine can build and run."
    )
