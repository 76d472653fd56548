"""The quantized drafter: what is left alone, what shares scales, and its calibration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")
pytest.importorskip("dflash")

import torch

from tests.e2e import hugging_face
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_models import BLOCK, DRAFTER, MASK_ID, VOCAB
from tests.quantize import modelopt
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.pipeline import quantize

pytestmark = pytest.mark.slow

LAYERS = range(DRAFTER["layers"])
SHARED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)
ALL = (*SHARED[0], "self_attn.o_proj", *SHARED[1], "mlp.down_proj")
MAXIMA = {"fp8": 448.0, "nvfp4": 6 * 448.0}


@pytest.fixture(scope="session")
def pair(
    make_target: Callable[..., Path], make_drafter: Callable[..., Path]
) -> tuple[Path, Path]:
    target = make_target("qwen3")
    return target, make_drafter(target, variant="mixed", head_dim=16)


@pytest.fixture(scope="session")
def quantized_pair(
    pair: tuple[Path, Path], ids_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`quantized_pair(format)` -> directory of the target, with the drafter below it."""
    made: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in made:
            made[form] = tmp_path_factory.mktemp("pair") / form
            target, drafter = map(str, pair)
            quantize(
                QuantizeConfig(target, made[form], form, drafter=drafter, calib_file=ids_file)
            )
        return made[form]

    return make


@pytest.mark.parametrize("form", ["fp8", "nvfp4", "w4a16_nvfp4"])
def test_drafter_loads_and_keeps_everything_else(
    form: str, pair: tuple[Path, Path], quantized_pair: Callable[[str], Path]
) -> None:
    directory = quantized_pair(form)
    drafter, original = load_drafter(directory / "drafter"), load_drafter(pair[1])
    check_finite(drafter)
    check_pair(load_target(directory), drafter)
    assert set(drafter.formats) == {
        f"layers.{layer}.{name}" for layer in LAYERS for name in ALL
    }
    assert {row.name for row in drafter.formats.values()} == {form}
    kept = [name for name in original.tensors if not name.endswith("_proj.weight")]
    assert "fc.weight" in kept
    for name in kept:
        np.testing.assert_array_equal(
            drafter.tensors[name].array(), original.tensors[name].array()
        )


def test_drafter_ignores_the_attention_in_its_config(
    pair: tuple[Path, Path],
    quantized_pair: Callable[[str], Path],
    ids_file: Path,
    tmp_path: Path,
) -> None:
    """Packages that a config.json names need not be there, and the numbers are the same."""
    asking = []
    for role, source in zip(("target", "drafter"), pair, strict=True):
        asking.append(Path(shutil.copytree(source, tmp_path / role)))
        path = asking[-1] / "config.json"
        path.write_text(
            json.dumps(
                json.loads(path.read_text()) | {"attn_implementation": "flash_attention_2"}
            )
        )
    target, drafter = map(str, asking)
    quantize(
        QuantizeConfig(target, tmp_path / "q", "fp8", drafter=drafter, calib_file=ids_file)
    )
    for folder in (".", "drafter"):
        ours, theirs = (
            read_all_tensor_infos(made / folder)
            for made in (tmp_path / "q", quantized_pair("fp8"))
        )
        assert ours.keys() == theirs.keys()
        for name, info in ours.items():
            np.testing.assert_array_equal(info.array(), theirs[name].array())


def test_drafter_config_names_excluded_and_keeps_other_keys(
    pair: tuple[Path, Path], quantized_pair: Callable[[str], Path]
) -> None:
    folder = quantized_pair("nvfp4") / "drafter"
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((pair[1] / "config.json").read_text())
    assert (quantization["quant_method"], quantization["quant_algo"]) == ("modelopt", "NVFP4")
    assert quantization["ignore"] == ["fc"]
    described = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert (described["quant_algo"], described["exclude_modules"]) == ("NVFP4", ["fc"])
    assert described["kv_cache_quant_algo"] is None


