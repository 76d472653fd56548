"""Quantized checkpoints load in place: formats, accounting, what the stored bytes mean (damage:
bad_checkpoints).
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.quantized import (
    dequantize_weight,
    quantized_copy,
    read_tensors,
    write_tensors,
)
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.checkpoint.dequantize import dequantized
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.formats import FORMATS, Holds
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.errors import CheckpointError

NAMES = tuple(FORMATS)
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a two-layer Qwen3 target in BF16."""
    return tiny_target(
        tmp_path_factory.mktemp("source") / "target", "qwen3", num_layers=2, dtype="BF16"
    )


def _stored(directory: Path, module: str) -> dict[str, np.ndarray]:
    tensors = read_tensors(directory / "model.safetensors")
    return {
        name.removeprefix(f"{module}."): array
        for name, array in tensors.items()
        if name.startswith(f"{module}.")
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["original", "flat", "both"])
def test_every_tensor_is_used_where_it_lies(
    source: Path, name: str, layout: str, tmp_path: Path
) -> None:
    directory = quantized_copy(
        source, tmp_path / "q", name, layout=layout, kv_cache=layout == "both"
    )
    checkpoint = load_target(directory)
    check_finite(checkpoint)
    assert checkpoint.tensors.keys() == read_tensors(directory / "model.safetensors").keys()
    assert {info.path for info in checkpoint.tensors.values()} == {
        directory / "model.safetensors"
    }
    assert not checkpoint.ignored
    assert set(checkpoint.formats.values()) == {FORMATS[name]}
    assert len(checkpoint.formats) == 2 * 7
    assert checkpoint.quantization.kv_cache == ("fp8" if layout == "both" else None)


@pytest.mark.parametrize("name", NAMES)
def test_sizes(source: Path, name: str, tmp_path: Path) -> None:
    plain, checkpoint = (
        load_target(source),
        load_target(quantized_copy(source, tmp_path / "q", name)),
    )
    assert checkpoint.num_parameters == plain.num_parameters
    assert checkpoint.stored_as == f"{FORMATS[name].algo} and BF16"
    assert plain.stored_as == checkpoint.dtype == "BF16"
    nothing, all_of_them = Holds.NOTHING, Holds.KERNELS
    assert checkpoint.weight_bytes(4, nothing) == plain.weight_bytes(4, nothing)
    saved = plain.weight_bytes(2, all_of_them) - checkpoint.weight_bytes(2, all_of_them)
    linears = sum(plain.tensors[f"{module}.weight"].nbytes for module in checkpoint.formats)
    assert saved == linears * (1 - FORMATS[name].weight_bits() / 16)
    assert FORMATS[name].weight_bits() / 16 <= (0.5 if name == "fp8" else 0.30)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [None, np.array([7, 0, 47])])
def test_numbers_are_those_of_the_tables(
    source: Path, name: str, rows: np.ndarray | None, tmp_path: Path
) -> None:
    directory = quantized_copy(source, tmp_path / "q", name)
    checkpoint = load_target(directory)
    got = dequantized(checkpoint.tensors, DOWN, checkpoint.formats[DOWN], rows)
    wanted = dequantize_weight(_stored(directory, DOWN))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted if rows is None else wanted[rows])
    original = read_tensors(source / "model.safetensors")[f"{DOWN}.weight"].astype(np.float32)
    error = np.linalg.norm(wanted - original) / np.linalg.norm(original)
    assert 0.01 < error < (0.04 if name == "fp8" else 0.13)


