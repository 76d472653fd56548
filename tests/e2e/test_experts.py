"""Targets with experts: tokens equal Hugging Face's with the same numbers, with drafts and
without.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.logits import target_logits
from tests.e2e.test_greedy_equality import NEW_TOKENS, PROMPTS
from tests.e2e.test_quantized_numerics import (
    IDS,
    assert_same_but_for_boundaries,
    forward,
    rounding_twin,
)
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_models import tiny_drafter
from tests.fixtures.tiny_moe import QWEN3_MOE, tiny_gpt_oss, tiny_qwen3_moe
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.mxfp4 import dequantized_experts

# name -> (what we are given, the same numbers for Hugging Face)
PAIRS = {
    "gpt_oss": ("gpt_oss", "gpt_oss_plain"),
    "gpt_oss_plain": ("gpt_oss_plain", "gpt_oss_plain"),
    "qwen3_moe": ("qwen3_moe", "qwen3_moe"),
    "qwen3_moe_of_all": ("qwen3_moe_of_all", "qwen3_moe_of_all"),
}


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the tiny targets; "of_all": an expert's share is its probability among all."""
    root = tmp_path_factory.mktemp("experts")
    return {
        "gpt_oss": tiny_gpt_oss(root / "gpt_oss"),
        "gpt_oss_plain": tiny_gpt_oss(root / "gpt_oss_plain", mxfp4=False),
        "qwen3_moe": tiny_qwen3_moe(root / "qwen3_moe"),
        "qwen3_moe_of_all": tiny_qwen3_moe(root / "qwen3_moe_of_all", normalize=False),
    }


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe"])
def test_greedy_tokens_equal_hugging_faces(
    name: str,
    directories: dict[str, Path],
    engine: EngineFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Prompts longer than the window, in chunks and batches; a drafter with biases and yarn, as
    gpt-oss's has them.
    """
    ours, theirs = (directories[key] for key in PAIRS[name])
    model = hugging_face.load_target(theirs)
    expected = [hugging_face.greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    drafter = tiny_drafter(
        tmp_path_factory.mktemp(name) / "drafter",
        ours,
        attention_bias=True,
        yarn=True,
        num_taps=2,
    )
    speculative = engine(ours, drafter)
    for options in ({}, {"draft_len": 1}, {"draft": False}):
        out = speculative.generate(PROMPTS, max_tokens=NEW_TOKENS, **options)
        assert [item.token_ids for item in out] == expected, options
    alone = [
        speculative.generate([prompt], max_tokens=NEW_TOKENS)[0].token_ids for prompt in PROMPTS
    ]
    assert alone == expected
    plain = engine(ours, None).generate(PROMPTS, max_tokens=NEW_TOKENS)
    assert [item.token_ids for item in plain] == expected


@pytest.mark.parametrize("name", PAIRS)
def test_logits_equal_hugging_faces(name: str, directories: dict[str, Path]) -> None:
    """float32 on both sides: sums of at most 120 terms through 4 layers, so about 1e-6 of the
    largest logit.
    """
    ours, theirs = (directories[key] for key in PAIRS[name])
    want = forward(hugging_face.load_target(theirs))
    np.testing.assert_allclose(
        target_logits(ours, IDS), want, rtol=0, atol=1e-5 * np.abs(want).max()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"swiglu_limit": 7.0},
        {"sliding_window": 6},
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        {"rope_scaling": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_logits_above_depend_on(
    change: dict[str, object], directories: dict[str, Path]
) -> None:
    """The equality would not hold with another limit, window, order of windows, or RoPE."""
    before = target_logits(directories["gpt_oss_plain"], IDS)
    changed = directories["gpt_oss_plain"].with_name(f"changed_{next(iter(change))}")
    tiny_gpt_oss(changed, mxfp4=False, config=change)
    assert np.abs(target_logits(changed, IDS) - before).max() > 1e-2 * np.abs(before).max()


def test_mxfp4_experts_are_what_hugging_face_dequantizes(directories: dict[str, Path]) -> None:
    """Its own loader of the published layout, bit for bit."""
    from transformers import AutoModelForCausalLM, Mxfp4Config

    model = AutoModelForCausalLM.from_pretrained(
        directories["gpt_oss"],
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True),
    )
    tensors = load_target(directories["gpt_oss"]).tensors
    for layer in range(4):
        for kind in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{kind}"
            theirs = model.get_parameter(name).detach().float().numpy()
            np.testing.assert_array_equal(
                dequantized_experts(tensors, name), theirs.transpose(0, 2, 1)
            )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nvfp4", "w4a16_nvfp4"])
def test_nvfp4_experts_multiply_activations_as_they_are(form: str, tmp_path: Path) -> None:
    """Attention rounds its inputs in NVFP4; the experts' input_scale is accepted, and their inputs
    stay as they are.
    """
    source = tiny_qwen3_moe(tmp_path / "source", dtype="BF16", sizes={"expert_size": 80})
    routers = tuple(f"model.layers.{index}.mlp.gate" for index in range(QWEN3_MOE["layers"]))
    quantized = quantized_copy(
        source, tmp_path / "quantized", form, exclude=("lm_head", *routers)
    )
    checkpoint = load_target(quantized)
    expert = "model.layers.1.mlp.experts.6.up_proj"
    assert checkpoint.formats[expert].name == "w4a16_nvfp4"
    assert (f"{expert}.input_scale" in checkpoint.ignored) == (form == "nvfp4")
    twin = rounding_twin(quantized, tmp_path / "twin", hugging_face.load_target)
    unquantized = forward(hugging_face.load_target(source))
    assert_same_but_for_boundaries(target_logits(quantized, IDS), forward(twin), unquantized)


@pytest.mark.slow
def test_modelopts_export_of_experts_equals_modelopt(tmp_path: Path) -> None:
    """Its forward before the export, of weights alone: there too activations are not rounded."""
    pytest.importorskip("modelopt")
    from tests.quantize import modelopt

    source = tiny_qwen3_moe(tmp_path / "source", sizes={"expert_size": 80})
    model = modelopt.quantized_model(source, "w4a16_nvfp4")
    theirs = forward(model)
    exported = modelopt.export(model, source, tmp_path / "exported")
    assert len(load_target(exported).formats) == QWEN3_MOE["layers"] * (
        4 + 3 * QWEN3_MOE["experts"]
    )
    unquantized = forward(hugging_face.load_target(source))
    assert_same_but_for_boundaries(target_logits(exported, IDS), theirs, unquantized)
    scales = load_target(exported).tensors
    for expert in range(
        QWEN3_MOE["experts"]
    ):  # which our kernel and the compiler's FP4 rely on
        gate, up = (
            f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight_scale_2"
            for part in ("gate", "up")
        )
        assert scales[gate].array() == scales[up].array()


def test_transformers_can_save_what_we_read(tmp_path: Path) -> None:
    """What transformers 5 writes of both families: experts of gpt-oss in one tensor, of Qwen3-MoE
    one each.
    """
    for source in (
        tiny_gpt_oss(tmp_path / "oss", mxfp4=False),
        tiny_qwen3_moe(tmp_path / "qwen"),
    ):
        saved = source.with_name(f"{source.name}_saved")
        hugging_face.load_target(source).save_pretrained(saved)
        assert json.loads((saved / "config.json").read_text())["rope_parameters"]
        np.testing.assert_array_equal(target_logits(saved, IDS), target_logits(source, IDS))
