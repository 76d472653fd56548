"""Quantized checkpoints on the CPU, against Hugging Face's model with the same rounded values.

Two references: the tables of tests/fixtures/quantized.py under a float32 model, and ModelOpt's own
fake-quantized forward.

Tolerance. Both sides multiply the same rounded values in float32, so they agree to some 1e-6 of the
largest logit. That is less than without quantization: rounding removes the effect of a sum's order.
But an activation may lie on the boundary between two values of the format. Then its last bit
decides, a step of up to 1/8 (FP8) or 1/2 (NVFP4), and the rest of its sequence differs visibly.
That is rare. Of the cases below, one has such an activation, in one of its four sequences. Which
one depends on the order of sums, and so on the processor.

Hence all rows of at least three sequences agree to 1e-5 (found: 5e-7). No row of the fourth differs
by more than quantization itself changes on average. Where neither activations nor caches are
rounded there are no boundaries: every row agrees to 1e-5 (found: 2e-6).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.logits import feeds, session, target_logits
from tests.fixtures.quantized import (
    dequantize_weight,
    quantized_copy,
    read_tensors,
    round_fp8,
    round_nvfp4,
    write_tensors,
)
from tests.fixtures.tiny_hybrid import quantized_hybrid
from tests.fixtures.tiny_models import BLOCK, MASK_ID, VOCAB, tiny_drafter, tiny_target
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.step import build_step

FORMATS = ("fp8", "nvfp4", "w4a16_nvfp4")
ROUNDING_ACTIVATIONS = ("fp8", "nvfp4")
IDS = np.random.default_rng(5).integers(0, VOCAB, (4, 10))


def rounding_twin(quantized: Path, directory: Path, load: Callable[[Path], Any]) -> Any:
    """Return the float32 model of a quantized checkpoint: weights dequantized, inputs rounded.

    Experts' inputs are not rounded.
    """
    tensors = read_tensors(quantized / "model.safetensors")
    plain, rounders = {}, {}
    for name, array in tensors.items():
        module, _, part = name.rpartition(".")
        if f"{module}.weight_scale" not in tensors or part == "bias":
            plain[name] = ("F32", array.astype(np.float32))
        elif part == "weight":
            stored = {
                key.removeprefix(f"{module}."): t
                for key, t in tensors.items()
                if key.startswith(f"{module}.")
            }
            plain[name] = ("F32", dequantize_weight(stored))
            if "input_scale" in stored and ".experts." not in module:
                rounder = round_nvfp4 if "weight_scale_2" in stored else round_fp8
                rounders[module] = partial(rounder, scale=stored["input_scale"])
    directory.mkdir()
    write_tensors(directory / "model.safetensors", plain)
    config = json.loads((quantized / "config.json").read_text())
    config.pop("quantization_config", None)
    if "lm_head.weight" in plain:
        config["tie_word_embeddings"] = False
    (directory / "config.json").write_text(json.dumps(config))
    model = load(directory)
    for module, rounder in rounders.items():
        model.get_submodule(module).register_forward_pre_hook(
            partial(rounded_input, rounder=rounder)
        )
    return model


def rounded_input(
    _: Any, inputs: tuple[Any], *, rounder: Callable[[np.ndarray], np.ndarray]
) -> tuple[Any]:
    return (torch.from_numpy(rounder(inputs[0].numpy())),)


def forward(model: Any, ids: np.ndarray = IDS) -> np.ndarray:
    """Logits float32 [B, S, V]."""
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


def assert_same_but_for_boundaries(
    ours: np.ndarray,
    theirs: np.ndarray,
    unquantized: np.ndarray,
    *,
    boundaries: bool = True,
    tolerance: float = 1e-5,
) -> None:
    """Assert the tolerance of this module's docstring for arrays [4, S, n].

    `boundaries`: activations or caches are rounded.
    """
    size = np.abs(theirs).max()
    rows = np.abs(ours - theirs).max(-1) / size
    assert len(rows) == 4
    assert np.count_nonzero((rows < tolerance).all(-1)) >= (3 if boundaries else 4), rows
    effect = np.abs(unquantized - theirs).max(-1).mean() / size
    assert effect > 0.02
    assert rows.max() < effect, (rows.max(), effect)


@pytest.mark.sample(3)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_rounded_numbers(
    model_type: str, name: str, tmp_path: Path
) -> None:
    source = tiny_target(
        tmp_path / "source", model_type, dtype="BF16", tied=model_type == "qwen3"
    )
    quantized = quantized_copy(source, tmp_path / "quantized", name)
    twin = rounding_twin(quantized, tmp_path / "twin", hugging_face.load_target)
    unquantized = forward(hugging_face.load_target(source))
    assert_same_but_for_boundaries(
        target_logits(quantized, IDS),
        forward(twin),
        unquantized,
        boundaries=name in ROUNDING_ACTIVATIONS,
    )


@pytest.mark.sample(4)
@pytest.mark.parametrize("family", ["qwen3_5_vl", "qwen3_5_moe", "qwen3_next"])
@pytest.mark.parametrize("name", FORMATS)
def test_logits_of_hybrids(family: str, name: str, tmp_path: Path) -> None:
    """The rule sums in another order than Hugging Face's: found 2e-5 where nothing is rounded."""
    quantized = quantized_hybrid(tmp_path / "quantized", family, name)
    twin = rounding_twin(quantized, tmp_path / "twin", hugging_face.load_target)
    source = tmp_path / "quantized in BF16"
    assert_same_but_for_boundaries(
        target_logits(quantized, IDS),
        forward(twin),
        forward(hugging_face.load_target(source)),
        boundaries=name in ROUNDING_ACTIVATIONS,
        tolerance=1e-4,
    )


