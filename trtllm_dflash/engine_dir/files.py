"""The names of the files in an engine directory."""

import re

CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
ENGINE_FILE = "rank0.engine"  # of a GPU engine
MODEL_FILE = "model.onnx"  # of a CPU engine
WEIGHTS_FILE = "rank0.safetensors"  # of a CPU engine
TOKENIZER_FILE = "tokenizer.json"
LOG_FILE = "build.log"
JOINED = "|"  # in a CPU engine, between the names of linears whose weights are one tensor
JOINED_COLUMNS = (
    "dflash.columns"  # of their product: how many each has, in metadata of its node
)

_KERNEL_CACHE = re.compile(r"kernels-[0-9a-f]{16}\.cache")  # a GPU writes it when it runs

# By backend, what an engine directory must hold and its manifest must list.
ENGINE_FILES = {
    "onnxruntime": (CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE),
    "tensorrt_rtx": (CONFIG_FILE, ENGINE_FILE),
    "tensorrt": (CONFIG_FILE, ENGINE_FILE),
}


def kernel_cache_name(key: str) -> str:
    """Return the name of a file of finished kernels; `key` has 16 hexadecimal digits."""
    return f"kernels-{key}.cache"


def is_kernel_cache(name: str) -> bool:
    """Tell whether a file of this name holds finished kernels, which no manifest lists."""
    return _KERNEL_CACHE.fullmatch(name) is not None
