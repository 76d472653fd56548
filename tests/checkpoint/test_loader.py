"""Whole checkpoints: supported variants load, ignored tensors carry reasons, pairs are checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.tiny_models import DRAFTER_VARIANTS, HIDDEN, VOCAB, write_safetensors
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.errors import CheckpointError

Maker = Callable[..., Path]


def copy_with(
    source: Path,
    directory: Path,
    tensors: Mapping[str, np.ndarray | None],
    dtype: str = "F32",
    **config: Any,
) -> Path:
    """Copy a single-file checkpoint with tensors replaced, added or (None) removed, and config keys
    changed.
    """
    directory.mkdir()
    old = {
        name: np.array(info.array())
        for name, info in read_tensor_infos(source / "model.safetensors").items()
    }
    new = {name: array for name, array in (old | dict(tensors)).items() if array is not None}
    write_safetensors(directory / "model.safetensors", new, dtype)
    settings = json.loads((source / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


def table(seed: int = 0, rows: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, HIDDEN))


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_targets(make_target: Maker, model_type: str, tied: bool, dtype: str) -> None:
    biases = (
        {"attention_bias": tied, "mlp_bias": tied}
        if model_type == "llama"
        else {"attention_bias": tied}
    )
    checkpoint = load_target(
        make_target(model_type, tied=tied, dtype=dtype, shards=1 + 2 * tied, **biases)
    )
    check_finite(checkpoint)
    assert checkpoint.dtype == dtype
    assert ("lm_head.weight" in checkpoint.tensors) is not tied
    assert not checkpoint.ignored
    assert checkpoint.nbytes == sum(info.array().nbytes for info in checkpoint.tensors.values())
    assert {info.path.name for info in checkpoint.tensors.values()} == (
        {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
        if tied
        else {"model.safetensors"}
    )


@pytest.mark.parametrize("variant", DRAFTER_VARIANTS)
@pytest.mark.parametrize("attention_bias", [False, True])
def test_drafters(llama: Path, make_drafter: Maker, variant: str, attention_bias: bool) -> None:
    options = {"mask_in": "top", "block_in": "top"} if attention_bias else {}
    drafter = load_drafter(
        make_drafter(llama, variant=variant, attention_bias=attention_bias, **options)
    )
    check_finite(drafter)
    check_pair(load_target(llama), drafter)
    is_causal, others_slide, last_slides = DRAFTER_VARIANTS[variant]
    expected = [
        slides if is_causal is None else is_causal
        for slides in (others_slide, others_slide, last_slides)
    ]
    assert [layer.causal for layer in drafter.config.layers] == expected
    assert [bool(layer.window) for layer in drafter.config.layers] == [
        others_slide,
        others_slide,
        last_slides,
    ]
    assert len(drafter.tensors) == 3 * (15 if attention_bias else 11) + 3


def test_tied_target_may_store_the_same_head_again(qwen3: Path, tmp_path: Path) -> None:
    embedding = load_target(qwen3).tensors["model.embed_tokens.weight"].array()
    checkpoint = load_target(copy_with(qwen3, tmp_path / "m", {"lm_head.weight": embedding}))
    assert "lm_head.weight" not in checkpoint.tensors
    assert "identical copy" in checkpoint.ignored["lm_head.weight"].reason


def test_rotary_buffers_are_ignored_with_a_reason(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.rotary_emb.inv_freq"
    checkpoint = load_target(copy_with(llama, tmp_path / "m", {name: np.ones(8)}))
    assert list(checkpoint.ignored) == [name]
    assert "recomputed from config.json" in checkpoint.ignored[name].reason


def test_untied_head_must_be_there(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: lm_head.weight \[97, 48\]"):
        load_target(copy_with(llama, tmp_path / "m", {"lm_head.weight": None}))


def test_bias_in_the_file_but_not_in_the_config(make_target: Maker, tmp_path: Path) -> None:
    biased = make_target("llama", attention_bias=True)
    with pytest.raises(
        CheckpointError,
        match=r"unexpected: model.layers.0.self_attn.q_proj.bias \[64\].*; and 12 more",
    ):
        load_target(copy_with(biased, tmp_path / "m", {}, attention_bias=False))


def test_qwen3_file_with_a_llama_config(qwen3: Path, tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    with pytest.raises(
        CheckpointError, match=r"unexpected: model.layers.0.self_attn.q_norm.weight \[16\]"
    ):
        load_target(copy_with(qwen3, tmp_path / "m", {}, **config))


def test_square_looking_transpose_is_a_wrong_shape(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    words = (
        rf"{name} has \[64, 48\], expected \[48, 64\] = \[hidden_size, num_q_heads\*head_dim\]"
    )
    with pytest.raises(CheckpointError, match=words):
        load_target(copy_with(llama, tmp_path / "m", {name: np.ones((64, 48))}))


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no config.json in it"):
        load_target(tmp_path)


def test_target_passed_as_drafter(llama: Path) -> None:
    with pytest.raises(
        Exception,
        match=r'only \["DFlashDraftModel"\] or .* is supported',
    ):
        load_drafter(llama)


def test_drafter_passed_as_target(llama: Path, make_drafter: Maker) -> None:
    with pytest.raises(
        Exception, match=r'architectures is \["DFlashDraftModel"\], and supported targets are'
    ):
        load_target(make_drafter(llama))


class TestPair:
    """check_pair, with both numbers in every message."""

    def test_tables_stored_in_the_drafter(
        self, llama: Path, make_drafter: Maker, tmp_path: Path
    ) -> None:
        target = load_target(llama)
        copies = {
            "embed_tokens.weight": np.array(
                target.tensors["model.embed_tokens.weight"].array()
            ),
            "lm_head.weight": np.array(target.tensors["lm_head.weight"].array()),
        }
        drafter = load_drafter(copy_with(make_drafter(llama), tmp_path / "d", copies))
        assert set(drafter.ignored) == set(copies)
        assert "the target's table" in drafter.ignored["lm_head.weight"].reason
        assert check_pair(target, drafter) == drafter

    def test_head_copied_from_a_tied_target(
        self, qwen3: Path, make_drafter: Maker, tmp_path: Path
    ) -> None:
        target = load_target(qwen3)
        head = {"lm_head.weight": np.array(target.tensors["model.embed_tokens.weight"].array())}
        check_pair(target, load_drafter(copy_with(make_drafter(qwen3), tmp_path / "d", head)))

    def test_hidden_size(self, llama: Path, make_drafter: Maker) -> None:
        drafter = load_drafter(make_drafter(llama))
        drafter = replace(drafter, config=replace(drafter.config, hidden_size=50))
        with pytest.raises(
            CheckpointError, match="hidden_size is 50 in the drafter and 48 in the target"
        ):
            check_pair(load_target(llama), drafter)

    def test_vocabulary(self, make_target: Maker, make_drafter: Maker) -> None:
        drafter = load_drafter(make_drafter(make_target("llama")))
        words = (
            "mask_token_id is 96, but the target embeds ids 0 to 60. Pass the drafter that was"
            " trained for this target"
        )
        with pytest.raises(CheckpointError, match=words):
            check_pair(load_target(make_target("llama", vocab_size=61)), drafter)

    def test_another_tokenizer(self, llama: Path, make_drafter: Maker) -> None:
        drafter = load_drafter(make_drafter(llama))
        drafter = replace(drafter, config=replace(drafter.config, vocab_size=97 + 4097))
        with pytest.raises(
            CheckpointError, match="vocab_size is 4194 in the drafter and 97 in the target"
        ):
            check_pair(load_target(llama), drafter)

    @pytest.mark.parametrize("rows", [90, 97, 128])
    def test_padded_vocabulary(
        self,
        llama: Path,
        make_drafter: Maker,
        tmp_path: Path,
        rows: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        target = load_target(llama)
        theirs = np.array(target.tensors["lm_head.weight"].array())
        padded = np.zeros((rows, HIDDEN), np.float32)
        padded[:97] = theirs[:rows]
        nested = {
            "dflash_config": {"block_size": 4, "target_layer_ids": [0], "mask_token_id": 3}
        }
        made = make_drafter(llama, taps=(0,))
        copy = copy_with(
            made, tmp_path / "d", {"lm_head.weight": padded}, vocab_size=rows, **nested
        )
        check_pair(target, load_drafter(copy))
        assert ("the target's counts" in caplog.text) is (rows != 97)
        padded[5, 7] += 1
        other = copy_with(copy, tmp_path / "o", {"lm_head.weight": padded})
        assert "lm_head.weight" in check_pair(target, load_drafter(other)).tensors
        assert "differs from the target's lm_head.weight at index [5, 7]" in caplog.text

    def test_number_of_layers(self, make_target: Maker, make_drafter: Maker) -> None:
        drafter = load_drafter(make_drafter(make_target("llama")))
        with pytest.raises(
            CheckpointError, match="num_target_layers is 5, but the target has 4 layers"
        ):
            check_pair(load_target(make_target("llama", num_layers=4)), drafter)

    def test_taps_beyond_the_target(self, llama: Path, make_drafter: Maker) -> None:
        drafter = load_drafter(
            make_drafter(llama, taps=(1, 7), config={"num_target_layers": None})
        )
        with pytest.raises(
            CheckpointError,
            match=r"target_layer_ids has \[7\], but the target's layers are 0 to 4",
        ):
            check_pair(load_target(llama), drafter)

    def test_tap_on_the_last_layer(self, llama: Path, make_drafter: Maker) -> None:
        drafter = load_drafter(make_drafter(llama, taps=(1, 4)))
        with pytest.raises(
            CheckpointError,
            match=r"target_layer_ids has the last layer, 4: .* does not say which",
        ):
            check_pair(load_target(llama), drafter)

    def test_unstated_number_of_layers(self, llama: Path, make_drafter: Maker) -> None:
        check_pair(
            load_target(llama),
            load_drafter(make_drafter(llama, config={"num_target_layers": None})),
        )


def test_progress_covers_all_weights(llama: Path) -> None:
    checkpoint = load_target(llama)
    sizes: list[int] = []
    check_finite(checkpoint, progress=sizes.append)
    assert sum(sizes) == checkpoint.nbytes


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_tiny_targets_load_in_transformers(
    make_target: Maker, model_type: str, tied: bool
) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = make_target(
        model_type, tied=tied, attention_bias=tied, shards=1 + 2 * tied, tokenizer=True
    )
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values())
    ours = load_target(directory)
    theirs = dict(model.named_parameters())
    assert set(theirs) == set(ours.tensors)
    for name, info in ours.tensors.items():
        np.testing.assert_array_equal(info.array(), theirs[name].detach().numpy())
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer.encode("Hello you")) == "Hello you"


@pytest.mark.parametrize("variant", DRAFTER_VARIANTS)
def test_tiny_drafters_load_in_the_reference(
    llama: Path, make_drafter: Maker, variant: str
) -> None:
    pytest.importorskip("torch")
    reference = pytest.importorskip("dflash.model")
    directory = make_drafter(llama, variant=variant, attention_bias=True, yarn=True)
    model, report = reference.DFlashDraftModel.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values())
    ours = load_drafter(directory)
    assert (model.block_size, model.mask_token_id) == (
        ours.config.block_size,
        ours.config.mask_token_id,
    )
    assert tuple(model.target_layer_ids) == ours.config.target_layer_ids
    resolved = [
        (layer.self_attn.is_causal, layer.self_attn.sliding_window or 0)
        for layer in model.layers
    ]
    assert resolved == [(layer.causal, layer.window) for layer in ours.config.layers]
    assert set(dict(model.named_parameters())) == set(ours.tensors)
