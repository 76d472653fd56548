"""Reading of Hugging Face's fine-grained FP8: `quant_method` "fp8" in config.json.

DeepSeek's recipe: E4M3 weights with a scale for each block of 128 x 128. Activations, which other
engines quantize while they run, are left as they are.
"""

from __future__ import annotations

from trtllm_dflash.checkpoint.formats import (
    FP8_BLOCK,
    FP8_BLOCK_SIZE,
    W8A16_FP8,
    Layout,
    Quantization,
)
from trtllm_dflash.models.base import REQUANTIZE
from trtllm_dflash.models.hf_config import HfReader, quote

_HEAD = "lm_head"  # what transformers leaves out where nothing is stated


def read_fine_grained_fp8(reader: HfReader, exclusions: tuple[str, ...] | None) -> Quantization:
    """Read quantization_config of that method; `exclusions` are its list, None if it has none.

    Raises: ConfigError: for what cannot be built, by its name.
    """
    _check_types(reader)
    if reader.read_list(str, "modules_to_convert", default=()):
        listed = quote(reader.get("modules_to_convert"))
        reader.fail(
            "modules_to_convert", f"is {listed}, and tables in FP8 are not read. {REQUANTIZE}"
        )
    excluded = set[str]()
    for name in (_HEAD,) if exclusions is None else exclusions:
        # An entry is a module's whole name, or the end of it.
        excluded |= {name} if name.startswith("model.") else {name, f"*{name}"}
    return Quantization(
        _read_scales(reader),
        excluded=tuple(sorted(excluded)),
        layout=Layout.FINE_GRAINED_FP8,
    )


def _check_types(reader: HfReader) -> None:
    """Check the types of weights, scales and activations."""
    for key, usual, what in (
        ("fmt", "e4m3", "weights in another type are not read"),
        ("scale_fmt", "float", "scales that are exponents, a byte each, are not read"),
        ("expert_dtype", "fp8", "experts in 4 bits with such scales are not read"),
    ):
        found = reader.read(str, key, default=usual)
        if found != usual:
            reader.fail(
                key, f"is {quote(found)}, expected {quote(usual)}: {what}. {REQUANTIZE}"
            )
    scheme = reader.read(str, "activation_scheme", default="dynamic")
    if scheme not in ("dynamic", "static"):
        reader.fail("activation_scheme", f"is {quote(scheme)}, expected dynamic or static.")


def _read_scales(reader: HfReader) -> str:
    """Return the format: blocks of 128 x 128, or one scale a tensor where blocks are null."""
    key = "weight_block_size"
    if key in reader.data and reader.data[key] is None:
        return W8A16_FP8.name
    usual = (FP8_BLOCK_SIZE, FP8_BLOCK_SIZE)
    found = reader.read_list(int, key, default=usual)
    if tuple(found) != usual:
        reader.fail(
            key,
            f"is {quote(reader.get(key))}, and only blocks of {FP8_BLOCK_SIZE} x {FP8_BLOCK_SIZE}"
            f" are read. {REQUANTIZE}",
        )
    return FP8_BLOCK.name