@pytest.mark.parametrize(
    ("form", "scale_names"),
    [("fp8", ("weight_scale", "input_scale")), ("nvfp4", ("weight_scale_2", "input_scale"))],
)
def test_drafter_shares_scales_of_one_input_within_a_layer(
    form: str, scale_names: tuple[str, ...], quantized_pair: Callable[[str], Path]
) -> None:
    infos = read_all_tensor_infos(quantized_pair(form) / "drafter")
    for scale_name in scale_names:
        for names in SHARED:
            by_layer = []
            for layer in LAYERS:
                linears = [f"layers.{layer}.{name}" for name in names]
                by_layer.append(
                    {float(infos[f"{name}.{scale_name}"].array()) for name in linears}
                )
            assert [len(values) for values in by_layer] == [1] * len(LAYERS)
            # Not across layers, although the features that all of them read may be the largest.
            if scale_name == scale_names[0]:
                assert len(set().union(*by_layer)) == len(LAYERS)


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_drafter_input_scales_are_those_of_drafted_blocks(
    form: str, pair: tuple[Path, Path], quantized_pair: Callable[[str], Path]
) -> None:
    """The reference package drafts the same blocks here; its linears' largest inputs are the
    scales.
    """
    assert_scales_are_of_drafted_blocks(form, pair, quantized_pair(form) / "drafter")


def test_drafter_of_dflash_2_keeps_what_it_adds(
    pair: tuple[Path, Path], ids_file: Path, tmp_path: Path
) -> None:
    """Convolutions count in what its linears read; they and the selector stay as they are."""
    target, _ = pair
    source = tiny_dflash2(tmp_path / "source", target, dtype="BF16", head_dim=16)
    asked = QuantizeConfig(
        str(target), tmp_path / "q", "fp8", drafter=str(source), calib_file=ids_file
    )
    directory = quantize(asked).directory / "drafter"
    drafter, original = load_drafter(directory), load_drafter(source)
    assert drafter.config == original.config
    assert set(drafter.formats) == {
        f"layers.{layer}.{name}" for layer in LAYERS for name in ALL
    }
    kept = [
        name for name in original.tensors if name.removesuffix(".weight") not in drafter.formats
    ]
    assert sum("conv" in name or "selector" in name for name in kept) == 4 * len(LAYERS) + 3
    for name in kept:
        np.testing.assert_array_equal(
            drafter.tensors[name].array(), original.tensors[name].array()
        )
    # The drafter drafts in BF16 here, and in float32 there.
    assert_scales_are_of_drafted_blocks("fp8", (target, source), directory, rel=0.05)
    seen = largest_inputs(target, source)
    without = largest_inputs(target, source, convolutions=False)
    assert any(abs(seen[name] / without[name] - 1) > 0.3 for name in without)


def assert_scales_are_of_drafted_blocks(
    form: str, pair: tuple[Path, Path], drafter: Path, rel: float = 1e-4
) -> None:
    seen = largest_inputs(*pair)
    infos = read_all_tensor_infos(drafter)
    for layer in LAYERS:
        for names in (*SHARED, ("self_attn.o_proj",), ("mlp.down_proj",)):
            want = max(seen[f"layers.{layer}.{name}"] for name in names) / MAXIMA[form]
            for name in names:
                found = float(infos[f"layers.{layer}.{name}.input_scale"].array())
                assert found == pytest.approx(want, rel=rel)


def largest_inputs(
    target_dir: Path, drafter_dir: Path, *, convolutions: bool = True
) -> dict[str, float]:
    """Four blocks in each calibration sequence, with a quarter, half, three quarters and all but
    one of it before.
    """
    target, drafter = (
        hugging_face.load_target(target_dir),
        hugging_face.load_drafter(drafter_dir),
    )
    seen: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = max(seen.get(name, 0.0), inputs[0].abs().max().item())

        return hook

    if not convolutions:
        for layer in drafter.layers:
            layer.attention_conv = layer.mlp_conv = None
    for name, module in drafter.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        for ids in modelopt.calibration_ids(VOCAB):
            states = target(ids, output_hidden_states=True).hidden_states
            features = torch.cat(
                [states[layer + 1] for layer in drafter.target_layer_ids], dim=-1
            )
            length = ids.shape[1]
            for place in (length // 4, length // 2, 3 * length // 4):
                block = torch.tensor([[int(ids[0, place])] + [MASK_ID] * (BLOCK - 1)])
                drafter(
                    target_hidden=features[:, :place],
                    noise_embedding=target.get_input_embeddings()(block),
                    position_ids=torch.arange(place + BLOCK)[None],
                )
    return seen
