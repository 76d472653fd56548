"""THE table of the step's inputs and outputs: names, types, shapes and meanings, for every reader
and writer of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from trtllm_dflash.engine_dir.ring_cache import cache_rows
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.options.draft_sources import TALLY_SIZE
from trtllm_dflash.options.logit_adjustments import (
    MAX_BAD_SEQUENCES,
    MAX_BAD_WORD_TOKENS,
    MAX_BIASES,
    mask_words,
)
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

BATCH = "batch"
WIDTH = "width"
ROWS = "rows"
CONTEXT = "context"
BLOCK = "block"
SYMBOLS = (BATCH, WIDTH, ROWS, CONTEXT, BLOCK)
LOGITS = "logits"
NOISE_KEY = "noise_key"
KEY_WORDS = 4
FP8 = "float8e4m3fn"
_ITEM_BYTES = {FP8: 1, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class IoTensor:
    """One input or output of the step. Symbols in `shape` are sizes that vary from call to call."""

    name: str
    direction: str  # "input" | "output"
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    aliases: str | None = None  # an output cache: the input whose memory it shares
    cache: str | None = None  # "target" | "drafter"
    recurrent: bool | None = None  # a cache that is a state, not rows by position: moved whole

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return _ITEM_BYTES[self.dtype]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot, of a port whose sizes are fixed but for the batch."""
        return prod(map(int, self.shape[1:])) * self.item_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the port as it is written in the engine's config.json."""
        return {key: value for key, value in asdict(self).items() if value is not None}


_STATE_LEN = IoTensor(
    "state_len",
    "input",
    "int32",
    (BATCH,),
    "positions already in the states, 0: a new sequence; only targets with linear attention",
)
_NEXT_STATE_LEN = IoTensor(
    "next_state_len",
    "output",
    "int32",
    (BATCH,),
    "past_len + num_known: drafts stay in the window; only targets with linear attention",
)

HISTORY = "history"
DRAFT_SOURCES = "draft_sources"
BLOCK_ROWS = IoTensor(
    "block_rows",
    "input",
    "int64",
    (BLOCK,),
    "0 … T-1; none: the drafter drafts nothing; not on GPUs",
)
_HISTORY_MEANING = (
    "the slot's token ids by position, exact up to 2^24: of penalties, and where drafts are looked"
    " up"
)
ADJUSTS = "adjusts"
TOKEN_MASK = "token_mask"
# Of a slot, from its opening on.
ADJUST_SETTINGS = (
    IoTensor("prompt_len", "input", "int32", (BATCH,), "tokens of the prompt"),
    IoTensor("bias_ids", "input", "int32", (BATCH, MAX_BIASES), "tokens that have a bias"),
    IoTensor("bias_values", "input", "float32", (BATCH, MAX_BIASES), "what is added to them"),
    IoTensor(
        "bad_words",
        "input",
        "int32",
        (BATCH, MAX_BAD_SEQUENCES, MAX_BAD_WORD_TOKENS),
        "sequences of tokens that must not come, each with -1 before it",
    ),
)
_ADJUSTS = IoTensor(
    ADJUSTS,
    "input",
    "int32",
    (BATCH,),
    "what the slot asks for in this step, a sum of 1: penalties, 2: biases, 4: bad words, 8: the"
    " mask",
)
LOOKUP_INPUTS = (
    IoTensor(
        DRAFT_SOURCES,
        "input",
        "int32",
        (BATCH,),
        "1: the drafter drafts, 2: lookup in the history, 3: the better one of both, block by"
        " block; only with a drafter",
    ),
    IoTensor(
        "tally",
        "input",
        "int32",
        (BATCH, TALLY_SIZE),
        "the class of the block to verify (0: the drafter's), then what the classes got accepted,"
        " 0: a new sequence; only with a drafter",
    ),
)
LOOKUP_OUTPUTS = (
    IoTensor(
        "next_tally",
        "output",
        "int32",
        (BATCH, TALLY_SIZE),
        "the tally behind the step; its first number is the class of next_ids",
    ),
)


