"""Steps of tiny hybrid targets: logits of prompts, blocks and drafts against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.tiny_hybrid import HYBRIDS, quantized_hybrid, tiny_hybrid
from tests.fixtures.tiny_models import BLOCK, VOCAB, tiny_drafter
from tests.graph.stepper import Stepper, decode
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.kv_scales import read_kv_scales
from trtllm_dflash.graph.step import build_step

CACHE = 96
# between two forms of the same layer, transformers' own differ by 1e-5 of the scale
TOLERANCE = 1e-4


def _logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    """Return transformers' logits of every position of one pass."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return logits


def _step(directory: Path, block_size: int = 1, **options: Any) -> ir.Model:
    sizes: dict[str, Any] = {"dtype": "float32", "cache_len": CACHE, "block_size": block_size}
    return build_step(load_target(directory), options.pop("drafter", None), **sizes, **options)


def _check_logits(directory: Path, length: int) -> None:
    """Compare the logits of two prompts, in chunks of different widths, with transformers'."""
    random = np.random.default_rng(1)
    ids = random.integers(0, VOCAB - 2, (2, length))
    want = _logits(directory, ids)
    run = Stepper(_step(directory, gather_logits=True), 2)
    while (past := int(run.past[0])) < length:
        width = min(int(random.integers(1, 40)), length - past)
        logits = run.step(slice(None), ids[:, past : past + width], known=width, rows=1)[
            "logits"
        ]
        run.past[:] = past + width
        of_last = want[:, past + width - 1]
        np.testing.assert_allclose(
            logits[:, 0], of_last, rtol=0, atol=TOLERANCE * np.abs(want).max()
        )


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", HYBRIDS)
def test_logits_equal_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    _check_logits(tiny_hybrid(tmp_path, name, tied=tied, fused=tied), 70)


@pytest.mark.slow
def test_as_many_experts_as_published_targets_have(tmp_path: Path) -> None:
    sizes = {"experts": 512, "top_k": 10, "layers": 4}
    _check_logits(tiny_hybrid(tmp_path, "qwen3_next", sizes=sizes), 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_widths_and_drafts_change_no_token(name: str, tmp_path: Path) -> None:
    """A plain engine, and one with a drafter in slots at different lengths."""
    target = tiny_hybrid(tmp_path / "target", name)
    taps = (0, 3)  # a gated delta net, and a layer with attention
    drafter = load_drafter(tiny_drafter(tmp_path / "drafter", target, taps=taps))
    random = np.random.default_rng(2)
    prompts = [random.integers(0, VOCAB - 2, count) for count in (3, 17, 40)]
    sizes: dict[str, Any] = {"count": 24, "chunk": 7}
    plain = decode(_step(target), prompts, widths=[1], **sizes)
    drafted = _step(target, BLOCK, drafter=drafter)
    assert decode(drafted, prompts, widths=[BLOCK, 1, 3, 2], **sizes) == plain
    assert len({tuple(answer) for answer in plain}) == len(prompts)


def _pair(tmp_path: Path, target: Path, **sizes: Any) -> tuple[Any, Any]:
    drafter = tiny_drafter(tmp_path / "drafter", target, taps=(0, 3), **sizes)
    return load_target(target), load_drafter(drafter)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "kv_cache"),
    [
        ("qwen3_next", "nvfp4", True),
        ("qwen3_5_vl", "fp8", True),
        ("qwen3_5_moe", "nvfp4", False),
    ],
)
def test_quantized_hybrids_are_lossless_too(
    name: str, form: str, kv_cache: bool, tmp_path: Path
) -> None:
    """With FP8 caches of the layers that have keys, and drafts of a part of the vocabulary."""
    directory = quantized_hybrid(tmp_path / "target", name, form, kv_cache=kv_cache)
    target, drafter = _pair(tmp_path, directory)
    scales = read_kv_scales(target)
    assert (scales is not None) == kv_cache
    assert scales is None or scales.keys() == {3, 5}
    shared: dict[str, Any] = {"dtype": "float32", "cache_len": CACHE, "kv_scales": scales}
    random = np.random.default_rng(3)
    prompts = [random.integers(0, VOCAB - 2, count) for count in (11, 30)]
    sizes: dict[str, Any] = {"count": 16, "chunk": 9}
    plain = decode(
        build_step(target, None, block_size=1, **shared), prompts, widths=[1], **sizes
    )
    vocab = np.arange(0, VOCAB, 2)
    shared |= {"draft_vocab": vocab, "gather_logits": True}
    drafted = build_step(target, drafter, block_size=BLOCK, **shared)
    assert decode(drafted, prompts, widths=[BLOCK, 2], **sizes) == plain


