"""Checks of an engine's config.json against itself: format, sizes, table of inputs and outputs.

An engine directory may come from a copy that went wrong, from an editor, or from a newer version.
The sessions compare the same table with the inputs and outputs that the engine itself states.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trtllm_dflash import __version__
from trtllm_dflash.engine_dir.io_tensors import (
    BATCH,
    CONTEXT,
    HISTORY,
    LOGITS,
    SYMBOLS,
    IoTensor,
    control_inputs,
    control_outputs,
    dtype_names,
    history_port,
    logits_output,
)
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.hf_config import quote
from trtllm_dflash.options.resolved_build import MAX_SEQ_LEN, MAX_SLOTS
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

if TYPE_CHECKING:
    from trtllm_dflash.engine_dir.config import EngineConfig

# Raised when an engine of this version means something else to earlier versions.
FORMAT = 1
SECTIONS = (
    "format",
    "version",
    "pretrained_config",
    "build_config",
    "dflash",
    "io",
    "chat_template_kwargs",
    "generation_defaults",
    "turn_ends",
)
MAX_BLOCK = 1 << 12
MAX_POSITIONS = MAX_SEQ_LEN + 4 * MAX_BLOCK  # a sequence, and what steps write behind its end
_CACHE_NAME = re.compile(
    r"(?P<owner>target|draft)_(?P<part>key|value|window|state)\.(?P<layer>0|[1-9][0-9]{0,4})"
)
_STATE_PARTS = ("window", "state")  # of a target's layer with linear attention


def check_format(data: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that a newer version wrote.

    Raises:
        ConfigError: for a format number above `FORMAT`, or a section that this version lacks.
    """
    version = quote(data.get("version"))
    number = data.get("format", FORMAT)
    if type(number) is not int or number < 1:
        raise ConfigError(f"{where}: format is {quote(number)}, expected {FORMAT}.")
    newer = f"It was written by a newer dflash-trt (its version is {version}): use that one."
    if number > FORMAT:
        raise ConfigError(
            f"{where}: the directory has format {quote(number)}, and this version reads formats"
            f" up to {FORMAT}. {newer}"
        )
    unknown = [name for name in data if name not in SECTIONS]
    if unknown:
        raise ConfigError(f"{where}: the section {quote(unknown[0])} is unknown. {newer}")


