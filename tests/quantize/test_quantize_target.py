"""The output of `quantize`, against ModelOpt's own export and fake-quantized weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

import torch

from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_models import HIDDEN, TARGET
from tests.quantize import modelopt
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.safetensors import TensorInfo

pytestmark = pytest.mark.slow

FORMS = ("fp8", "nvfp4", "w4a16_nvfp4")
Q, KV, FFN = (
    TARGET["q_heads"] * TARGET["head_dim"],
    TARGET["kv_heads"] * TARGET["head_dim"],
    TARGET["ffn"],
)
LINEARS = {
    "self_attn.q_proj": (Q, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, Q),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def stored(info: TensorInfo) -> tuple[str, tuple[int, ...], bytes]:
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return info.dtype, info.shape, file.read(info.nbytes)


def assert_same_tensors(directory: Path, other: Path) -> None:
    ours, theirs = read_all_tensor_infos(directory), read_all_tensor_infos(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if stored(ours[name]) != stored(theirs[name])] == []


@pytest.mark.parametrize(
    ("form", "kv_cache_dtype"),
    [*product(FORMS, (None, "fp8")), ("none", "fp8")],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_target_has_every_byte_of_modelopts_export(
    model_type: str,
    form: str,
    kv_cache_dtype: str | None,
    quantized: Callable[..., Path],
    modelopt_checkpoint: Callable[..., Path],
) -> None:
    """Layer by layer or the model as a whole: the activations that calibration sees are the same
    numbers.
    """
    options = {"dtype": "BF16", "tied": model_type == "qwen3"}
    ours = quantized(model_type, form, kv_cache_dtype, **options)
    theirs = modelopt_checkpoint(model_type, form, kv_cache_dtype, **options)
    assert_same_tensors(ours, theirs)
    described = [
        json.loads((directory / "hf_quant_config.json").read_text())
        for directory in (ours, theirs)
    ]
    assert described[0] == described[1]
    configs = [
        json.loads((directory / "config.json").read_text()) for directory in (ours, theirs)
    ]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"rope": "llama3", "mlp_bias": True, "dtype": "F32"}),
        ("llama", {"rope": "yarn", "attention_bias": True, "shards": 3, "dtype": "BF16"}),
        ("qwen3", {"rope_style": "new", "attention_bias": True, "dtype": "F16"}),
    ],
)
def test_target_variants_are_modelopts_too(
    model_type: str,
    options: dict[str, Any],
    quantized: Callable[..., Path],
    modelopt_checkpoint: Callable[..., Path],
) -> None:
    assert_same_tensors(
        quantized(model_type, "nvfp4", "fp8", **options),
        modelopt_checkpoint(model_type, "nvfp4", "fp8", **options),
    )


@pytest.mark.parametrize("form", FORMS)
def test_target_has_the_layout_of_every_format(
    form: str, quantized: Callable[..., Path]
) -> None:
    infos = read_all_tensor_infos(quantized("llama", form, "fp8", dtype="BF16"))
    for layer in range(TARGET["layers"]):
        for name, (rows, columns) in LINEARS.items():
            prefix = f"model.layers.{layer}.{name}."
            kinds = {
                key.removeprefix(prefix): info
                for key, info in infos.items()
                if key.startswith(prefix)
            }
            expected = {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("F32", ())}
            if form != "fp8":
                expected = {
                    "weight": ("U8", (rows, columns // 2)),
                    "weight_scale": ("F8_E4M3", (rows, columns // 16)),
                }
                expected["weight_scale_2"] = ("F32", ())
            expected |= {} if form == "w4a16_nvfp4" else {"input_scale": ("F32", ())}
            for projection in ("k", "v"):
                if name.endswith(f"{projection}_proj"):
                    expected[f"{projection}_scale"] = ("F32", ())
            assert {kind: (info.dtype, info.shape) for kind, info in kinds.items()} == expected


@pytest.mark.parametrize("form", FORMS)
def test_target_loads_and_keeps_everything_else(
    form: str, quantized: Callable[..., Path], make_target: Callable[..., Path]
) -> None:
    options = {"dtype": "BF16", "tokenizer": True, "eos_token_ids": (95,)}
    directory, original = quantized("llama", form, **options), make_target("llama", **options)
    checkpoint = load_target(directory)
    check_finite(checkpoint)
    assert len(checkpoint.formats) == TARGET["layers"] * len(LINEARS)
    source = load_target(original)
    kept = [name for name in source.tensors if not name.endswith("_proj.weight")]
    assert len(kept) == 2 * TARGET["layers"] + 3
    for name in kept:
        assert stored(checkpoint.tensors[name]) == stored(source.tensors[name])
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    assert config == json.loads((original / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (directory / name).read_bytes() == (original / name).read_bytes()


@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [(form, "F32", 2**-22) for form in FORMS]
    + [("nvfp4", "BF16", 2**-7), ("w4a16_nvfp4", "BF16", 2**-7)],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_target_dequantizes_to_the_fake_quantized_weights(
    model_type: str,
    form: str,
    dtype: str,
    tolerance: float,
    quantized: Callable[..., Path],
    make_target: Callable[..., Path],
) -> None:
    """Two roundings apart in float32, since codes and scales are multiplied in another order there;
    in BF16 one.

    Not FP8 in BF16: ModelOpt's forward then rounds the scale to BF16 first, and 4 % of its codes
    are not those that it exports.
    """
    infos = read_all_tensor_infos(quantized(model_type, form, dtype=dtype))
    model = modelopt.quantized_model(make_target(model_type, dtype=dtype), form)
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        with torch.no_grad():
            want = module.weight_quantizer(module.weight)
        got = torch.from_numpy(dequantized(infos, name)).to(want.dtype)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=0)


def dequantized(infos: dict[str, TensorInfo], module: str) -> np.ndarray:
    weight, scale = (infos[f"{module}.{kind}"].array() for kind in ("weight", "weight_scale"))
    if infos[f"{module}.weight"].dtype == "F8_E4M3":
        return weight.astype(np.float32) * np.float32(scale)
    codes = np.stack([weight & 15, weight >> 4], axis=-1).reshape(len(weight), -1)
    blocks = np.repeat(scale.astype(np.float32), 16, axis=1)
    return E2M1[codes] * blocks * np.float32(infos[f"{module}.weight_scale_2"].array())


def test_target_shares_scales_of_one_input_in_nvfp4(quantized: Callable[..., Path]) -> None:
    infos = read_all_tensor_infos(quantized("llama", "nvfp4", dtype="BF16"))
    for layer in range(TARGET["layers"]):
        for names in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            for kind in ("weight_scale_2", "input_scale"):
                assert (
                    len(
                        {stored(infos[f"model.layers.{layer}.{name}.{kind}"]) for name in names}
                    )
                    == 1
                )


def test_target_cache_scales_are_of_rotated_keys(
    quantized: Callable[..., Path], make_target: Callable[..., Path]
) -> None:
    """k_scale and v_scale are the largest magnitudes ÷ 448 of what Hugging Face puts into its
    cache.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        make_target("qwen3"), dtype=torch.float32
    ).eval()
    sequences = modelopt.calibration_ids(model.config.vocab_size)
    with torch.no_grad():
        caches = [model(ids, use_cache=True).past_key_values for ids in sequences]
    infos = read_all_tensor_infos(quantized("qwen3", "fp8", "fp8"))
    for layer in range(TARGET["layers"]):
        for kind in ("k", "v"):
            tensors = [
                getattr(cache.layers[layer], "keys" if kind == "k" else "values")
                for cache in caches
            ]
            want = max(tensor.abs().max().item() for tensor in tensors) / 448
            got = infos[f"model.layers.{layer}.self_attn.{kind}_proj.{kind}_scale"].array()
            assert float(got) == pytest.approx(want, rel=1e-5)


