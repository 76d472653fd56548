"""Sessions: what runs steps on the slots of one engine and keeps their state.

A slot's state is its caches, how far they reach, its next block, and how its tokens are chosen. All
of it stays in the session, on the device if there is one. A state of linear attention is such a
cache. It reaches as far as the tokens that were known when a step began; the accepted drafts wait
in its window for the next step. A decode step goes on from what the step
before has left there, so it can be launched before that step's result is read. Scheduling is in
`scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.hardware.devices import cuda_gpus
from trtllm_dflash.hardware.doctor import unrunnable_reason
from trtllm_dflash.options.draft_sources import SOURCE_BITS
from trtllm_dflash.options.logit_adjustments import (
    BAD_WORDS,
    BIASES,
    NO_TOKEN,
    PENALTIES,
    mask_words,
)
from trtllm_dflash.options.row_sampling import PENALTY_INPUTS, SAMPLING_INPUTS, RowSampling
from trtllm_dflash.runtime.env import ANY_GPU, env_flag
from trtllm_dflash.runtime.sessions.slot_copy import Prefix, SlotCopy
from trtllm_dflash.trt.loader import select_flavor

if TYPE_CHECKING:
    from trtllm_dflash.engine_dir.config import EngineConfig

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# Attention's work grows with the context that the host asks for. Whole multiples keep the number of
# shapes small.
CONTEXT_BUCKET = 64
CALLER_BUG = "This is a bug in dflash-trt."
TALLY = "tally"
# What a slot carries from step to step, and the outputs that it is after one. An engine without
# states has no state_len, one without lookup no tally.
CARRIED = {"past_len": "next_len", "state_len": "next_state_len", TALLY: "next_tally"}


@dataclass(frozen=True, kw_only=True)
class SlotSampling(RowSampling):
    """How a slot's tokens are chosen."""

    noise_key: tuple[int, ...] = (0,) * KEY_WORDS  # numbers below 2^31
    wants_logits: bool = False
    wants_drafts: bool = False  # the host gets the drafts of its next block with every step
    draft_sources: int = SOURCE_BITS["both"]
    prompt_len: int = 0  # the tokens behind are the answer, of which penalties count
    logit_bias: tuple[tuple[int, float], ...] = ()  # tokens, each once, and what is added
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of tokens that must not come

    @property
    def adjusts(self) -> int:
        """Return the kinds of adjustment that every step of the slot needs, as bits."""
        penalizes = any(getattr(self, row.name) != row.default for row in PENALTY_INPUTS)
        bits = PENALTIES * penalizes
        return bits + BIASES * bool(self.logit_bias) + BAD_WORDS * bool(self.bad_words)

    def write_lists(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write biases and bad words into a slot's inputs, of those that there are.

        Unused biases repeat the first; words stand at the right of their rows.
        """
        if "bias_ids" in arrays:
            ids, values = arrays["bias_ids"], arrays["bias_values"]
            first, first_value = self.logit_bias[0] if self.logit_bias else (0, 0.0)
            ids[...], values[...] = first, first_value
            for place, (token, value) in enumerate(self.logit_bias):
                ids[place], values[place] = token, value
        if "bad_words" in arrays:
            rows = arrays["bad_words"]
            rows[...] = NO_TOKEN
            for row, word in zip(rows, self.bad_words, strict=False):
                row[len(row) - len(word) :] = word


@dataclass(frozen=True)
class StepResult:
    """What a step decided for the B slots it ran; the arrays are the caller's own."""

    new_ids: Int64  # [B, R]: num_new tokens, then -1
    num_new: Int32  # [B]
    next_len: Int32 | None = None  # [B]: positions in the caches; None: the session cannot say
    logits: Float32 | None = None  # [B, R, V] if one of the slots wants them
    next_state_len: Int32 | None = None  # [B]: positions in the states; None: there are none
    # [B, TALLY_SIZE]: the class of each slot's next block, and what the classes got accepted; None:
    # there is no lookup.
    next_tally: Int32 | None = None
    # [B, T]: each slot's next block, the anchor and its drafts, if one of the slots wants drafts.
    next_ids: Int64 | None = None

    def next_class(self, row: int) -> int:
        """Return the class of the block that a row's next step verifies; 0: the drafter's."""
        return 0 if self.next_tally is None else int(self.next_tally[row, 0])


class Session(Protocol):
    """What the scheduler needs of a backend.

    `prefill` and `decode` launch a step; `collect` waits for the oldest of them. At most
    `lookahead` + 1 steps may be in flight, none when a slot is moved, and none of a slot that is
    opened.
    """

    @property
    def max_batch_size(self) -> int:
        """Return the number of slots."""
        ...

    @property
    def max_num_tokens(self) -> int:
        """Return the width of the widest step, which is the largest prompt chunk."""
        ...

    @property
    def lookahead(self) -> int:
        """Return how many more steps pay to have in flight while the oldest one is waited for."""
        ...

    def open_slot(
        self, slot: int, sampling: SlotSampling, prefix: Prefix | None = None
    ) -> None:
        """Empty a slot for a new sequence, or let it begin with what is known of a prefix."""
        ...

    def save_slot(self, slot: int, length: int) -> SlotCopy | None:
        """Copy what a slot holds of its first `length` positions, behind the steps in flight.

        None if there is no room: some copy must be dropped first. A state is that behind the
        slot's last step.
        """
        ...

    def drop_copy(self, copy: SlotCopy) -> None:
        """Give a copy's room back."""
        ...

    @property
    def may_skip_drafter(self) -> bool:
        """Tell whether steps without the drafter's block cost less than others."""
        ...

    def prefill(self, slot: int, input_ids: Int64, *, draft: bool = True) -> None:
        """Append tokens [S] to those that one slot holds, and decide the next one (R = 1).

        `draft` is that of `decode`.
        """
        ...

    def step_width(self, width: int) -> int:
        """Return the width as which a decode step of `width` is best run: `width` or a larger one.

        It is at most a block, if `width` is.
        """
        ...

    def decode(self, count: int, width: int, *, draft: bool = True) -> None:
        """Verify and decide in slots 0 … count - 1 (R = width).

        Each takes the first `width` tokens of its next block. Each must have had a prompt. A slot
        behind them that has decoded before is free from now on.

        Without `draft` the drafter drafts no next blocks, if the session may skip it: they are
        lookup's, whatever the slots allow. A later step may draft again, as if all had.
        """
        ...

    def constrain(self, slot: int, allowed: Int32 | None, drafts: Int64 | None = None) -> None:
        """Limit what a slot's next step may decide; it counts for that step alone.

        No step of the slot may be in flight. `allowed` [N, W] is a mask for each of the step's
        first N decided rows: bit i of element w stands for token 32·w + i. Rows behind it, and all
        without it, may decide any token. `drafts` [N] replace the first N of the slot's next block.
        A row that allows nothing decides nothing: its new id is -1.

        Raises:
            EngineError: for an engine of an earlier version, and what does not fit the block.
        """
        ...

    def keep(self) -> None:
        """Keep what the next start of this engine can use; no step is in flight."""
        ...

    def collect(self) -> StepResult:
        """Wait for the oldest step in flight, and return what it decided."""
        ...

    def move_slot(self, src: int, dst: int) -> None:
        """Move slot `src` to `dst`; `src` becomes free."""
        ...

    def discard(self) -> None:
        """Wait for all steps in flight and drop their results; slots are then undefined."""
        ...


def check_constraint(config: EngineConfig, allowed: Int32 | None, drafts: Int64 | None) -> None:
    """Raise EngineError for a constraint that a step of the engine cannot have."""
    if not config.has_adjust:
        raise EngineError(
            "this engine was built by a version without token masks. Build it again."
        )
    words = mask_words(config.vocab_size)
    if allowed is not None and (allowed.ndim != 2 or allowed.shape[1] != words):
        raise EngineError(
            f"a token mask has the shape {list(allowed.shape)}, expected [rows, {words}]."
            f" {CALLER_BUG}"
        )
    most = config.block_size - 1
    if drafts is not None and len(drafts) > most:
        raise EngineError(
            f"{len(drafts)} drafts are given, and a block has {most}. {CALLER_BUG}"
        )


def context_length(
    past_len: Int32, width: int, config: EngineConfig, spare_rows: int = 0
) -> int:
    """Return the positions that a step reads or writes, in whole buckets, at most cache_len.

    A step writes `width` rows behind the longest past, and rows that nobody reads; with a drafter
    it writes a block behind those.

    Raises:
        EngineError: for a step that the caches have no room for.
    """
    if width > config.max_num_tokens:
        raise EngineError(
            f"a step of width {width} is wider than max_num_tokens, {config.max_num_tokens}, for"
            f" which this engine's caches were made. {CALLER_BUG}"
        )
    needed = int(past_len.max()) + width + spare_rows
    needed += config.block_size if config.speculates else 0
    if needed > config.cache_len:
        raise EngineError(
            f"a step of width {width} at position {int(past_len.max())} needs {needed} cache rows,"
            f" and this engine has {config.cache_len}. Sequences must end at max_seq_len."
            f" {CALLER_BUG}"
        )
    return min(-(-needed // CONTEXT_BUCKET) * CONTEXT_BUCKET, config.cache_len)


# A backend, as in config.json, and its class: (directory, config, *, num_threads, draft_lens,
# prefix_bytes) opens a session.
SESSIONS = {
    "onnxruntime": "trtllm_dflash.runtime.sessions.ort:OrtSession",
    "tensorrt_rtx": "trtllm_dflash.runtime.sessions.trt:TrtSession",
    "tensorrt": "trtllm_dflash.runtime.sessions.trt:TrtSession",
}


def open_session(
    directory: Path,
    config: EngineConfig,
    *,
    num_threads: int | None = None,
    draft_lens: Iterable[int] | None = None,
    prefix_bytes: int = 0,
) -> Session:
    """Open the session for the engine's backend; one that cannot run here raises EngineError.

    `prefix_bytes`: the most that copies of slots may take.
    """
    check_runnable(directory, config)
    if ARCHS[config.gpu_arch].is_gpu:
        select_flavor(BACKENDS[config.backend].module)
    module, name = SESSIONS[config.backend].split(":")
    session: Any = getattr(import_module(module), name)
    opened: Session = session(
        directory,
        config,
        num_threads=num_threads,
        draft_lens=draft_lens,
        prefix_bytes=prefix_bytes,
    )
    return opened


def check_runnable(directory: Path, config: EngineConfig) -> None:
    """Raise EngineError for an engine that cannot run on this machine; loads nothing."""
    reason = unrunnable_here(config)
    if reason is not None:
        raise EngineError(
            f"{directory}: this engine was built with {config.backend} for {config.gpu_arch} and"
            f" cannot run here: {reason}. Build one with --arch cpu to run it here; dflash-trt"
            " doctor shows what this machine can build and run."
        )
    if config.plugins and config.sampling_inputs != SAMPLING_INPUTS:
        raise EngineError(
            f"{directory}: this engine's kernels are of an earlier version of dflash-trt, with"
            " other sampling inputs. Build it again."
        )


def unrunnable_here(config: EngineConfig) -> str | None:
    """Return why engines for this GPU architecture cannot run here, as `doctor` says it."""
    arch = ARCHS.get(config.gpu_arch)
    if arch is None or arch.backend != config.backend:
        return "this version of dflash-trt knows no such engines"
    if config.gpu_arch == "cpu":
        return unrunnable_reason(arch, [], SESSIONS)  # without starting the GPU's driver
    gpus = cuda_gpus()
    if env_flag(ANY_GPU, default=False) and not isinstance(gpus, str):
        gpus = [replace(gpu, arch=config.gpu_arch) for gpu in gpus]
    return unrunnable_reason(arch, gpus, SESSIONS)
