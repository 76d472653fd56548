"""The corpus of bad checkpoints: each case spoils a good one in one way, and has its error's words.

Tests write it into a temporary folder. `python -m tests.bad_checkpoints.make_bad FOLDER` writes it
into FOLDER/<name>/, to be looked at. Weights are exact small fractions, so the bytes are the same
everywhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

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
_TARGET_CONFIG = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
}
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
        text = (
            self.header_text
            if self.header_text is not None
            else json.dumps(self.header).encode()
        )
        length = len(text) if self.header_length is None else self.header_length
        return length.to_bytes(8, "little") + text + bytes(self.data)


@dataclass
class BadCheckpoint:
    """A checkpoint directory in memory: `files` by name, `links` from name to where they point."""

    config: dict[str, Any]
    weights: SafetensorsFile
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    stored: bool = (
        True  # whether config and weights are written as config.json and model.safetensors
    )

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
        """Replace the single file by two shards and return the index, to be spoiled and stored by
        `put_index`.
        """
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
        header[name] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(blob)],
        }
        data += blob
    return SafetensorsFile(header, data)


def pack_bytes(tensors: dict[str, tuple[str, list[int], bytes]]) -> SafetensorsFile:
    """Return a good file with tensors of these dtypes, shapes and bytes."""
    header, data = {}, bytearray()
    for name, (dtype, shape, blob) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(blob)],
        }
        data += blob
    return SafetensorsFile(header, data)


def good_target(num_layers: int = 1) -> BadCheckpoint:
    """Return a Llama, nothing spoiled yet; four layers are what the drafters here were made for."""
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN]}
    for layer in range(num_layers):
        shapes |= _layer_shapes(f"model.layers.{layer}.")
    shapes |= {"model.norm.weight": [HIDDEN], "lm_head.weight": [VOCAB, HIDDEN]}
    config = _TARGET_CONFIG | {"num_hidden_layers": num_layers}
    return BadCheckpoint(config, pack(shapes))


def good_drafter() -> BadCheckpoint:
    """Return a one-layer DFlash v1 drafter with two taps, nothing spoiled yet."""
    shapes = {
        "fc.weight": [HIDDEN, 2 * HIDDEN],
        "hidden_norm.weight": [HIDDEN],
        **_layer_shapes("layers.0."),
    }
    shapes |= {f"layers.0.self_attn.{name}_norm.weight": [HEAD_DIM] for name in "qk"}
    return BadCheckpoint(dict(_DRAFTER_CONFIG), pack(shapes | {"norm.weight": [HIDDEN]}))


def _layer_shapes(
    prefix: str,
    hidden: int = HIDDEN,
    ffn: int = FFN,
    q_size: int = Q_SIZE,
    kv_size: int = KV_SIZE,
) -> dict[str, list[int]]:
    return {
        f"{prefix}input_layernorm.weight": [hidden],
        f"{prefix}self_attn.q_proj.weight": [q_size, hidden],
        f"{prefix}self_attn.k_proj.weight": [kv_size, hidden],
        f"{prefix}self_attn.v_proj.weight": [kv_size, hidden],
        f"{prefix}self_attn.o_proj.weight": [hidden, q_size],
        f"{prefix}post_attention_layernorm.weight": [hidden],
        f"{prefix}mlp.gate_proj.weight": [ffn, hidden],
        f"{prefix}mlp.up_proj.weight": [ffn, hidden],
        f"{prefix}mlp.down_proj.weight": [hidden, ffn],
    }


def good_quantized(algo: str, role: str = "target") -> BadCheckpoint:
    """Return a one-layer model whose layers are quantized with ModelOpt's `algo`, nothing spoiled
    yet.

    Sizes are 16 (hidden), 32 (q), 16 (kv) and 48 (ffn), since a block has 16 elements.
    """
    prefix = "model." if role == "target" else ""
    shapes = _layer_shapes(f"{prefix}layers.0.", 16, 48, 32, 16)
    outside = {f"{prefix}norm.weight": [16]}
    if role == "target":
        outside |= {"model.embed_tokens.weight": [VOCAB, 16], "lm_head.weight": [VOCAB, 16]}
    else:
        outside |= {"fc.weight": [16, 32], "hidden_norm.weight": [16]}
        outside |= {f"layers.0.self_attn.{name}_norm.weight": [16] for name in "qk"}
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for name, shape in (shapes | outside).items():
        if name in shapes and len(shape) == 2:
            tensors |= _quantized(name.removesuffix(".weight"), algo, *shape)
        else:
            numbers = (np.arange(np.prod(shape)) * 37 % 101 - 50) / 64
            tensors[name] = ("BF16", shape, numbers.astype(ml_dtypes.bfloat16).tobytes())
    config = dict(_TARGET_CONFIG if role == "target" else _DRAFTER_CONFIG)
    config |= {"hidden_size": 16, "intermediate_size": 48, "head_dim": 16}
    exclude = ["lm_head", "model.embed_tokens"] if role == "target" else ["fc"]
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": algo,
        "ignore": exclude,
    }
    return BadCheckpoint(config, pack_bytes(tensors))


def _quantized(
    module: str, algo: str, rows: int, columns: int
) -> dict[str, tuple[str, list[int], bytes]]:
    """Return the tensors of one quantized linear; every scale is an exact fraction."""
    codes = np.arange(rows * columns, dtype=np.uint32) * 37 % 126
    one = ("F32", [], np.float32(1 / 64).tobytes())
    if algo == "FP8":
        tensors = {
            "weight": ("F8_E4M3", [rows, columns], codes.astype(np.uint8).tobytes()),
            "weight_scale": one,
        }
    else:
        block_scales = (codes[: rows * columns // 16] + 1).astype(np.uint8)
        tensors = {
            "weight": ("U8", [rows, columns // 2], codes[::2].astype(np.uint8).tobytes()),
            "weight_scale": ("F8_E4M3", [rows, columns // 16], block_scales.tobytes()),
            "weight_scale_2": one,
        }
    if not algo.startswith("W4A16"):
        tensors["input_scale"] = one
    return {f"{module}.{name}": stored for name, stored in tensors.items()}


@dataclass(frozen=True)
class Case:
    """One way to spoil the good checkpoint `base`, and words of the message that it must cause."""

    name: str
    base: str
    words: str
    spoil: Callable[[BadCheckpoint], object]

    def make(self) -> BadCheckpoint:
        """Return the spoiled checkpoint."""
        checkpoint = GOOD[self.base]()
        self.spoil(checkpoint)
        return checkpoint


GOOD: dict[str, Callable[[], BadCheckpoint]] = {
    "target": good_target,
    "drafter": good_drafter,
    "fp8 target": lambda: good_quantized("FP8"),
    "nvfp4 target": lambda: good_quantized("NVFP4"),
    "w4a16 target": lambda: good_quantized("W4A16_NVFP4"),
    "nvfp4 drafter": lambda: good_quantized("NVFP4", "drafter"),
}
CASES: dict[str, Case] = {}


def bad(
    words: str, *, base: str = "target"
) -> Callable[[Callable[[BadCheckpoint], None]], None]:
    """Register a spoiling function under its own name."""

    def register(spoil: Callable[[BadCheckpoint], None]) -> None:
        CASES[spoil.__name__] = Case(spoil.__name__, base, words, spoil)

    return register


def write_all(directory: Path) -> None:
    """Write every case into a subdirectory of its own."""
    from tests.bad_checkpoints import (  # noqa: F401
        directory_cases,
        expert_cases,
        file_cases,
        fp8_expert_cases,
        hybrid_cases,
        published_cases,
        quantized_cases,
        tensor_cases,
    )

    for case in CASES.values():
        case.make().write(directory / case.name)


if __name__ == "__main__":
    # As a module of its own package, so that the registry is the one that the case files fill.
    from tests.bad_checkpoints import make_bad

    make_bad.write_all(Path(sys.argv[1]))
