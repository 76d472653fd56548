"""The ports of targets whose layers keep a state, and what they take."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.builder.pair_support import published_target
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import (
    HISTORY,
    LOOKUP_INPUTS,
    LOOKUP_OUTPUTS,
    IoTensor,
    step_io,
)
from trtllm_dflash.engine_dir.slot_memory import SlotMemory
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig

Change = Callable[[dict[str, Any]], object]
LINEAR = LinearAttentionConfig(2, 6, 12, 10, 4, fused_projections=False)
COLUMNS = 2 * 2 * 12 + 6 * 10 + 2 * 6
ARE_LINEAR = (True, True, False, True, False)


def hybrid(target: TargetConfig) -> TargetConfig:
    """Return the configuration with linear attention in three of five layers."""
    return replace(target, linear_attention=LINEAR, by_layer={"is_linear": ARE_LINEAR})


@pytest.fixture(scope="module")
def config(make_target: Callable[..., Path]) -> TargetConfig:
    return hybrid(load_target(make_target("qwen3", tied=True)).config)


def ports_of(config: TargetConfig, **options: Any) -> dict[str, IoTensor]:
    sizes = {"dtype": "float32", "cache_len": 256, "block_size": 4} | options
    return {port.name: port for port in step_io(config, None, **sizes)}


def test_states_stand_for_keys_and_values_of_linear_layers(config: TargetConfig) -> None:
    ports = ports_of(config)
    caches = [name for name, port in ports.items() if port.cache and port.direction == "input"]
    assert caches == [
        *("target_window.0", "target_state.0", "target_window.1", "target_state.1"),
        *("target_key.2", "target_value.2", "target_window.3", "target_state.3"),
        *("target_key.4", "target_value.4", "history"),
    ]
    assert ports["target_window.1"].shape == ("batch", 1, 3 + 3, COLUMNS)
    assert ports["target_state.3.out"].shape == ("batch", 6, 12, 10)
    assert ports["target_state.3.out"].aliases == "target_state.3"
    names = list(ports)
    assert names[names.index("past_len") + 1] == "state_len"
    assert names[names.index("next_len") + 1] == "next_state_len"
    recurrent = {name for name, port in ports.items() if port.recurrent}
    assert recurrent == {name for name in ports if "_window." in name or "_state." in name}
    assert "recurrent" not in ports["target_key.2"].to_json()


def test_a_plain_engine_has_no_room_for_drafts(config: TargetConfig) -> None:
    assert ports_of(config, block_size=1)["target_window.0"].shape[2] == 3


def test_other_targets_have_no_state(config: TargetConfig) -> None:
    names = ports_of(replace(config, by_layer={}, linear_attention=None))
    assert not {"state_len", "next_state_len", "target_state.0"} & set(names)
    assert "target_key.0" in names


def test_fp8_caches_touch_keys_and_values_alone(config: TargetConfig) -> None:
    ports = ports_of(config, dtype="bfloat16", kv_cache_dtype="float8e4m3fn", plugins=True)
    assert ports["target_key.2"].dtype == "float8e4m3fn"
    assert ports["target_window.0"].dtype == "bfloat16"
    assert ports["target_state.0"].dtype == "float32"


def test_traffic_and_memory_of_a_published_target() -> None:
    """Snapshots of every row would move 2567 MB a step."""
    target = published_target("Qwen/Qwen3.6-27B")
    assert target is not None
    found = {}
    for cache_len in (2112, 32832):
        io = step_io(target.config, None, dtype="bfloat16", cache_len=cache_len, block_size=16)
        found[cache_len] = SlotMemory.of(io, cache_len=cache_len)
    short, long = found.values()
    assert short.state_traffic <= 340e6
    assert short.window_bytes <= 18e6
    assert short.state_bytes == 48 * 48 * 128 * 128 * 4
    assert short.window_bytes == 48 * (3 + 15) * (10240 + 96) * 2
    assert short.token_bytes == 16 * 2 * 4 * 256 * 2 + 4 == (1 << 16) + 4
    assert long.fixed_bytes == short.fixed_bytes
    assert long.key_value_bytes == 32832 * long.token_bytes
    assert long.token_bytes == short.token_bytes


@pytest.fixture(scope="module")
def written(built_engine: Path, config: TargetConfig) -> dict[str, Any]:
    """Return what a build of the hybrid target would write, beside the built engine's drafter."""
    data: dict[str, Any] = json.loads((built_engine / "config.json").read_text())
    lookup = {port.name for port in (*LOOKUP_INPUTS, *LOOKUP_OUTPUTS)}
    drafts = [
        row for row in data["io"] if row.get("cache") == "drafter" or row["name"] in lookup
    ]
    ports = step_io(
        config, None, dtype="float32", cache_len=256, block_size=4, gather_logits=True
    )
    # With a drafter the history counts with its caches.
    own = [port.to_json() for port in ports if port.name.split(".")[0] != HISTORY]
    data["io"] = [*own, *drafts]
    return json.loads(json.dumps(data))  # type: ignore[no-any-return]