def newer_version(version: str) -> str | None:
    """Return a sentence for an engine that a newer version built, None for others.

    It has no unknown part, so it can be used; what its numbers mean may have changed.
    """
    if _release(version) <= _release(__version__):
        return None
    return (
        f"the engine was written by a newer dflash-trt ({quote(version)}; this is {__version__})."
        " Where it does not do as it should, use that one."
    )


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, none for a text without."""
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def check_sizes(config: EngineConfig, where: str) -> None:
    """Raise ConfigError for two sizes that contradict each other; it names both."""
    limits = (
        ("max_batch_size", MAX_SLOTS, "the most slots that an engine can have"),
        ("cache_len", MAX_POSITIONS, "the most positions that a cache can have"),
        ("block_size", MAX_BLOCK, "the longest block"),
        ("max_seq_len", config.cache_len, "cache_len: a sequence must fit into its caches"),
        ("max_input_len", config.max_seq_len - 1, "max_seq_len - 1: a prompt leaves room"),
        ("max_num_tokens", config.max_seq_len, "max_seq_len: no step is wider than a sequence"),
        ("block_size", config.max_num_tokens, "max_num_tokens: a block is one step"),
        ("draft_len", config.block_size - 1, "block_size - 1: the first token is the anchor"),
    )
    for name, limit, reason in limits:
        value = getattr(config, name)
        if value > limit:
            raise ConfigError(
                f"{where}: {name} is {value}, expected at most {limit}, {reason}."
            )
    for token in config.eos_token_ids:
        if token < 0:
            raise ConfigError(f"{where}: eos_token_ids has {token}, expected token ids.")


def check_io_table(config: EngineConfig, where: str) -> None:
    """Compare the table of inputs and outputs with what a step of these sizes has.

    Raises:
        ConfigError: for a row that is missing, unknown or otherwise than in a step, and for a
            cache that is not updated in place.
    """
    rows = {}
    for tensor in config.io:
        place = f"{where}: io: {quote(tensor.name)}"
        _check_types(tensor, place)
        if tensor.name in rows:
            raise ConfigError(f"{place} appears twice.")
        rows[tensor.name] = tensor
    parts = {"has_states": config.has_states, "has_lookup": config.has_lookup}
    controls = (
        *control_inputs(
            vocab_size=config.vocab_size if config.has_adjust else None,
            may_skip=config.may_skip_drafter,
            **parts,
        ),
        *control_outputs(config.block_size, **parts),
    )
    for expected in controls:
        _check_control(rows.pop(expected.name, None), expected, config, where)
    logits = rows.pop(LOGITS, None)
    if logits is not None:
        _check_same(logits, logits_output(config.vocab_size), f"{where}: io: {LOGITS}")
    if config.has_lookup or config.has_adjust:
        _check_history(rows.pop(HISTORY, None), rows.pop(f"{HISTORY}.out", None), config, where)
    _check_caches(rows, config, where)


def _check_types(tensor: IoTensor, place: str) -> None:
    """Check a row by itself: its fields come from JSON and may be anything."""
    texts = (tensor.name, tensor.direction, tensor.dtype, tensor.meaning)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{place}: name, direction, dtype and meaning must be texts.")
    for field, value, accepted in (
        ("direction", tensor.direction, ("input", "output")),
        ("dtype", tensor.dtype, dtype_names()),
        ("cache", tensor.cache, (None, "target", "drafter")),
    ):
        if value not in accepted:
            raise ConfigError(
                f"{place}: {field} is {quote(value)}, expected {_any_of(accepted)}."
            )
    if tensor.recurrent not in (None, True) or type(tensor.recurrent) is int:
        raise ConfigError(
            f"{place}: recurrent is {quote(tensor.recurrent)}, expected true or nothing."
        )
    for size in tensor.shape:
        fits = type(size) is int and 0 < size <= MAX_POSITIONS
        if not fits and size not in SYMBOLS:
            raise ConfigError(
                f"{place}: the shape has {quote(size)}, expected a size or {_any_of(SYMBOLS)}."
            )


def _check_control(
    found: IoTensor | None, expected: IoTensor, config: EngineConfig, where: str
) -> None:
    place = f"{where}: io: {expected.name}"
    if found is not None:
        _check_same(found, expected, place)
        return
    may_lack = {row.name for row in SAMPLING_INPUTS}  # engines of earlier versions lack some
    if config.plugins and CONTEXT in expected.shape:
        return
    if expected.name not in may_lack:
        raise ConfigError(f"{place} is missing: every step has this {expected.direction}.")


def _check_same(found: IoTensor, expected: IoTensor, place: str) -> None:
    for field in ("direction", "dtype", "shape", "aliases", "cache", "recurrent"):
        value, wanted = getattr(found, field), getattr(expected, field)
        if value != wanted:
            raise ConfigError(f"{place}: {field} is {quote(value)}, expected {quote(wanted)}.")


def _check_history(
    found: IoTensor | None, output: IoTensor | None, config: EngineConfig, where: str
) -> None:
    expected = history_port(config.cache_len, has_drafter=config.speculates)
    place = f"{where}: io: {HISTORY}"
    if config.has_lookup and not config.speculates:
        raise ConfigError(f"{place}: lookup needs a drafter.")
    if found is None or output is None:
        raise ConfigError(f"{place} is missing as an input or as an output.")
    _check_same(found, expected, place)
    written = replace(expected, direction="output", aliases=HISTORY)
    _check_same(output, written, f"{place}.out")


def _check_caches(rows: Mapping[str, IoTensor], config: EngineConfig, where: str) -> None:
    """Check that every row left is a cache, and that each cache is one input and one output."""
    layers: Counter[str] = Counter()
    parts: defaultdict[str, dict[str, IoTensor]] = defaultdict(dict)
    for name, tensor in rows.items():
        place = f"{where}: io: {quote(name)}"
        source = name.removesuffix(".out")
        match = _CACHE_NAME.fullmatch(source)
        if match is None or (match["owner"] == "draft" and match["part"] in _STATE_PARTS):
            raise ConfigError(f"{place} is no input or output that this version knows.")
        owner = "target" if match["owner"] == "target" else "drafter"
        twin = rows.get(f"{source}.out" if name == source else source)
        if twin is None:
            raise ConfigError(f"{place} is a cache that is not both an input and an output.")
        layers[owner] += 1
        recurrent = True if match["part"] in _STATE_PARTS else None
        expected = _expected_cache(tensor, owner, source, config, place)
        _check_same(tensor, replace(expected, recurrent=recurrent), place)
        if name == source:
            parts[f"{match['owner']} layer {match['layer']}"][match["part"]] = tensor
        else:
            _check_same(
                replace(twin, name=name, direction="output", aliases=source), tensor, place
            )
    if not layers["target"] or bool(layers["drafter"]) != config.speculates:
        raise ConfigError(
            f"{where}: io has {layers['target']} rows of target caches and {layers['drafter']} of"
            f" drafter caches, and block_size is {config.block_size}."
        )
    for layer, found in parts.items():
        _check_layer(found, config, f"{where}: io: {layer}")


def _check_layer(parts: Mapping[str, IoTensor], config: EngineConfig, place: str) -> None:
    """Check that a layer has either keys and values or a window and a state, of sizes that fit."""
    if parts.keys() not in ({"key", "value"}, {"window", "state"}):
        raise ConfigError(
            f"{place} has the caches {', '.join(parts)}, expected key and value, or window and"
            " state."
        )
    if "state" not in parts:
        return
    window = parts["window"]
    state = parts["state"]
    for tensor, dtype in ((window, config.dtype), (state, "float32")):
        if tensor.dtype != dtype:
            raise ConfigError(f"{place}: {tensor.name} is of {tensor.dtype}, expected {dtype}.")
    _, count, rows, columns = map(_size, window.shape)
    _, heads, key_dim, value_dim = map(_size, state.shape)
    if count != 1 or rows < config.block_size:
        raise ConfigError(
            f"{place}: {window.name} has {count} × {rows} rows, expected 1 × at least"
            f" {config.block_size}: a block's drafts, and what its convolution sees before them."
        )
    keys = columns - 2 * heads - heads * value_dim  # queries and keys, beside values and gates
    if keys <= 0 or keys % (2 * key_dim):
        raise ConfigError(
            f"{place}: {window.name} has {columns} columns, and no number of key heads of"
            f" {key_dim} gives those beside {state.name} of {heads} heads of {value_dim}."
        )


def _size(size: int | str) -> int:
    """Return a size that is no symbol, 0 for one."""
    return size if isinstance(size, int) else 0


def _expected_cache(
    tensor: IoTensor, owner: str, source: str, config: EngineConfig, place: str
) -> IoTensor:
    is_output = tensor.name != source
    sizes = tensor.shape[1:]
    is_cache = len(sizes) == 3 and all(isinstance(size, int) for size in sizes)
    if tensor.shape[:1] != (BATCH,) or not is_cache:
        raise ConfigError(
            f"{place}: the shape is {quote(list(tensor.shape))}, expected that of a cache."
        )
    if int(sizes[1]) > config.cache_len and not tensor.recurrent:
        raise ConfigError(
            f"{place} has {sizes[1]} rows, expected at most cache_len, {config.cache_len}."
        )
    return replace(
        tensor,
        direction="output" if is_output else "input",
        aliases=source if is_output else None,
        cache=owner,
    )


def _any_of(values: Iterable[Any]) -> str:
    return " or ".join("nothing" if value is None else str(value) for value in values)
