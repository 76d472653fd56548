"""An engine's config.json that contradicts itself, or that a newer version wrote, is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash import __version__
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.config_checks import newer_version
from trtllm_dflash.errors import ConfigError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def written(built_engine: Path) -> dict[str, Any]:
    """Return what the build wrote."""
    data: dict[str, Any] = json.loads((built_engine / "config.json").read_text())
    return data


def row_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = config["io"]
    return next(row for row in rows if row["name"] == name)


def set_row(name: str, /, **values: Any) -> Change:
    return lambda config: row_of(config, name).update(values)


def set_size(name: str, value: int) -> Change:
    return lambda config: config["build_config"].update({name: value})


def drop_row(name: str) -> Change:
    return lambda config: config["io"].remove(row_of(config, name))


CASES: dict[str, tuple[Change, str]] = {
    "another input's memory": (
        set_row("target_key.0.out", aliases="target_key.1"),
        r'target_key\.0\.out": aliases is "target_key.1", expected "target_key.0"',
    ),
    "an alias of nothing": (
        set_row("draft_value.1.out", aliases="nothing"),
        r'draft_value\.1\.out": aliases is "nothing", expected "draft_value.1"',
    ),
    "no alias": (
        set_row("target_key.0.out", aliases=None),
        'aliases is null, expected "target_key.0"',
    ),
    "an alias of an input": (
        set_row("target_key.0", aliases="target_key.1"),
        'aliases is "target_key.1", expected null',
    ),
    "an alias of a small output": (
        set_row("num_new", aliases="past_len"),
        'num_new: aliases is "past_len", expected null',
    ),
    "another type": (set_row("input_ids", dtype="float32"), "input_ids: dtype is .float32."),
    "a type nobody knows": (
        set_row("input_ids", dtype="complex64"),
        "expected float8e4m3fn or",
    ),
    "another length of a cache": (
        set_row("target_key.0", shape=["batch", 2, 7, 16]),
        r'target_key\.0\.out": shape is \["batch", 2, 7, 16\], expected \["batch", 2, 256',
    ),
    "a cache longer than all": (
        set_row("target_key.0", shape=["batch", 2, 10**6, 16]),
        "1000000 rows, expected at most cache_len",
    ),
    "a huge size": (set_row("target_key.0", shape=["batch", 2, 10**30, 16]), "the shape has 1"),
    "a negative size": (
        set_row("target_key.0", shape=["batch", -2, 7, 16]),
        "the shape has -2",
    ),
    "a flag as size": (set_row("target_key.0", shape=["batch", True, 7, 16]), "list of sizes"),
    "an unknown symbol": (set_row("input_ids", shape=["batch", "height"]), 'has "height"'),
    "another rank": (set_row("target_key.0", shape=["batch", 2]), "expected that of a cache"),
    "another symbol": (set_row("input_ids", shape=["batch", "rows"]), "input_ids: shape is"),
    "a turned direction": (set_row("past_len", direction="output"), "past_len: direction is"),
    "a direction nobody knows": (
        set_row("past_len", direction="up"),
        "expected input or output",
    ),
    "a cache of the other model": (
        set_row("target_key.0", cache="drafter"),
        'cache is "drafter", expected "target"',
    ),
    "a missing input": (drop_row("past_len"), "past_len is missing: every step has this input"),
    "a missing output": (drop_row("new_ids"), "new_ids is missing: every step has this output"),
    "a cache that is not written": (drop_row("target_key.0.out"), "not both an input and an"),
    "a name nobody knows": (set_row("past_len", name="past_length"), "past_len is missing"),
    "one more row": (
        lambda config: config["io"].append(row_of(config, "past_len") | {"name": "x"}),
        '"x" is no input or output that this version knows',
    ),
    "a row twice": (
        lambda config: config["io"].append(dict(row_of(config, "past_len"))),
        '"past_len" appears twice',
    ),
    "a name that is no text": (set_row("past_len", name=7), "must be texts"),
    "a meaning that is no text": (set_row("past_len", meaning=[]), "must be texts"),
    "prompts longer than sequences": (
        set_size("max_input_len", 192),
        "max_input_len is 192, expected at most 191, max_seq_len - 1",
    ),
    "sequences longer than caches": (
        set_size("max_seq_len", 4096),
        "max_seq_len is 4096, expected at most 256, cache_len",
    ),
    "caches of a billion rows": (set_size("cache_len", 10**9), "cache_len is 1000000000"),
    "caches longer than the table's": (set_size("cache_len", 512), "history: shape is"),
    "a billion slots": (set_size("max_batch_size", 10**9), "max_batch_size is 1000000000"),
    "steps wider than sequences": (set_size("max_num_tokens", 193), "max_num_tokens is 193"),
    "a block wider than a step": (
        set_size("max_num_tokens", 3),
        "block_size is 4, expected at",
    ),
    "more drafts than a block": (
        lambda config: config["dflash"].update(draft_len=4),
        "draft_len is 4, expected at most 3, block_size - 1",
    ),
    "another block": (
        lambda config: config["dflash"].update(block_size=5),
        "next_ids: shape is",
    ),
    "no drafter, but its caches": (
        lambda config: config.update(dflash=None),
        "next_ids: shape",
    ),
    "a negative stop token": (
        lambda config: config["pretrained_config"].update(eos_token_ids=[-1]),
        "eos_token_ids has -1",
    ),
    "a newer format": (
        lambda config: config.update(format=2, version="9.1.0"),
        r"has format 2, .* written by a newer dflash-trt \(its version is .9\.1\.0.\)",
    ),
    "a format that is no number": (lambda config: config.update(format="1"), 'format is "1"'),
    "a section nobody knows": (
        lambda config: config.update(vision={}),
        'the section "vision" is unknown. It was written by a newer dflash-trt',
    ),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_contradictions_are_refused(
    written: dict[str, Any], change: Change, words: str
) -> None:
    config = copy.deepcopy(written)
    change(config)
    with pytest.raises(ConfigError, match=f"^config.json: .*{words}"):
        EngineConfig.from_json(config, "config.json")


@pytest.mark.parametrize("missing", ["format", "min_p"])
def test_engines_of_earlier_versions_are_read(written: dict[str, Any], missing: str) -> None:
    """They have no format number, and lack sampling inputs that came later."""
    config = copy.deepcopy(written)
    if missing == "format":
        assert config.pop("format") == 1
    else:
        drop_row(missing)(config)
    assert EngineConfig.from_json(config, "config.json").vocab_size == 97


@pytest.mark.parametrize("version", ["99.0.0", f"{__version__}.1", "1" + __version__])
def test_a_newer_version_is_told(version: str) -> None:
    assert f'written by a newer dflash-trt ("{version}"' in (newer_version(version) or "")


@pytest.mark.parametrize("version", [__version__, "0.0.9", "", "dev", f"{__version__}+local"])
def test_other_versions_need_no_word(version: str) -> None:
    assert newer_version(version) is None
