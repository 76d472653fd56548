"""Targets whose experts are chosen alike, however a hidden state is rounded.

Random routers often value two experts within a rounding of each other. Kernels and the CPU engine
then choose differently, and a few such tokens part the answers behind them. Here the last columns
of the hidden state are a code of the token. Embeddings set it, and no layer adds to it. Routers
read the code alone, so the token ranks the experts, in steps far above a rounding. What an expert's
share is depends on the whole row, through its norm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fixtures.quantized import read_tensors, write_tensors
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos

_CODES = 8  # columns of the code; a token has one of them
_CODE = 4.0  # the value there, of the size that layers give to a row
_STEP = 0.4  # of a router's weights, between an expert and the next
_BIAS = 0.05  # which part of a router's bias stays, so that it changes no order
_WRITERS = ("o_proj.weight", "o_proj.bias", "out_proj.weight")  # and all parts of down_proj


def with_clear_routes(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Return what makes the same target, but for its code and who reads and writes it."""

    def made(folder: Path) -> Path:
        path = make(folder) / "model.safetensors"
        dtypes = {name: info.dtype for name, info in read_tensor_infos(path).items()}
        tensors = {name: array.copy() for name, array in read_tensors(path).items()}
        hidden = tensors["model.norm.weight"].size
        random = np.random.default_rng(0)
        for name, array in tensors.items():
            _change(name, array, hidden, random)
        write_tensors(path, {name: (dtypes[name], array) for name, array in tensors.items()})
        return folder

    return made


def _change(name: str, array: np.ndarray, hidden: int, random: np.random.Generator) -> None:
    if name.endswith("embed_tokens.weight"):
        tokens = np.arange(len(array))
        array[:, -_CODES:] = _CODE * (tokens[:, np.newaxis] % _CODES == np.arange(_CODES))
    elif name.endswith("lm_head.weight"):
        array[:, -_CODES:] = 0  # or the last token alone would often decide the next
    elif name.endswith(("mlp.gate.weight", "mlp.router.weight")):
        ranks = [random.permutation(len(array)) for _ in range(_CODES)]
        array[...] = 0
        array[:, -_CODES:] = _STEP * np.transpose(ranks)
    elif name.endswith("mlp.router.bias"):
        array *= _BIAS
    elif name.endswith(_WRITERS) or ("down_proj" in name and not name.endswith("_scales")):
        axis = next(i for i, size in enumerate(array.shape) if size == hidden)
        np.moveaxis(array, axis, -1)[..., -_CODES:] = 0