def test_target_weights_alone_need_no_text(
    make_target: Callable[..., Path], tmp_path: Path
) -> None:
    """The target has no tokenizer, and W4A16 no activation scales."""
    from trtllm_dflash.options.quantize import QuantizeConfig
    from trtllm_dflash.quantize.pipeline import quantize

    report = quantize(
        QuantizeConfig(str(make_target("llama", dtype="BF16")), tmp_path / "q", "w4a16_nvfp4")
    )
    assert report.compared == 0
    assert report.linear_bytes / report.original_bytes < 0.30


def test_target_with_an_embedding_in_another_type(
    make_target: Callable[..., Path], config: Callable[..., Any]
) -> None:
    """Like every tensor that most are not, it counts in the type of most; what is written is as it
    was.
    """
    from trtllm_dflash.quantize.pipeline import quantize

    source = make_target("llama", dtype="BF16")
    plain = quantize(config(target=str(source))).directory.rename(source.parent / "plain")
    mixed = Path(shutil.copytree(source, source.parent / "mixed"))
    tensors = read_tensors(source / "model.safetensors")
    wide = ("model.embed_tokens.weight", "model.norm.weight")
    write_tensors(
        mixed / "model.safetensors",
        {name: ("F32" if name in wide else "BF16", t) for name, t in tensors.items()},
    )
    report = quantize(config(target=str(mixed)))
    assert report.agreed > report.compared / 2
    ours, theirs = (read_all_tensor_infos(directory) for directory in (report.directory, plain))
    assert {name for name in ours if stored(ours[name]) != stored(theirs[name])} == set(wide)
    assert {ours[name].dtype for name in wide} == {"F32"}


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_target_ignores_the_attention_in_its_config(
    key: str,
    make_target: Callable[..., Path],
    quantized: Callable[..., Path],
    config: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Eager attention would not be causal here, and so would see other activations."""
    from trtllm_dflash.quantize.pipeline import quantize

    asking = Path(shutil.copytree(make_target("llama"), tmp_path / "asking"))
    path = asking / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "eager"}))
    assert_same_tensors(
        quantize(config(target=str(asking))).directory, quantized("llama", "fp8")
    )


def test_modelopt_advice_on_transformers_is_not_shown() -> None:
    """In a process of its own, since only the first import warns; what else is warned about is
    shown.
    """
    script = (
        "import warnings; from trtllm_dflash.quantize.modelopt import _import_quantization;"
        " _import_quantization(); warnings.warn('transformers is strange')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "nvidia-modelopt[hf]" not in done.stderr
    assert "transformers is strange" in done.stderr


def test_quantize_reports_and_records(config: Callable[..., Any], tmp_path: Path) -> None:
    from trtllm_dflash.quantize.pipeline import quantize

    seen: list[tuple[str, int, int]] = []
    report = quantize(
        config(), progress=lambda *step: seen.append(step), argv=["dflash-trt", "quantize"]
    )
    assert report.compared == 17 + 23 + 31
    assert 0 < report.agreed <= report.compared
    assert report.bytes == sum(path.stat().st_size for path in report.directory.iterdir())
    phases = dict.fromkeys(phase for phase, _, _ in seen)
    assert list(phases) == ["checking the target", "quantizing the target", "writing"]
    for phase in phases:
        steps = [(done, total) for name, done, total in seen if name == phase]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
        assert steps[-1][0] == steps[-1][1]
    record = json.loads((report.directory / "dflash_quantize.json").read_text())
    assert record["argv"] == ["dflash-trt", "quantize"]
    assert record["calibration"] == {
        "file": str(config().calib_file),
        "sequences": 3,
        "tokens": 71,
    }
    assert record["versions"]["nvidia-modelopt"].startswith("0.47")
    assert set(record["files"]) == {"config.json", "hf_quant_config.json", "model.safetensors"}
