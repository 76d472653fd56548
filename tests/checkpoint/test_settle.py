"""Where the tensors decide about the quantization: left-over labels, and open exclusions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bad_checkpoints.make_bad import BadCheckpoint, good_quantized, good_target
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.errors import CheckpointError, ConfigError

LABELS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4"}},
    "compressed-tensors": {"compression_config": {"format": "pack-quantized"}},
}
# One tensor more, as each method stores it -> the words of the refusal.
STORED = {
    "weight.absmax": ("F32", "bitsandbytes"),
    "qweight": ("I32", "gptq"),
    "qzeros": ("I32", "awq"),
}
UP = "model.layers.0.mlp.up_proj"


def write(model: BadCheckpoint, path: Path, **config: Any) -> Path:
    model.config |= config
    model.write(path)
    return path


@pytest.mark.parametrize("label", LABELS)
def test_a_label_over_plain_weights_is_left_over(
    label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_target(write(good_target(), tmp_path / "t", **LABELS[label]))
    assert not loaded.quantization.is_quantized
    assert not loaded.formats
    assert "it is left over, and not used" in caplog.text
    assert "remove quantization_config from config.json" in caplog.text


@pytest.mark.parametrize("ending", STORED)
def test_a_label_over_other_weights_is_refused(ending: str, tmp_path: Path) -> None:
    model = good_target()
    dtype, label = STORED[ending]
    end = len(model.weights.data)
    model.weights.header[f"{UP}.{ending}"] = {
        "dtype": dtype,
        "shape": [2],
        "data_offsets": [end, end + 8],
    }
    model.weights.data += bytes(8)
    with pytest.raises(ConfigError, match=f'quant_method is "{label}", which cannot be built'):
        load_target(write(model, tmp_path / "t", **LABELS[label]))


def test_a_label_over_packed_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='quant_method is "awq", which cannot be built'):
        load_target(write(good_quantized("FP8"), tmp_path / "t", **LABELS["awq"]))


def test_a_label_of_another_maker_over_modelopts_weights(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"wrong shape: .*weight_scale has \[\], expected"
    ):
        load_target(write(good_quantized("FP8"), tmp_path / "t", **LABELS["fp8"]))


def _quantized(path: Path, ours: list[str] | None, theirs: list[str] | None) -> Path:
    """Write an FP8 target whose files exclude different modules; lm_head alone is plain."""
    model = good_quantized("FP8")
    model.config["quantization_config"]["ignore"] = ours
    details = {"quant_algo": "FP8", "exclude_modules": theirs}
    model.files["hf_quant_config.json"] = json.dumps({"quantization": details}).encode()
    return write(model, path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["lm_head"], None),
        ([], ["lm_head"]),
        (["lm_head*"], ["lm_head", "model.embed_tokens"]),
        (["lm_head"], ["lm_head", UP]),  # the second also excludes what is quantized
    ],
)
def test_exclusions_of_one_file_hold(
    ours: list[str] | None, theirs: list[str] | None, tmp_path: Path
) -> None:
    loaded = load_target(_quantized(tmp_path / "t", ours, theirs))
    assert UP in loaded.formats
    assert "lm_head" not in loaded.formats


def test_an_exclusion_of_both_files_contradicts_tensors(tmp_path: Path) -> None:
    path = _quantized(tmp_path / "t", ["lm_head", UP], ["lm_head", UP])
    with pytest.raises(
        CheckpointError, match=f"{UP}.weight is F8_E4M3 and would load unscaled"
    ):
        load_target(path)


def test_a_plan_of_a_directory_asks_its_tensors(tmp_path: Path) -> None:
    from trtllm_dflash.builder.config_models import find_target

    path = write(good_target(), tmp_path / "t", **LABELS["awq"])
    assert not find_target(str(path)).quantization.is_quantized
    (path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match='quant_method is "awq"'):
        find_target(str(path))


def test_a_drafter_with_a_left_over_label(tmp_path: Path) -> None:
    from tests.bad_checkpoints.make_bad import good_drafter

    loaded = load_drafter(write(good_drafter(), tmp_path / "d", **LABELS["gptq"]))
    assert not loaded.quantization.is_quantized
