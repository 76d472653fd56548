"""The benchmark's checkpoints of other makers: our numbers of them against the makers' own.

No size of the tiny target is a multiple of 128. transformers misreads partial blocks; the block
dequantizer of compressed-tensors stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.examples.scripts import example
from tests.fixtures.makers import NVFP4_TOLERANCE, numbers_by
from tests.fixtures.tiny_models import tiny_target
from trtllm_dflash.checkpoint.dequantize import dequantized
from trtllm_dflash.checkpoint.loader import load_target

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

SCRIPT = example("benchmark/published_formats.py")
FORMATS = {
    "hf_fp8": "fp8_block",
    "ct_fp8": "fp8",
    "ct_fp8_dynamic": "w8a16_fp8",
    "ct_fp8_block": "fp8_block",
    "ct_nvfp4a16": "w4a16_nvfp4",
    "ct_nvfp4": "nvfp4",
}
# Of the weights: 2⁻⁴ is E4M3's, and of E2M1 the largest step, from 4 to 6, with E4M3's scale.
FARTHEST = {"fp8": 0.04, "nvfp4": 0.2}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_target(tmp_path_factory.mktemp("source") / "target", "qwen3", tokenizer=True)


def test_every_layout_is_tried() -> None:
    assert FORMATS.keys() == SCRIPT.LAYOUTS.keys()


@pytest.mark.parametrize("layout", FORMATS)
def test_our_numbers_are_the_makers(layout: str, source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    SCRIPT.write(source, SCRIPT.LAYOUTS[layout], tmp_path / layout)
    original, checkpoint = load_target(source), load_target(tmp_path / layout)
    stored = load_file(tmp_path / layout / "model.safetensors")
    linears = {name for name in original.tensors if ".layers." in name and "proj" in name}
    assert {f"{module}.weight" for module in checkpoint.formats} == linears
    for module, fmt in checkpoint.formats.items():
        assert fmt.name == FORMATS[layout]
        got = dequantized(checkpoint.tensors, module, fmt)
        tolerance = NVFP4_TOLERANCE if fmt.group_size else 0
        wanted = _numbers_by_maker(tmp_path / layout, module, stored)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=0)
        before = original.tensors[f"{module}.weight"].array()
        off = np.abs(got - before).max() / np.abs(before).max()
        assert off < FARTHEST["nvfp4" if fmt.group_size else "fp8"]


def _numbers_by_maker(
    directory: Path, module: str, stored: Mapping[str, Any]
) -> np.ndarray[Any, Any]:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    prefix = f"{module}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if name.startswith(prefix)
    }
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    if config["quant_method"] == "fp8":
        state["weight_scale"] = state.pop("weight_scale_inv")
        scheme, layout = preset_name_to_scheme("FP8_BLOCK", ["Linear"]), "float-quantized"
    else:
        read = QuantizationConfig.model_validate(config)
        scheme, layout = read.config_groups["group_0"], read.format
    return numbers_by(BaseCompressor.get_value_from_registry(layout), scheme, state)


def test_inputs_are_those_of_modelopts_calibration(source: Path, tmp_path: Path) -> None:
    """Their largest magnitudes; ModelOpt sees inputs of layers that are quantized already."""
    pytest.importorskip("modelopt")
    from trtllm_dflash.options.quantize import QuantizeConfig
    from trtllm_dflash.quantize.pipeline import quantize

    quantize(QuantizeConfig(str(source), tmp_path / "ours", "fp8"))
    SCRIPT.write(source, SCRIPT.LAYOUTS["ct_fp8"], tmp_path / "theirs")
    ours, theirs = load_target(tmp_path / "ours"), load_target(tmp_path / "theirs")
    for module in ours.formats:
        name = f"{module}.input_scale"
        wanted = float(ours.tensors[name].array().reshape(()))
        assert float(theirs.tensors[name].array().reshape(())) == pytest.approx(wanted, rel=0.1)