def test_the_table_is_read_back(written: dict[str, Any]) -> None:
    found = EngineConfig.from_json(written, "config.json")
    assert found.has_states
    assert [port.recurrent for port in found.io].count(True) == 2 * 2 * 3


def rows_of(config: dict[str, Any], stem: str) -> list[dict[str, Any]]:
    """Return the row of an input, and that of its output."""
    return [row for row in config["io"] if row["name"] in (stem, f"{stem}.out")]


def set_both(stem: str, **values: Any) -> Change:
    """Change an input and its output alike, so that they still agree."""
    return lambda config: [row.update(values) for row in rows_of(config, stem)]


def drop(*stems: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        for stem in stems:
            for row in rows_of(config, stem):
                config["io"].remove(row)

    return change


def rename(old: str, new: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        for row in rows_of(config, old):
            row["name"] = row["name"].replace(old, new)
            if "aliases" in row:
                row["aliases"] = new

    return change


WINDOW = ["batch", 1, 6, COLUMNS]
CASES: dict[str, tuple[Change, str]] = {
    "no length of the states": (drop("state_len"), "state_len is missing: every step has"),
    "no length after the step": (drop("next_state_len"), "next_state_len is missing"),
    "a length of another type": (set_both("state_len", dtype="int64"), 'dtype is "int64"'),
    "a state that is rows": (
        set_both("target_state.1", recurrent=None),
        r'target_state\.1": recurrent is null, expected true',
    ),
    "rows that are a state": (
        set_both("target_key.2", recurrent=True),
        r'target_key\.2": recurrent is true, expected null',
    ),
    "no truth": (set_both("target_state.1", recurrent=1), "recurrent is 1, expected true"),
    "a word": (set_both("target_state.1", recurrent="yes"), 'recurrent is "yes", expected'),
    "a lie": (set_both("target_state.1", recurrent=False), "recurrent is false, expected true"),
    "no state at all": (
        lambda config: [row.pop("recurrent", None) for row in config["io"]],
        '"state_len" is no input or output|recurrent is null',
    ),
    "a window without its state": (
        drop("target_state.0"),
        r"target layer 0 has the caches window, expected key and value, or window and state",
    ),
    "a state beside keys": (
        rename("target_window.0", "target_window.2"),
        "target layer 2 has the caches window, key, value, expected",
    ),
    "a drafter's state": (
        rename("target_state.0", "draft_state.0"),
        r'"draft_state\.0" is no input or output',
    ),
    "a state of another type": (
        set_both("target_state.0", dtype="bfloat16"),
        r"target_state\.0 is of bfloat16, expected float32",
    ),
    "a window of another type": (
        set_both("target_window.0", dtype="bfloat16"),
        r"target_window\.0 is of bfloat16, expected float32",
    ),
    "a window of codes": (
        set_both("target_window.0", dtype="float8e4m3fn"),
        r"target_window\.0 is of float8e4m3fn, expected float32",
    ),
    "a window without room for a block": (
        set_both("target_window.3", shape=["batch", 1, 3, COLUMNS]),
        r"target_window\.3 has 1 × 3 rows, expected 1 × at least 4",
    ),
    "a window of heads": (
        set_both("target_window.3", shape=["batch", 2, 6, COLUMNS]),
        r"target_window\.3 has 2 × 6 rows",
    ),
    "columns of no head": (
        set_both("target_window.3", shape=["batch", 1, 6, COLUMNS + 1]),
        f"{COLUMNS + 1} columns, and no number of key heads of 12",
    ),
    "a state too large for its window": (
        set_both("target_state.3", shape=["batch", 96, 12, 10]),
        f"{COLUMNS} columns, and no number of key heads",
    ),
    "a state with a symbol": (
        set_both("target_state.3", shape=["batch", 6, "width", 10]),
        "expected that of a cache",
    ),
    "an output of another size": (
        lambda config: rows_of(config, "target_state.3")[1].update(shape=["batch", 6, 10, 12]),
        r'target_state\.3\.out": shape is',
    ),
    "another state's memory": (
        lambda config: rows_of(config, "target_state.3")[1].update(aliases="target_state.1"),
        'aliases is "target_state.1", expected "target_state.3"',
    ),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_lies_are_refused_in_words(written: dict[str, Any], change: Change, words: str) -> None:
    config = copy.deepcopy(written)
    change(config)
    with pytest.raises(ConfigError, match=f"^config.json: .*({words})"):
        EngineConfig.from_json(config, "config.json")


def test_a_state_len_without_states(built_engine: Path) -> None:
    config = json.loads((built_engine / "config.json").read_text())
    port = {"name": "state_len", "direction": "input", "dtype": "int32", "shape": ["batch"]}
    config["io"].append(port)
    with pytest.raises(ConfigError, match='"state_len" is no input or output'):
        EngineConfig.from_json(config, "config.json")