def test_mixed_precision_with_biases_and_a_quantized_tied_head(tmp_path: Path) -> None:
    """Every linear has its own format; the stored head is used although the config ties it."""
    source = tiny_target(
        tmp_path / "source",
        "llama",
        dtype="BF16",
        attention_bias=True,
        mlp_bias=True,
        num_layers=2,
    )
    config = json.loads((source / "config.json").read_text())
    modules = {
        "model.layers.0.self_attn.q_proj": "fp8",
        "model.layers.0.self_attn.k_proj": "nvfp4",
        "model.layers.0.self_attn.o_proj": "w4a16_nvfp4",
        "model.layers.0.mlp.up_proj": "nvfp4",
        "model.layers.1.mlp.down_proj": "fp8",
        "lm_head": "nvfp4",
    }
    quantized = quantized_copy(source, tmp_path / "quantized", modules=modules)
    for directory in (source, quantized):
        text = json.loads((directory / "config.json").read_text()) | {
            "tie_word_embeddings": True
        }
        (directory / "config.json").write_text(json.dumps(text))
    assert not load_target(quantized).config.tie_word_embeddings
    twin = rounding_twin(quantized, tmp_path / "twin", hugging_face.load_target)
    (source / "config.json").write_text(json.dumps(config))
    unquantized = forward(hugging_face.load_target(source))
    assert_same_but_for_boundaries(target_logits(quantized, IDS), forward(twin), unquantized)


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_drafter_drafts_with_the_rounded_numbers(name: str, tmp_path: Path) -> None:
    """Against the reference package's drafter with rounded weights and inputs; fc is as it was."""
    target = tiny_target(tmp_path / "target", "qwen3")
    source = tiny_drafter(tmp_path / "source", target, variant="mixed")
    o_proj = tuple(
        f"layers.{index}.self_attn.o_proj" for index in range(3)
    )  # 72 inputs, which blocks do not divide
    quantized = quantized_copy(
        source, tmp_path / "quantized", name, dtype="F32", exclude=("fc", *o_proj)
    )
    hidden, anchors = {}, {}
    for directory in (quantized, source):
        model = build_step(
            load_target(target),
            load_drafter(directory),
            dtype="float32",
            cache_len=64,
            block_size=4,
        )
        norm = "/drafter/RMSNormalization_1/output_0"
        value = next(
            value for node in model.graph for value in node.outputs if value.name == norm
        )
        made, names = session(model, value)
        results = dict(zip(names, made.run(names, feeds(made, IDS, 10, BLOCK)), strict=True))
        hidden[directory] = results[norm].reshape(4, BLOCK, -1)
        anchors[directory] = results["next_ids"][:, 0]
    twin = rounding_twin(quantized, tmp_path / "twin", hugging_face.load_drafter)
    full = hugging_face.load_target(target)
    wanted = [
        _reference_hidden(full, twin, ids, anchor)
        for ids, anchor in zip(IDS, anchors[quantized], strict=True)
    ]
    boundaries = name in ROUNDING_ACTIVATIONS
    assert_same_but_for_boundaries(
        hidden[quantized], np.stack(wanted), hidden[source], boundaries=boundaries
    )


