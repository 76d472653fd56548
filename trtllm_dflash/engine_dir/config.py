"""The engine's config.json as the runtime needs it, read once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.config_checks import check_format, check_io_table, check_sizes
from trtllm_dflash.engine_dir.files import CONFIG_FILE
from trtllm_dflash.engine_dir.io_tensors import (
    ADJUST_SETTINGS,
    ADJUSTS,
    BLOCK_ROWS,
    DRAFT_SOURCES,
    KEY_WORDS,
    LOGITS,
    LOOKUP_INPUTS,
    LOOKUP_OUTPUTS,
    NOISE_KEY,
    TOKEN_MASK,
    IoTensor,
)
from trtllm_dflash.engine_dir.other_directories import describe_other, is_checkpoint
from trtllm_dflash.errors import ConfigError, EngineError, UsageError
from trtllm_dflash.models.hf_config import HfReader, parse_json
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.generation_defaults import check_defaults
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS, SamplingInput

_BUILD_AGAIN = " The engine directory is damaged or of another version: build it again."
_SHORT_DTYPES = {"float32": "FP32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class EngineConfig:
    """What an engine directory holds, and the sizes it was built for.

    A plain engine has block_size 1 and draft_len 0.
    """

    model_type: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    gpu_arch: str
    backend: str
    dtype: str
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    cache_len: int
    plugins: bool  # whether the engine holds our kernels
    block_size: int
    draft_len: int  # of a step where a request does not say; with auto_draft_len, at most
    io: tuple[IoTensor, ...]
    kv_cache_quant_algo: str | None = None  # of the target's caches; None: they are of `dtype`
    # The number of linears by format, as NVFP4, of the target and of the drafter.
    quantized_linears: Mapping[str, int] = field(default_factory=dict)
    quantized_drafter_linears: Mapping[str, int] = field(default_factory=dict)
    # Options of the chat template, for chats that give no others.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # What `serve` takes for requests that do not say: the checkpoint's generation_config.json.
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    weight_only_precision: str | None = None  # of weights that are integers by block
    auto_draft_len: bool = False  # as many drafts as pay, where a request does not say
    version: str = ""  # of the dflash-trt that built it; empty: it does not say

    @property
    def speculates(self) -> bool:
        """Tell whether the engine has a drafter."""
        return self.block_size > 1

    @property
    def own_draft_len(self) -> int | str:
        """Return the `draft_len` of requests that name none: "auto", or a number."""
        return AUTO if self.auto_draft_len else self.draft_len

    @property
    def formats(self) -> str:
        """Return the formats by which engines differ: weights NVFP4 (210 linears), caches FP8."""
        parts = [f"weights {self.weights}", f"caches {self.caches}"]
        if self.quantized_drafter_linears:
            parts.insert(1, f"drafter {self.drafter_weights}")
        return ", ".join(parts)

    @property
    def weights(self) -> str:
        """Return the formats of the target's weights."""
        return self._linear_formats(self.quantized_linears)

    @property
    def drafter_weights(self) -> str:
        """Return the formats of the drafter's weights."""
        return self._linear_formats(self.quantized_drafter_linears)

    @property
    def caches(self) -> str:
        """Return the format of the target's caches."""
        return self.kv_cache_quant_algo or self._dtype

    @property
    def _dtype(self) -> str:
        return _SHORT_DTYPES.get(self.dtype, self.dtype)

    def _linear_formats(self, linears: Mapping[str, int]) -> str:
        if self.weight_only_precision is not None:
            return f"{self.weight_only_precision.upper()} in blocks"
        counts = [f"{name} ({count} linears)" for name, count in sorted(linears.items())]
        return ", ".join(counts) or self._dtype

    @property
    def has_logits(self) -> bool:
        """Tell whether the logits are an output, for `logprobs`."""
        return any(tensor.name == LOGITS for tensor in self.io)

    @property
    def has_states(self) -> bool:
        """Tell whether layers of the target have a state instead of keys and values."""
        return any(tensor.recurrent for tensor in self.io)

    @property
    def has_lookup(self) -> bool:
        """Tell whether steps look drafts up in the slot's text.

        Those of plain engines, and of engines of earlier versions, do not.
        """
        lookup = {port.name for port in (*LOOKUP_INPUTS, *LOOKUP_OUTPUTS)}
        return any(tensor.name in lookup for tensor in self.io)

    @property
    def has_adjust(self) -> bool:
        """Tell whether steps adjust logits, as penalties and token masks need it.

        Those of engines of earlier versions do not.
        """
        adjust = {ADJUSTS, TOKEN_MASK, *(port.name for port in ADJUST_SETTINGS)}
        return any(tensor.name in adjust for tensor in self.io)

    @property
    def may_skip_drafter(self) -> bool:
        """Tell whether a step can leave the drafter's block out; its tokens are taken in anyway.

        GPU engines, and engines of earlier versions, draft in every step.
        """
        return self.has_lookup and any(tensor.name == BLOCK_ROWS.name for tensor in self.io)

    @property
    def sampling_inputs(self) -> tuple[SamplingInput, ...]:
        """Return those rows of the sampling table that this engine has an input for."""
        names = {tensor.name for tensor in self.io}
        return tuple(row for row in SAMPLING_INPUTS if row.name in names)

    @property
    def slot_settings(self) -> dict[str, tuple[str, int]]:
        """Return how a slot is decoded: inputs by name, with type and numbers of a slot."""
        settings = {row.name: (row.dtype, 1) for row in self.sampling_inputs}
        settings[NOISE_KEY] = "int64", KEY_WORDS
        if self.has_adjust:
            settings |= {ADJUSTS: ("int32", 1), "prompt_len": ("int32", 1)}
        return settings | ({DRAFT_SOURCES: ("int32", 1)} if self.has_lookup else {})

    @classmethod
    def load(cls, directory: Path) -> EngineConfig:
        """Read `directory`/config.json.

        Raises:
            EngineError: if there is none, or something in it is missing or has a wrong type.
        """
        path = directory / CONFIG_FILE
        try:
            if not path.is_file():
                raise EngineError(describe_other(directory, CONFIG_FILE))
            data = parse_json(path.read_bytes(), str(path))
        except OSError as error:
            raise EngineError(f"{shown(str(directory))}: {error.strerror}.") from error
        except ConfigError as error:
            raise EngineError(f"{error}{_BUILD_AGAIN}") from error
        if is_checkpoint(data):
            raise EngineError(describe_other(directory, CONFIG_FILE))
        try:
            return cls.from_json(data, str(path))
        except ConfigError as error:
            raise EngineError(f"{error}{_BUILD_AGAIN}") from error

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> EngineConfig:
        """Take the runtime's part of the parsed config.json; `where` names it in errors.

        Raises:
            ConfigError: for what is missing, of a wrong type, of a newer version, or at odds with
                the rest.
        """
        check_format(data, where)
        config = cls._read(HfReader(data, where), where)
        check_sizes(config, where)
        check_io_table(config, where)
        return config

    @classmethod
    def _read(cls, reader: HfReader, where: str) -> EngineConfig:
        build = {name: reader.read(int, f"build_config.{name}", low=1) for name in _SIZES}
        speculates = reader.section("dflash") is not None
        block_size = reader.read(int, "dflash.block_size", low=2) if speculates else 1
        auto = speculates and reader.get("dflash.draft_len") == AUTO
        draft_len = block_size - 1
        if speculates and not auto:
            draft_len = reader.read(int, "dflash.draft_len", low=0)
        return cls(
            # Earlier engines call it architecture.
            model_type=reader.read(
                str, "pretrained_config.model_type", "pretrained_config.architecture"
            ),
            vocab_size=reader.read(int, "pretrained_config.vocab_size", low=1),
            eos_token_ids=reader.read_list(int, "pretrained_config.eos_token_ids"),
            gpu_arch=reader.read(str, "build_config.arch", "build_config.gpu_arch"),
            backend=reader.read(str, "build_config.backend"),
            dtype=reader.read(str, "build_config.dtype"),
            **build,
            plugins=reader.read(bool, "build_config.plugins"),
            block_size=block_size,
            draft_len=draft_len,
            auto_draft_len=auto,
            io=_io_tensors(reader, where),
            kv_cache_quant_algo=reader.read(
                str, "pretrained_config.quantization.kv_cache_quant_algo", default=None
            ),
            quantized_linears=_linears(reader, "pretrained_config"),
            quantized_drafter_linears=_linears(reader, "dflash") if speculates else {},
            chat_template_kwargs=_template_options(reader),
            generation_defaults=_generation_defaults(reader),
            weight_only_precision=reader.read(
                str, "build_config.weight_only_precision", default=None
            ),
            version=str(reader.get("version") or ""),
        )