def test_weights_of_zero_centred_norms_are_float32_sums(tmp_path: Path) -> None:
    """All but that inside of a gated delta net, whose weight is plain."""
    target = load_target(tiny_hybrid(tmp_path, "qwen3_5", dtype="BF16"))
    model = build_step(target, None, dtype="bfloat16", cache_len=CACHE, block_size=1)
    norms = {
        str(name).removeprefix("target."): value
        for name, value in model.graph.initializers.items()
        if "norm.weight" in str(name)
    }
    assert len(norms) == 2 * 6 + 2 * 2 + 4 + 1
    for name, value in norms.items():
        stored = target.tensors[name].array().astype(np.float32)
        offset = 0 if "linear_attn.norm" in name else 1
        np.testing.assert_array_equal(value.const_value.numpy(), stored + np.float32(offset))


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe"])
def test_weights_of_a_hybrid_stay_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    """Also where projections are fused: results are put in order, no row of a weight."""
    target = load_target(tiny_hybrid(tmp_path, name, dtype="BF16"))
    model = build_step(target, None, dtype="bfloat16", cache_len=CACHE, block_size=1)
    inside = [
        value
        for name, value in model.graph.initializers.items()
        if "_proj.weight" in str(name) or "in_proj" in str(name) or "conv1d" in str(name)
    ]
    mine = [value for value in inside if "experts" not in str(value.name)]
    assert len(mine) > 6 * 4
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in mine)


@pytest.mark.parametrize("kv_cache", [False, True])
def test_plugin_nodes_of_a_hybrid(kv_cache: bool, tmp_path: Path) -> None:
    """FP8 caches and rings are of layers with keys; states are float32, windows BF16."""
    sizes = {"key_dim": 128, "value_dim": 128, "head_dim": 64}
    directory = quantized_hybrid(
        tmp_path / "target", "qwen3_5", "fp8", kv_cache=kv_cache, sizes=sizes
    )
    target, drafter = _pair(tmp_path, directory, head_dim=64, variant="mixed")
    options: dict[str, Any] = {"dtype": "bfloat16", "block_size": BLOCK, "plugins": True}
    options |= {"cache_len": 512, "ring_width": 16, "kv_scales": read_kv_scales(target)}
    model = build_step(target, drafter, **options, row_order=True)
    assert not model.functions
    nodes = [node for node in model.graph if node.domain == OPS_DOMAIN]
    delta = [node for node in nodes if node.op_type == "DFlashGatedDelta"]
    assert [node.attributes["num_key_heads"].as_int() for node in delta] == [3] * 4
    assert not {"row_order", "for_cpu"} & set(delta[0].attributes)
    verify = [node for node in nodes if node.op_type == "DFlashVerifyAttention"]
    assert [node.attributes["fp8_cache"].as_int() for node in verify] == [int(kv_cache)] * 2
    ports = {str(value.name): value.dtype for value in model.graph.inputs}
    for layer in (0, 1, 2, 4):
        assert ports[f"target_state.{layer}"] == ir.DataType.FLOAT
        assert ports[f"target_window.{layer}"] == ir.DataType.BFLOAT16
        assert f"target_key.{layer}" not in ports
    drafts = [node for node in nodes if node.op_type == "DFlashDraftAttention"]
    assert [node.attributes["ring"].as_int() for node in drafts] == [1, 1, 0]
