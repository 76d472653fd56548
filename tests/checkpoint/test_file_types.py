"""Files that are something else than their names say are named as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.checkpoint.tokenizer_files import (
    TOKENIZER_FILES,
    check_tokenizer_files,
    copy_tokenizer_files,
)
from trtllm_dflash.errors import CheckpointError

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 48\n"
)
STAND_INS = {
    "pointer": (POINTER, "is a Git LFS pointer, not the file: run `git lfs pull` in"),
    "page": (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not the file"),
    "page with a mark": (b"\xef\xbb\xbf<HTML><body>", "is a web page, not the file"),
    "storage error": (b"<?xml version='1.0'?><Error>", "is a web page, not the file"),
    "download error": (b"Entry not found", "is an error message of a download"),
    "GGUF": (b"GGUF\x03\0\0\0", "is a GGUF file, not what its name says"),
    "pickle": (b"PK\x03\x04rest", "is a ZIP archive, as pickled weights are"),
    "gzip": (b"\x1f\x8b\x08rest of it", "is a gzip archive"),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_for_a_configuration(tmp_path: Path, name: str) -> None:
    data, said = STAND_INS[name]
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"config.json {said}"):
        read_json_in(tmp_path, "config.json")


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_for_weights(tmp_path: Path, name: str) -> None:
    data, said = STAND_INS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"model.safetensors {said}"):
        read_tensor_infos(path)


@pytest.mark.parametrize("file", TOKENIZER_FILES)
def test_stand_ins_for_tokenizer_files(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(POINTER)
    for use in (check_tokenizer_files, lambda src: copy_tokenizer_files(src, tmp_path / "new")):
        with pytest.raises(CheckpointError, match=f"{file} is a Git LFS pointer"):
            use(tmp_path)


def test_tokenizer_files_have_a_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtllm_dflash.checkpoint.tokenizer_files.MAX_FILE_BYTES", 1000)
    (tmp_path / "tokenizer.json").write_text("{}" + " " * 1000)
    with pytest.raises(
        CheckpointError, match=r"has 1.0 kB, and a tokenizer's file at most 1.0"
    ):
        check_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("model.gguf",), "It has model.gguf: GGUF weights"),
        (
            ("adapter_config.json", "adapter_model.safetensors"),
            "It has adapter_config.json: an ad",
        ),
        (
            ("consolidated.safetensors",),
            "It has consolidated.safetensors: weights in the format",
        ),
        (("consolidated.00.pth",), "It has consolidated.00.pth: pickled weights"),
        (("pytorch_model.bin",), "It has pytorch_model.bin: pickled weights"),
        (
            tuple(f"m{n}.gguf" for n in range(5)),
            "It has m0.gguf, m1.gguf, m2.gguf and 2 more: GG",
        ),
    ],
)
def test_other_models_are_named(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"there is no config.json in it") as raised:
        load_target(tmp_path)
    assert said in str(raised.value)


def test_other_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .*GGUF weights"):
        read_all_tensor_infos(tmp_path)