def step_io(
    target: TargetConfig,
    drafter: DrafterConfig | None,
    *,
    dtype: str,
    cache_len: int,
    block_size: int,
    plugins: bool = False,
    kv_cache_dtype: str | None = None,
    ring_width: int | None = None,
    gather_logits: bool = False,
) -> tuple[IoTensor, ...]:
    """Return all inputs and outputs of a step, inputs first, each group in graph order.

    With `gather_logits` the logits that decide the tokens are an output, for `logprobs`.
    A plain step has no drafter and block_size 1. With plugins there is no input of symbol CONTEXT:
    plugins read on the device how far attention must look. The target's caches are of
    `kv_cache_dtype` if it is given, all else of `dtype`. Layers with a window have rings
    (`engine_dir.ring_cache`) for steps of up to `ring_width` tokens. None: every cache has
    cache_len rows, for any step. A layer of linear attention has a window and a state instead of
    keys and values, and the step then has `state_len` and `next_state_len`. In float32, which is
    for CPUs, the drafter may skip its block: ONNX Runtime computes tensors without rows.
    """
    rows = cache_rows(target.windows, cache_len=cache_len, written=ring_width)
    caches = _target_ports(target, dtype, kv_cache_dtype or dtype, rows, block_size=block_size)
    if drafter is not None:
        # The next block is written behind the step's tokens.
        written = None if ring_width is None else ring_width + block_size
        caches += _drafter_ports(
            drafter,
            dtype,
            cache_rows(drafter.windows, cache_len=cache_len, written=written),
        )
    caches += (history_port(cache_len, has_drafter=drafter is not None),)
    outputs = tuple(map(_written, caches))
    has = {"has_states": target.has_linear_layers, "has_lookup": drafter is not None}
    may_skip = drafter is not None and dtype == "float32"
    inputs = control_inputs(vocab_size=target.vocab_size, may_skip=may_skip, **has)
    controls = tuple(port for port in inputs if not (plugins and CONTEXT in port.shape))
    logits = (logits_output(target.vocab_size),) if gather_logits else ()
    results = control_outputs(block_size, **has)
    return (*controls, *caches, *results, *logits, *outputs)


def fp8_cache_dtype(dtype: str, *, plugins: bool) -> str:
    """Return the type of FP8 caches: FP8 with plugins, `dtype` in the operators' bodies."""
    return FP8 if plugins else dtype


def dtype_names() -> tuple[str, ...]:
    """Return the types that an input or output can have."""
    return tuple(_ITEM_BYTES)


def control_inputs(
    *,
    vocab_size: int | None,
    has_states: bool = True,
    has_lookup: bool = True,
    may_skip: bool = True,
) -> tuple[IoTensor, ...]:
    """Return the inputs that are no caches, of a step without plugins.

    Without `has_states`, those of a target whose layers all have keys and values. Without
    `has_lookup`, those of a step that looks no drafts up: it has no drafter. Without `vocab_size`,
    those of an earlier version's step, which adjusts no logits. With `may_skip`,
    those of a step whose drafter may draft nothing.
    """
    known = "the first num_known are decided, the rest drafts to verify"
    return (
        IoTensor("input_ids", "input", "int64", (BATCH, WIDTH), known),
        IoTensor(
            "num_known",
            "input",
            "int32",
            (BATCH,),
            "decided tokens of the row: 1 (the anchor) to width (a prompt)",
        ),
        IoTensor("past_len", "input", "int32", (BATCH,), "positions already in the caches"),
        *((_STATE_LEN,) if has_states else ()),
        IoTensor(
            "kv_positions",
            "input",
            "int64",
            (CONTEXT,),
            "0, 1, 2, …: the cache rows that attention looks at; no such input with plugins",
        ),
        IoTensor(
            "decided",
            "input",
            "int64",
            (ROWS,),
            "0, 1, 2, …: the rows, from the last known on, that decide a token",
        ),
        *(
            IoTensor(row.name, "input", row.dtype, (BATCH,), row.help)
            for row in SAMPLING_INPUTS
        ),
        IoTensor(
            NOISE_KEY,
            "input",
            "int64",
            (BATCH, KEY_WORDS),
            "numbers below 2^31, made of the slot's seed: the noise of its sampling",
        ),
        *((_ADJUSTS, *ADJUST_SETTINGS, _token_mask(vocab_size)) if vocab_size else ()),
        *((BLOCK_ROWS,) if may_skip else ()),
        *(LOOKUP_INPUTS if has_lookup else ()),
    )


def _token_mask(vocab_size: int) -> IoTensor:
    return IoTensor(
        TOKEN_MASK,
        "input",
        "int32",
        (BATCH, ROWS, mask_words(vocab_size)),
        "bit i of element w: token 32·w + i is allowed in that decided row; of slots that ask",
    )


