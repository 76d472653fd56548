"""Every case of the corpus is refused with its words, before anything of consequence is
allocated.
"""

from __future__ import annotations

import filecmp
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.bad_checkpoints import (  # noqa: F401  (they register their cases)
    dflash2_cases,
    directory_cases,
    expert_cases,
    file_cases,
    fp8_expert_cases,
    hybrid_cases,
    maker_cases,
    published_cases,
    quantized_cases,
    tensor_cases,
)
from tests.bad_checkpoints.make_bad import CASES, GOOD, good_target, write_all
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.errors import CheckpointError, ConfigError, DFlashError

LOADERS = {"target": load_target, "drafter": load_drafter}  # by the last word of a case's base
# A case is a few kB; what Python needs to parse it and to word the error stays far below this.
MAX_PEAK_BYTES = 2 << 20


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write every case into a folder of its own."""
    directory = tmp_path_factory.mktemp("bad") / "cases"
    write_all(directory)
    return directory


@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_words_and_without_memory(name: str, corpus: Path) -> None:
    case = CASES[name]
    tracemalloc.start()
    try:
        with pytest.raises((CheckpointError, ConfigError), match=case.words):
            check_finite(LOADERS[case.base.split()[-1]](corpus / name))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES


@pytest.mark.parametrize("name", CASES)
def test_error_names_the_checkpoint(name: str, corpus: Path) -> None:
    case = CASES[name]
    with pytest.raises((CheckpointError, ConfigError), match=f"/cases/{name}"):
        check_finite(LOADERS[case.base.split()[-1]](corpus / name))


@pytest.mark.parametrize("base", GOOD)
def test_what_the_cases_spoil_is_good(base: str, tmp_path: Path) -> None:
    GOOD[base]().write(tmp_path / "good")
    check_finite(LOADERS[base.split()[-1]](tmp_path / "good"))


def test_good_shards_load(tmp_path: Path) -> None:
    model = good_target()
    model.put_index(model.shard())
    model.write(tmp_path / "target")
    assert len(load_target(tmp_path / "target").tensors) == len(model.weights.header)


def test_the_corpus_has_the_same_bytes_each_time(corpus: Path, tmp_path: Path) -> None:
    write_all(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(CASES) == len(list(corpus.iterdir()))
    for name in CASES:
        names = sorted(path.name for path in (tmp_path / name).iterdir())
        assert names == sorted(path.name for path in (corpus / name).iterdir()), name
        regular = [file for file in names if (tmp_path / name / file).is_file()]
        _, differing, unreadable = filecmp.cmpfiles(
            tmp_path / name, corpus / name, regular, shallow=False
        )
        assert not differing, name
        assert all((tmp_path / name / file).is_symlink() for file in unreadable), name


def test_header_nested_too_deeply(tmp_path: Path) -> None:
    depth = 200_000  # more than any interpreter's recursion limit or stack
    model = good_target()
    model.weights.header_text = b'{"model.norm.weight": ' + b"[" * depth + b"]" * depth + b"}"
    model.write(tmp_path / "deep")
    with pytest.raises(CheckpointError, match=r"\(header\): the JSON is nested too deeply"):
        load_target(tmp_path / "deep")


def test_config_larger_than_any_config(tmp_path: Path) -> None:
    model = good_target()
    model.write(tmp_path / "big")
    with (tmp_path / "big" / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(
        ConfigError,
        match="the file has 1099511627776 bytes, and a configuration at most 16777216",
    ):
        load_target(tmp_path / "big")


def test_header_that_a_sparse_file_could_hold(tmp_path: Path) -> None:
    model = good_target()
    model.weights.header_length = 1 << 39
    model.write(tmp_path / "sparse")
    with (tmp_path / "sparse" / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        CheckpointError,
        match="the header claims 549755813888 bytes, expected 2 to 100000000 in a file",
    ):
        load_target(tmp_path / "sparse")


def _corrupted(random: np.random.Generator, text: bytes) -> bytes:
    """Change a few bytes to ones that JSON or the header length care about."""
    damaged = bytearray(text)
    for position in random.integers(len(damaged), size=random.integers(1, 4)):
        damaged[position] = random.choice(list(b'0179-.,:{}[]"\\eE \x00\xff'))
    return bytes(damaged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "base",
    [
        "target",
        "drafter",
        "dflash2 drafter",
        "nvfp4 target",
        "compressed nvfp4 target",
        "gpt_oss target",
        "nvfp4 qwen3_5 target",
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_random_damage_never_escapes_the_error_family(
    tmp_path: Path, base: str, file: str
) -> None:
    model = GOOD[base]()
    model.write(tmp_path / base)
    path = tmp_path / base / file
    intact = path.read_bytes()
    header_end = 8 + len(json.dumps(model.weights.header))
    random = np.random.default_rng(0)
    messages = []
    for _ in range(400):
        path.write_bytes(_corrupted(random, intact[:header_end]) + intact[header_end:])
        try:
            check_finite(LOADERS[base.split()[-1]](tmp_path / base))
        except DFlashError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(str(tmp_path) in message and len(message) < 4000 for message in messages)
