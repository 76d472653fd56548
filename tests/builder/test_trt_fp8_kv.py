"""FP8 caches of a build: whence their scales, what they cost, and which builds cannot have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.quantized import quantized_copy, read_tensors
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.builder.format_support import check_fp8_kv
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.engine_dir.io_tensors import HISTORY
from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.options.build import BuildConfig

pytestmark = pytest.mark.slow

SIZES = {"max_seq_len": 64, "max_batch_size": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a drafter, its target, and that target quantized with scales for caches."""
    directory = tmp_path_factory.mktemp("pair")
    target = tiny_target(directory / "target", "llama", num_layers=2, head_dim=64)
    scaled = quantized_copy(target, directory / "scaled", "fp8", kv_cache=True)
    drafter = tiny_drafter(directory / "drafter", target, taps=(0,), head_dim=64)
    return {"target": str(target), "scaled": str(scaled), "drafter": str(drafter)}


def _prepared(
    models: dict[str, str],
    arch: str,
    *,
    fp8: bool,
    plugins: bool | None = None,
    kv_cache_dtype: str = "auto",
) -> ResolvedModels:
    pair = {"target": models["scaled" if fp8 else "target"], "drafter": models["drafter"]}
    options = {"arch": arch, "plugins": plugins, "kv_cache_dtype": kv_cache_dtype}
    return resolve_models(BuildConfig(**pair, output_dir=Path("out"), **options, **SIZES))


def test_the_scales_are_those_of_the_checkpoint(models: dict[str, str]) -> None:
    tensors = read_tensors(Path(models["scaled"]) / "model.safetensors")
    scales = _prepared(models, "sm120", fp8=True).kv_scales
    assert scales is not None
    assert sorted(scales) == [0, 1]
    for layer, pair in scales.items():
        names = (f"model.layers.{layer}.self_attn.{half}_proj.{half}_scale" for half in "kv")
        np.testing.assert_array_equal(np.float32(pair), [tensors[name] for name in names])
    # They differ, so that none can stand for another.
    assert len({scale for pair in scales.values() for scale in pair}) == 4


@pytest.mark.parametrize(("arch", "own"), [("cpu", "float32"), ("sm120", "bfloat16")])
def test_caches_that_were_not_calibrated_have_the_scale_1(
    arch: str, own: str, modelopt_checkpoint: Callable[..., Path]
) -> None:
    """ModelOpt's recipes *-kv_fp8_cast state FP8 caches and export no scales."""
    pytest.importorskip("modelopt")
    target = modelopt_checkpoint("qwen3", "fp8", "fp8_cast", head_dim=64)
    assert load_target(target).quantization.kv_cache == "fp8"
    assert not [
        name
        for name in read_tensors(target / "model.safetensors")
        if name.endswith(("k_scale", "v_scale"))
    ]
    for dtype in ("auto", "fp8", own):
        prepared = resolve_models(
            BuildConfig(str(target), Path("out"), arch=arch, kv_cache_dtype=dtype, **SIZES)
        )
        says_so = (
            "with scale 1, since the checkpoint has no scales"
            in dict(summary_rows(prepared))["caches"]
        )
        layers = range(prepared.target.config.num_layers)
        assert prepared.kv_scales == (
            None if dtype == own else dict.fromkeys(layers, (1.0, 1.0))
        )
        assert says_so == (dtype != own)


@pytest.mark.parametrize(("arch", "own"), [("cpu", "float32"), ("sm120", "bfloat16")])
def test_what_is_asked_for_decides(models: dict[str, str], arch: str, own: str) -> None:
    for fp8, dtype, wanted in (
        (True, "auto", True),
        (True, "fp8", True),
        (True, own, False),
        (False, "auto", False),
    ):
        prepared = _prepared(models, arch, fp8=fp8, kv_cache_dtype=dtype)
        assert (prepared.kv_scales is not None) == wanted
        algo = prepared.engine_contents.to_json()["pretrained_config"]["quantization"][
            "kv_cache_quant_algo"
        ]
        assert algo == ("FP8" if wanted else None)
        assert ("FP8" in dict(summary_rows(prepared))["caches"]) == wanted


@pytest.mark.parametrize(
    ("arch", "dtype", "words"),
    [
        (
            "cpu",
            "fp8",
            (
                r"--kv-cache-dtype fp8 needs scales for the caches, and .*target has none; make"
                r" them with"
            ),
        ),
        (
            "cpu",
            "int8",
            "--kv-cache-dtype 'int8' is not known; choose one of auto, fp8, float32, bfloat16",
        ),
        (
            "cpu",
            "bfloat16",
            (
                "--kv-cache-dtype bfloat16 cannot be built for --arch cpu: onnxruntime runs this"
                " graph in"
            ),
        ),
        ("sm120", "float32", "--kv-cache-dtype float32 cannot be built for --arch sm120"),
    ],
)
def test_wrong_requests(models: dict[str, str], arch: str, dtype: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _prepared(models, arch, fp8=False, kv_cache_dtype=dtype)


def _bytes(prepared: ResolvedModels, owner: str) -> int:
    slots = [port for port in prepared.io if port.cache == owner and port.direction == "input"]
    return sum(
        port.item_bytes * int(port.shape[1]) * int(port.shape[2]) * int(port.shape[3])
        for port in slots
    )


def test_fp8_halves_the_targets_caches_and_not_the_drafters(models: dict[str, str]) -> None:
    plain, fp8 = (_prepared(models, "sm120", fp8=fp8) for fp8 in (False, True))
    assert {port.dtype for port in fp8.io if port.cache == "target"} == {"float8e4m3fn"}
    drafters = {port.name: port.dtype for port in fp8.io if port.cache == "drafter"}
    texts = {drafters.pop(HISTORY), drafters.pop(f"{HISTORY}.out")}
    assert texts == {"float32"}, "token ids, which are no keys or values"
    assert set(drafters.values()) == {"bfloat16"}
    assert 2 * _bytes(fp8, "target") == _bytes(plain, "target")
    assert _bytes(fp8, "drafter") == _bytes(plain, "drafter")
    for prepared in (plain, fp8):
        assert prepared.cache_bytes_per_slot == _bytes(prepared, "target") + _bytes(
            prepared, "drafter"
        )


def test_on_a_cpu_codes_are_numbers_of_its_type(models: dict[str, str]) -> None:
    plain, fp8 = (_prepared(models, "cpu", fp8=fp8) for fp8 in (False, True))
    assert fp8.io == plain.io
    check_fp8_kv(fp8.resolved)


def test_archs_without_fp8_or_plugins_are_refused(models: dict[str, str]) -> None:
    assert [name for name, arch in ARCHS.items() if not arch.has_fp8] == ["sm80", "sm86"]
    resolved = _prepared(models, "sm120", fp8=True).resolved
    check_fp8_kv(resolved)
    for arch in ("sm80", "sm86"):
        with pytest.raises(
            UsageError,
            match=f"cannot be built for --arch {arch}, which has no FP8; cpu, sm89, sm120",
        ):
            check_fp8_kv(replace(resolved, gpu_arch=arch))
    words = (
        "need our kernels: TensorRT-RTX by itself updates only caches of float32.*leave"
        " --no-plugins out. --kv-cache-dtype bfloat16 leaves the caches as they are"
    )
    with pytest.raises(UsageError, match=words):
        _prepared(models, "sm120", fp8=True, plugins=False)
    assert (
        _prepared(models, "sm120", fp8=True, plugins=False, kv_cache_dtype="bfloat16").kv_scales
        is None
    )