def control_outputs(
    block_size: int, *, has_states: bool = True, has_lookup: bool = True
) -> tuple[IoTensor, ...]:
    """Return the outputs that a step has besides its caches.

    `has_states` and `has_lookup` are those of `control_inputs`.
    """
    return (
        IoTensor(
            "next_ids",
            "output",
            "int64",
            (BATCH, block_size),
            "bonus, then drafts: the next step's input_ids",
        ),
        IoTensor(
            "new_ids",
            "output",
            "int64",
            (BATCH, ROWS),
            "committed by this step: num_new tokens, then -1; -1 too where logits are not finite",
        ),
        IoTensor("num_new", "output", "int32", (BATCH,), "accepted drafts + 1 (the bonus)"),
        IoTensor(
            "next_len", "output", "int32", (BATCH,), "past_len + num_known + accepted drafts"
        ),
        *((_NEXT_STATE_LEN,) if has_states else ()),
        *(LOOKUP_OUTPUTS if has_lookup else ()),
    )


def history_port(cache_len: int, *, has_drafter: bool) -> IoTensor:
    """Return the input of the slots' texts, laid out as a cache of one number a position.

    It counts with a drafter's caches where there is one.
    """
    shape = (BATCH, 1, cache_len, 1)
    owner = "drafter" if has_drafter else "target"
    return IoTensor(HISTORY, "input", "float32", shape, _HISTORY_MEANING, cache=owner)


def logits_output(vocab_size: int) -> IoTensor:
    """Return the output of the logits that decide tokens, before the temperature."""
    return IoTensor(
        LOGITS,
        "output",
        "float32",
        (BATCH, ROWS, vocab_size),
        "the logits of the decided rows, before the temperature; optional",
    )


def _written(cache: IoTensor) -> IoTensor:
    """Return the output that is a cache's memory after the step."""
    meaning = f"{cache.name} after the step"
    written = replace(cache, name=f"{cache.name}.out", direction="output", meaning=meaning)
    return replace(written, aliases=cache.name)


def _target_ports(
    target: TargetConfig,
    dtype: str,
    kv_cache_dtype: str,
    rows: Sequence[int],
    *,
    block_size: int,
) -> tuple[IoTensor, ...]:
    ports: tuple[IoTensor, ...] = ()
    for layer in range(target.num_layers):
        config = target.at_layer(layer)
        if config.is_linear and config.linear_attention is not None:
            ports += _state_ports(config.linear_attention, layer, dtype, block_size)
        else:
            ports += _kv_ports("target", config, layer, kv_cache_dtype, rows[layer])
    return ports


def _drafter_ports(
    drafter: DrafterConfig, dtype: str, rows: Sequence[int]
) -> tuple[IoTensor, ...]:
    ports: tuple[IoTensor, ...] = ()
    for layer in range(drafter.num_layers):
        ports += _kv_ports("draft", drafter.at_layer(layer), layer, dtype, rows[layer])
    return ports


def _kv_ports(
    prefix: str, config: TargetConfig | DrafterConfig, layer: int, dtype: str, rows: int
) -> tuple[IoTensor, ...]:
    owner = "target" if prefix == "target" else "drafter"
    shape = (BATCH, config.num_kv_heads, rows, config.head_dim)
    ports = []
    for part in ("key", "value"):
        meaning = f"{owner} layer {layer}'s {part} cache"
        name = f"{prefix}_{part}.{layer}"
        ports.append(IoTensor(name, "input", dtype, shape, meaning, cache=owner))
    return tuple(ports)


def _state_ports(
    linear: LinearAttentionConfig, layer: int, dtype: str, block_size: int
) -> tuple[IoTensor, ...]:
    """Return a layer's window of rows before the convolution, and its state, which is float32."""
    window = (BATCH, 1, linear.window_rows(block_size), linear.window_columns)
    state = (BATCH, linear.num_value_heads, linear.key_dim, linear.value_dim)
    return (
        IoTensor(
            f"target_window.{layer}",
            "input",
            dtype,
            window,
            f"target layer {layer}'s rows before its convolution, of the positions from"
            f" state_len - {linear.conv_kernel - 1} on",
            cache="target",
            recurrent=True,
        ),
        IoTensor(
            f"target_state.{layer}",
            "input",
            "float32",
            state,
            f"target layer {layer}'s state after state_len positions",
            cache="target",
            recurrent=True,
        ),
    )