def test_dequantizing_holds_the_result_and_a_chunk(tmp_path: Path) -> None:
    rows, columns = 2048, 8192
    random = np.random.default_rng(0)
    tensors = {
        "weight": ("U8", random.integers(0, 256, (rows, columns // 2), dtype=np.uint8)),
        "weight_scale": ("F8_E4M3", random.random((rows, columns // 16)) + 1),
        "weight_scale_2": ("F32", np.float32(0.25)),
    }
    write_tensors(tmp_path / "x", {f"m.{name}": stored for name, stored in tensors.items()})
    from trtllm_dflash.checkpoint.safetensors import read_tensor_infos

    infos = read_tensor_infos(tmp_path / "x")
    tracemalloc.start()
    result = dequantized(infos, "m", FORMATS["w4a16_nvfp4"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < result.nbytes + (16 << 20)


def test_one_number_may_be_stored_as_a_vector_of_one(source: Path, tmp_path: Path) -> None:
    directory = quantized_copy(source, tmp_path / "q", "fp8")
    old = read_tensors(directory / "model.safetensors")
    dtypes = {np.dtype(np.float32): "F32", old[f"{DOWN}.weight"].dtype: "F8_E4M3"}
    new = {
        key: (dtypes.get(array.dtype, "BF16"), array.reshape(1) if array.ndim == 0 else array)
        for key, array in old.items()
    }
    write_tensors(directory / "model.safetensors", new)
    checkpoint = load_target(directory)
    check_finite(checkpoint)
    np.testing.assert_array_equal(
        dequantized(checkpoint.tensors, DOWN, FORMATS["fp8"]),
        dequantize_weight({k: old[f"{DOWN}.{k}"] for k in ("weight", "weight_scale")}),
    )


def test_a_tied_head_is_its_own_only_if_it_is_stored_quantized(tmp_path: Path) -> None:
    source = tiny_target(tmp_path / "source", num_layers=1, dtype="BF16")
    text = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    own = quantized_copy(source, tmp_path / "own", exclude=("model.embed_tokens",))
    (own / "config.json").write_text(
        json.dumps(
            json.loads((own / "config.json").read_text()) | {"tie_word_embeddings": True}
        )
    )
    checkpoint = load_target(own)
    assert not checkpoint.config.tie_word_embeddings
    assert "lm_head" in checkpoint.formats
    assert text["tie_word_embeddings"]
    tied = quantized_copy(
        tiny_target(tmp_path / "tied", num_layers=1, tied=True), tmp_path / "q", exclude=()
    )
    assert load_target(tied).config.tie_word_embeddings


@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_drafter_of_a_quantized_target(name: str, tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "llama")
    source = tiny_drafter(tmp_path / "source", target)
    o_proj = tuple(f"layers.{index}.self_attn.o_proj" for index in range(3))
    drafter = load_drafter(
        quantized_copy(source, tmp_path / "drafter", name, exclude=("fc", "lm_head", *o_proj))
    )
    check_finite(drafter)
    assert len(drafter.formats) == 3 * 6
    assert "fc" not in drafter.formats
    check_pair(load_target(quantized_copy(target, tmp_path / "q", name)), drafter)


@pytest.mark.parametrize("name", NAMES)
def test_a_drafters_copy_of_a_head_that_the_target_has_quantized(
    name: str, tmp_path: Path
) -> None:
    """The copy has other numbers than codes are, and another shape than packed ones; its embedding
    is compared.
    """
    source = tiny_target(tmp_path / "target", "llama")
    target = load_target(
        quantized_copy(
            source, tmp_path / "q", name, exclude=("model.embed_tokens",), dtype="F32"
        )
    )
    assert "lm_head" in target.formats
    drafter = tiny_drafter(tmp_path / "drafter", source)
    own, tables = (
        read_tensors(drafter / "model.safetensors"),
        read_tensors(source / "model.safetensors"),
    )
    copies = {
        "lm_head.weight": tables["lm_head.weight"],
        "embed_tokens.weight": tables["model.embed_tokens.weight"],
    }

    def store(tensors: dict[str, np.ndarray]) -> None:
        write_tensors(
            drafter / "model.safetensors",
            {key: ("F32", array) for key, array in tensors.items()},
        )

    store(own | copies)
    check_pair(target, load_drafter(drafter))
    store(own | copies | {"embed_tokens.weight": copies["embed_tokens.weight"] + 1})
    assert "embed_tokens.weight" in check_pair(target, load_drafter(drafter)).tensors
    store(own | copies | {"lm_head.weight": copies["lm_head.weight"][:-1]})
    with pytest.raises(CheckpointError, match=r"wrong shape: lm_head.weight has"):
        check_pair(target, load_drafter(drafter))


def test_many_faults_are_one_error(source: Path, tmp_path: Path) -> None:
    directory = quantized_copy(source, tmp_path / "q", "fp8", layout="flat")
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_target(directory)
    assert str(caught.value).count("would load unscaled") == 8
    assert "\n  and 6 more\n" in str(caught.value)
