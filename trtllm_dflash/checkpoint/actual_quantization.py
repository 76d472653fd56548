"""What a configuration leaves open about quantization, or labels wrongly: the tensors decide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.formats import FP8_BLOCK_SIZE, Layout, Quantization
from trtllm_dflash.checkpoint.mxfp4 import BLOCKS, SCALES
from trtllm_dflash.checkpoint.quantization_checks import shows_other_method
from trtllm_dflash.checkpoint.quantized_tensors import is_scale
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import ConfigError

_LOG = logging.getLogger(__name__)


def settle_quantization(
    quantization: Quantization, infos: Mapping[str, TensorInfo], where: str
) -> Quantization:
    """Return the quantization that the tensors have, where its description leaves that open.

    Raises: ConfigError: for quantized tensors of a method that is not read.
    """
    label = quantization.unread_method
    if label is not None:
        if is_quantized(infos):
            raise ConfigError(label.refusal)
        _warn_left_over(label.describe(), where)
        return Quantization()
    method = "mxfp4" if quantization.mxfp4 else quantization.layout.value
    if method != Layout.MODELOPT.value and not is_quantized(infos):
        _warn_left_over(f'quantization_config.quant_method is "{method}"', where)
        return Quantization()
    return _without_wrong_exclusions(quantization, infos)


def without_unfit_blocks(
    quantization: Quantization, infos: Mapping[str, TensorInfo]
) -> Quantization:
    """Return the quantization without plain weights that blocks of 128 x 128 do not divide.

    transformers leaves these as they are, and names them nowhere. `infos` are by ModelOpt's names.
    """
    if quantization.layout is not Layout.FINE_GRAINED_FP8:
        return quantization
    plain = set(quantization.excluded)
    for name, info in infos.items():
        module = name.removesuffix(".weight")
        is_unfit = any(size % FP8_BLOCK_SIZE for size in info.shape)
        if (
            name != module
            and info.dtype in WEIGHT_DTYPES
            and is_unfit
            and f"{module}.weight_scale" not in infos
        ):
            plain.add(module)
    return replace(quantization, excluded=tuple(sorted(plain)))


def is_quantized(infos: Mapping[str, TensorInfo]) -> bool:
    """Tell whether any tensor is quantized, by whatever method: its type or its name shows it."""
    return any(
        info.dtype not in WEIGHT_DTYPES
        or is_scale(name)
        or name.endswith((BLOCKS, SCALES))
        or shows_other_method(name)
        for name, info in infos.items()
    )


def _warn_left_over(label: str, where: str) -> None:
    _LOG.warning(
        "%s: %s, but every weight is a plain one: it is left over, and not used. Other engines may"
        " refuse it; to be rid of this warning, remove quantization_config from config.json",
        where,
        label,
    )


def _without_wrong_exclusions(
    quantization: Quantization, infos: Mapping[str, TensorInfo]
) -> Quantization:
    """Drop exclusions that only one description has and that cover quantized linears."""
    packed = [
        name.removesuffix(".weight")
        for name, info in infos.items()
        if name.endswith(".weight") and info.dtype not in WEIGHT_DTYPES
    ]
    wrong = set[str]()
    for module in packed:
        if module not in quantization.modules:
            wrong.update(
                row for row in quantization.doubtful if quantization.covers(row, module)
            )
    kept = tuple(pattern for pattern in quantization.excluded if pattern not in wrong)
    return replace(quantization, excluded=kept, doubtful=())