def _reference_hidden(target: Any, drafter: Any, prompt: np.ndarray, anchor: int) -> np.ndarray:
    with torch.no_grad():
        states = target(torch.tensor(prompt[None]), output_hidden_states=True).hidden_states
        block = torch.tensor([[anchor] + [MASK_ID] * (BLOCK - 1)])
        return drafter(
            target_hidden=torch.cat(
                [states[layer + 1] for layer in drafter.target_layer_ids], dim=-1
            ),
            noise_embedding=target.get_input_embeddings()(block),
            position_ids=torch.arange(len(prompt) + BLOCK)[None],
        )[0].numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_a_draft_vocabulary_reads_rows_of_a_quantized_head(name: str, tmp_path: Path) -> None:
    """With all tokens allowed, drafts are those of the whole head."""
    target = tiny_target(tmp_path / "source", num_layers=2, dtype="BF16")
    quantized = quantized_copy(
        target, tmp_path / "quantized", name, exclude=("model.embed_tokens",)
    )
    drafter = tiny_drafter(tmp_path / "drafter", target, num_layers=1, taps=(0,))
    drafts = []
    for vocab in (None, np.arange(VOCAB)):
        model = build_step(
            load_target(quantized),
            load_drafter(drafter),
            dtype="float32",
            cache_len=64,
            block_size=4,
            draft_vocab=vocab,
        )
        made, names = session(model)
        drafts.append(
            dict(zip(names, made.run(names, feeds(made, IDS, block=BLOCK)), strict=True))[
                "next_ids"
            ]
        )
    np.testing.assert_array_equal(*drafts)
    assert len(np.unique(drafts[0])) > 4


@pytest.mark.sample(6)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kv_cache_dtype", [None, "fp8", "fp8_cast"])
def test_modelopts_export_computes_what_modelopt_computes(
    model_type: str, name: str, kv_cache_dtype: str | None, tmp_path: Path
) -> None:
    """Its forward before the export, with the scales that the export shares among linears of one
    input.

    With FP8 caches too: both sides round keys behind RoPE, and values, before they attend to them;
    "fp8_cast" without a calibration, so that their scales are 1 and not in the checkpoint.
    """
    pytest.importorskip("modelopt")
    from tests.quantize import modelopt

    source = tiny_target(
        tmp_path / "source", model_type, tied=model_type == "qwen3", num_layers=3
    )
    model = modelopt.quantized_model(source, name, kv_cache_dtype)
    theirs = forward(model)
    exported = modelopt.export(model, source, tmp_path / "exported")
    checkpoint = load_target(exported)
    assert checkpoint.quantization.kv_cache == (kv_cache_dtype and "fp8")
    assert len(checkpoint.formats) == 3 * 7
    unquantized = forward(hugging_face.load_target(source))
    boundaries = name in ROUNDING_ACTIVATIONS or kv_cache_dtype is not None
    assert_same_but_for_boundaries(
        target_logits(exported, IDS), theirs, unquantized, boundaries=boundaries
    )