_SIZES = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "cache_len")


def _linears(reader: HfReader, section: str) -> dict[str, int]:
    """Return the number of linears by format; earlier engines do not say it."""
    path = f"{section}.quantization.quantized_linears"
    counts = reader.get(path)
    if counts is None:
        return {}
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        reader.fail(path, f"is {counts!r}, expected numbers of linears by format.")
    return dict(counts)


def _template_options(reader: HfReader) -> dict[str, Any]:
    """Return the options of the chat template; earlier engines have none."""
    options = reader.get("chat_template_kwargs")
    if options is not None and not isinstance(options, dict):
        reader.fail("chat_template_kwargs", f"is {options!r}, expected an object.")
    return dict(options or {})


def _generation_defaults(reader: HfReader) -> dict[str, Any]:
    """Return the checkpoint's own sampling; earlier engines have none."""
    try:
        return check_defaults(reader.get("generation_defaults") or {})
    except UsageError as error:
        raise ConfigError(f"{reader.where}: {error}") from error


def _io_tensors(reader: HfReader, where: str) -> tuple[IoTensor, ...]:
    rows = reader.get("io")
    if not isinstance(rows, list) or not rows:
        found = type(rows).__name__
        reader.fail("io", f"is {found}, expected the list of the step's inputs and outputs.")
    return tuple(_io_tensor(row, f"{where}: io[{index}]") for index, row in enumerate(rows))


def _io_tensor(row: Any, where: str) -> IoTensor:
    known = {field.name for field in fields(IoTensor)}
    required = {"name", "direction", "dtype", "shape"}
    if not isinstance(row, dict) or not required <= set(row) <= known:
        raise ConfigError(
            f"{where}: expected an object with keys among {', '.join(sorted(known))}, got {row!r}."
        )
    if not isinstance(row["shape"], list) or not all(
        type(size) in (int, str) for size in row["shape"]
    ):
        raise ConfigError(
            f"{where}.shape: expected a list of sizes and symbols, got {row['shape']!r}."
        )
    return IoTensor(**{"meaning": "", **row, "shape": tuple(row["shape"])})
