"""The corpus of bad checkpoints: each case spoils a good one in one way, and says the words of its error.

`python -m tests.bad_checkpoints.make_bad` writes every case into cases/<name>/ beside this file; a test checks that the
committed bytes are what this script makes. Weights are exact small fractions, so the bytes are the same everywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

CASES_DIRECTORY = Path(__file__).parent / "cases"
HIDDEN, FFN, Q_SIZE, KV_SIZE, HEAD_DIM, VOCAB = 6, 10, 8, 4, 4, 11
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

_COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}
_TARGET_CONFIG = _COMMON | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
_DRAFTER_CONFIG = _COMMON | {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "num_target_layers": 4,
    "dflash_config": {"block_size": 4, "mask_token_id": 10, "target_layer_ids": [0, 2]},
}


@dataclass
class SafetensorsFile:
    """The three parts of a .safetensors file, each of which a case may spoil."""

    header: dict[str, Any]
    data: bytearray
    header_length: int | None = None
    header_text: bytes | None = None

    def to_bytes(self) -> bytes:
        """Assemble the file."""
        text = self.header_text if self.header_text is not None else json.dumps(self.header).encode()
        length = len(text) if self.header_length is None else self.header_length
        return length.to_bytes(8, "little") + text + bytes(self.data)


@dataclass
class BadCheckpoint:
    """A checkpoint directory in memory: `files` by name, `links` from name to where they point."""

    config: dict[str, Any]
    weights: SafetensorsFile
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    stored: bool = True  # whether config and weights are written as config.json and model.safetensors

    def write(self, directory: Path) -> None:
        """Write everything into a new directory."""
        directory.mkdir(parents=True)
        files = dict(self.files)
        files.setdefault("config.json", json.dumps(self.config).encode())
        if self.stored:
            files[SINGLE] = self.weights.to_bytes()
        for name, content in files.items():
            (directory / name).write_bytes(content)
        for name, target in self.links.items():
            (directory / name).symlink_to(target)

    def entry(self, name: str) -> dict[str, Any]:
        """Return one tensor's header entry, to be spoiled."""
        entry: dict[str, Any] = self.weights.header[name]
        return entry

    def shard(self) -> dict[str, Any]:
        """Replace the single file by two shards and return the index, to be spoiled and stored by `put_index`."""
        names = list(self.weights.header)
        weight_map: dict[str, str] = {}
        for file, part in zip(SHARDS, (names[::2], names[1::2]), strict=True):
            shapes = {name: self.weights.header[name]["shape"] for name in part}
            self.files[file] = pack(shapes).to_bytes()
            weight_map |= dict.fromkeys(part, file)
        self.stored = False
        return weight_map

    def put_index(self, weight_map: Any) -> None:
        """Store the index of the shards."""
        self.files[INDEX] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def pack(shapes: dict[str, list[int]]) -> SafetensorsFile:
    """Return a good BF16 file with tensors of these shapes."""
    header, data = {}, bytearray()
    for name, shape in shapes.items():
        numbers = (np.arange(np.prod(shape)) * 37 % 101 - 50) / 64
        blob = numbers.astype(ml_dtypes.bfloat16).tobytes()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    return SafetensorsFile(header, data)


def good_target() -> BadCheckpoint:
    """Return a one-layer Llama, nothing spoiled yet."""
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], **_layer_shapes("model.layers.0.")}
    shapes |= {"model.norm.weight": [HIDDEN], "lm_head.weight": [VOCAB, HIDDEN]}
    return BadCheckpoint(dict(_TARGET_CONFIG), pack(shapes))


def good_drafter() -> BadCheckpoint:
    """Return a one-layer DFlash v1 drafter with two taps, nothing spoiled yet."""
    shapes = {"fc.weight": [HIDDEN, 2 * HIDDEN], "hidden_norm.weight": [HIDDEN], **_layer_shapes("layers.0.")}
    shapes |= {f"layers.0.self_attn.{name}_norm.weight": [HEAD_DIM] for name in "qk"}
    return BadCheckpoint(dict(_DRAFTER_CONFIG), pack(shapes | {"norm.weight": [HIDDEN]}))


def _layer_shapes(prefix: str) -> dict[str, list[int]]:
    return {
        f"{prefix}input_layernorm.weight": [HIDDEN],
        f"{prefix}self_attn.q_proj.weight": [Q_SIZE, HIDDEN],
        f"{prefix}self_attn.k_proj.weight": [KV_SIZE, HIDDEN],
        f"{prefix}self_attn.v_proj.weight": [KV_SIZE, HIDDEN],
        f"{prefix}self_attn.o_proj.weight": [HIDDEN, Q_SIZE],
        f"{prefix}post_attention_layernorm.weight": [HIDDEN],
        f"{prefix}mlp.gate_proj.weight": [FFN, HIDDEN],
        f"{prefix}mlp.up_proj.weight": [FFN, HIDDEN],
        f"{prefix}mlp.down_proj.weight": [HIDDEN, FFN],
    }


@dataclass(frozen=True)
class Case:
    """One way to spoil a checkpoint, and words of the message that it must cause."""

    name: str
    kind: str
    words: str
    spoil: Callable[[BadCheckpoint], object]

    def make(self) -> BadCheckpoint:
        """Return the spoiled checkpoint."""
        checkpoint = good_target() if self.kind == "target" else good_drafter()
        self.spoil(checkpoint)
        return checkpoint


CASES: dict[str, Case] = {}


def bad(words: str, *, kind: str = "target") -> Callable[[Callable[[BadCheckpoint], None]], None]:
    """Register a spoiling function under its own name."""

    def register(spoil: Callable[[BadCheckpoint], None]) -> None:
        CASES[spoil.__name__] = Case(spoil.__name__, kind, words, spoil)

    return register


def write_all(directory: Path) -> None:
    """Write every case into a subdirectory of its own."""
    from tests.bad_checkpoints import directory_cases, file_cases, tensor_cases  # noqa: F401  (they register their cases)

    for case in CASES.values():
        case.make().write(directory / case.name)


if __name__ == "__main__":
    shutil.rmtree(CASES_DIRECTORY, ignore_errors=True)
    # As a module of its own package, so that the registry is the one that the case files fill.
    from tests.bad_checkpoints import make_bad

    make_bad.write_all(CASES_DIRECTORY)
