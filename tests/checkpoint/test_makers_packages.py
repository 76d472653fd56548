"""Our numbers of published formats against the packages that write them: transformers' fine-grained
FP8, compressed-tensors, and what of ModelOpt's FP8 `quantize` does not make.

They quantize random weights, and dequantize what they wrote. Our reader gets the same tensors.
Tolerance: none, since both sides multiply the same float32 numbers once. Only for NVFP4 there is
one, see tests/fixtures/makers.py. ModelOpt's quantizers divide by the inverse of the scale that its
export stores: four units of float32's last place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fixtures.makers import NVFP4_TOLERANCE, numbers_by
from tests.fixtures.published import SCHEMES, quantization_config, store_weight
from tests.fixtures.quantized import write_tensors
from tests.fixtures.tiny_models import tiny_target
from trtllm_dflash.checkpoint.dequantize import dequantized
from trtllm_dflash.checkpoint.formats import LINEAR_FORMATS
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.checkpoint.quantized_layouts import by_modelopts_names
from trtllm_dflash.checkpoint.quantized_tensors import StoredSpec, tensors_of_linear
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

SHAPES = {
    "whole blocks": (256, 384),
    "partial last blocks": (300, 208),
    "less than a block": (48, 80),
}
MODELOPT_TOLERANCE = 4 * 2.0**-24
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


def random_weight(shape: tuple[int, int]) -> Any:
    """Return a weight as trained ones are: BF16, rows of different size."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.linspace(0.02, 0.2, shape[0])[:, None]
    return (torch.randn(shape, generator=generator) * rows).to(torch.bfloat16)


def ours(tensors: Mapping[str, Any], name: str, directory: Path) -> np.ndarray:
    """Return what our reader makes of a linear's tensors by last name."""
    config = {"quantization_config": quantization_config(name)}
    quantization = read_quantization(config, None, "x")
    module = "model.layers.0.mlp.up_proj"
    _save(directory / "x.safetensors", {f"{module}.{key}": t for key, t in tensors.items()})
    infos = by_modelopts_names(
        read_tensor_infos(directory / "x.safetensors"), quantization.layout, "x"
    )
    fmt = quantization.format_of(module)
    assert fmt is LINEAR_FORMATS[SCHEMES[name].expected]
    rows, columns = infos[f"{module}.weight"].shape
    shape = (rows, columns * (2 if fmt.group_size else 1))
    for full, spec in tensors_of_linear(
        module, fmt, StoredSpec(shape, ("out", "in")), quantization
    ).items():
        assert full.endswith("input_scale") or spec.admits(infos[full].shape), full
        assert full.endswith("input_scale") or infos[full].dtype in spec.dtypes, full
    return dequantized(infos, module, fmt)


def _save(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_fine_grained_fp8(shape: str, scale_dtype: str, tmp_path: Path) -> None:
    """transformers quantizes whole blocks alone, and misreads others: our own stand for these."""
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config())
    weight = random_weight(SHAPES[shape])
    stored = Fp8Quantize(quantizer).convert({"weight": weight})
    if shape != "whole blocks":
        assert stored.keys() == {"weight"}, "transformers quantizes partial blocks now: use it"
        return
    stored["weight_scale_inv"] = stored["weight_scale_inv"].to(DTYPES[scale_dtype])
    theirs = Fp8Dequantize(quantizer)._dequantize_one(
        stored["weight"], stored["weight_scale_inv"], torch.float32
    )
    got = ours(stored, "fine_grained", tmp_path)
    np.testing.assert_array_equal(got, theirs.numpy())
    in_bf16 = Fp8Dequantize(quantizer)._dequantize_one(
        stored["weight"], stored["weight_scale_inv"], torch.bfloat16
    )
    rounded = torch.from_numpy(got).to(torch.bfloat16)
    assert torch.equal(rounded, in_bf16), "an engine for a GPU holds these"


def _compressor(name: str) -> tuple[Any, Any]:
    """Return compressed-tensors' compressor and scheme for a configuration."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(quantization_config(name))
    return (
        BaseCompressor.get_value_from_registry(config.format),
        config.config_groups["group_0"],
    )


COMPRESSED = [name for name, scheme in SCHEMES.items() if scheme.method != "fp8"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors(name: str, shape: str, scale_dtype: str, tmp_path: Path) -> None:
    compressor, scheme = _compressor(name)
    weight = random_weight(SHAPES[shape])
    stored = store_weight(weight.float().numpy(), SCHEMES[name], scale_dtype)
    write_tensors(tmp_path / "ours.safetensors", stored)
    from safetensors.torch import load_file

    fixture = load_file(tmp_path / "ours.safetensors")
    theirs = _quantized_by(compressor, scheme, weight, fixture, scale_dtype)
    assert theirs.keys() == fixture.keys()
    for key, tensor in theirs.items():
        assert (tensor.dtype, tensor.shape) == (fixture[key].dtype, fixture[key].shape), key
    got = ours(theirs, name, tmp_path)
    wanted = numbers_by(compressor, scheme, theirs)
    tolerance = NVFP4_TOLERANCE if "weight_packed" in theirs else 0
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=0)


def _quantized_by(
    compressor: Any, scheme: Any, weight: Any, fixture: Mapping[str, Any], scale_dtype: str
) -> dict[str, Any]:
    """Return the maker's tensors of a weight, with the scales that the fixture computed."""
    state = {"weight": weight.float(), "weight_scale": fixture["weight_scale"]}
    if "weight_global_scale" in fixture:
        state["weight_scale"] = fixture["weight_scale"].float()
        state["weight_global_scale"] = fixture["weight_global_scale"]
    stored: dict[str, Any] = compressor.compress(state, scheme)
    return stored


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("FP8_PER_CHANNEL_PER_TOKEN_CFG", "w8a16_fp8"),
        ("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "fp8_block"),
    ],
)
def test_modelopts_fp8_of_rows_and_blocks(recipe: str, name: str, tmp_path: Path) -> None:
    """Its weights after its own quantizers."""
    pytest.importorskip("modelopt")
    from tests.quantize import modelopt

    source = tiny_target(tmp_path / "source", "qwen3", num_layers=1, head_dim=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modelopt.FORMATS, name, recipe)
        model = modelopt.quantized_model(source, name)
    wanted = {}
    for module, part in model.named_modules():
        if hasattr(part, "weight_quantizer") and ".layers." in module:
            wanted[module] = part.weight_quantizer(part.weight).detach().numpy()
    checkpoint = load_target(modelopt.export(model, source, tmp_path / "exported"))
    assert checkpoint.formats.keys() == wanted.keys()
    for module, fmt in checkpoint.formats.items():
        assert fmt.name == name
        got = dequantized(checkpoint.tensors, module, fmt)
        np.testing.assert_allclose(got, wanted[module], rtol=MODELOPT_TOLERANCE, atol=0)
