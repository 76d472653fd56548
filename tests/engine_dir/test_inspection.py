"""What `inspect` reads out of an engine directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.tiny_hybrid import tiny_hybrid
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.inspection import inspect_engine
from trtllm_dflash.errors import EngineError
from trtllm_dflash.log import human_bytes


def _lines(directory: Path) -> dict[str, list[str]]:
    return {title.split(":")[0]: lines for title, lines in inspect_engine(directory).sections()}


def test_models_taps_block_ports_and_versions_are_shown(
    cpu_engine: Path, pair: dict[str, str]
) -> None:
    found = _lines(cpu_engine)
    overview = dict(line.split("  ", 1) for line in found[str(cpu_engine)])
    assert (
        overview["target"].strip()
        == f"llama, 5 layers, hidden size 48, vocabulary 97, from {pair['target']}"
    )
    assert overview["drafter"].strip() == f"3 layers, from {pair['drafter']}"
    assert overview["taps"].strip() == "outputs of target layers 0, 1, 2, 3"
    assert overview["masks"].strip() == "layers 0-1 causal within 6, layer 2 bidirectional"
    assert overview["block"].strip() == "4 tokens; run verifies as many drafts as pay"
    assert overview["mask id"].strip() == "96"
    assert overview["stop tokens"].strip() == "</s> (95)"
    ports = [line.split()[:2] for line in found["inputs and outputs"]]
    assert ["input", "input_ids"] in ports
    assert ["input", "draft_key.*"] in ports
    assert ["output", "target_value.*.out"] in ports
    # Caches of all layers are one row, and those of the layers with rings one more.
    assert len(ports) == 41
    lines = [line for line in found["inputs and outputs"] if line.split()[1] == "draft_key.*"]
    assert ["[batch, 3, 80, 8]" in lines[0], "[batch, 3, 128, 8]" in lines[1]] == [True, True]
    assert found["check"] == ["every file is what the build wrote"]
    assert "onnxruntime" in found["built with"][0]


@pytest.mark.slow
def test_states_are_shown_apart_from_keys_and_values(
    build_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    built = build_tiny(target=tiny_hybrid(tmp_path / "target", "qwen3_next"))
    found = _lines(built)
    overview = dict(line.split("  ", 1) for line in found[str(built)])
    # Two layers of two key heads of 16 numbers; the drafter's of three heads of 8.
    token = 2 * 2 * 2 * 16 * 4 + 3 * 2 * 3 * 8 * 4
    assert overview["caches"].strip() == f"FP32, {human_bytes(token)} a token of a slot"
    state, window = 4 * 9 * 12 * 10 * 4, 4 * (3 + 3) * 180 * 4
    assert overview["states"].strip() == (
        f"4 layers, float32, {human_bytes(state)} a slot at any length, and"
        f" {human_bytes(window)} of windows; a step reads and writes"
        f" {human_bytes(2 * (state + window))} of both"
    )
    meanings = {line.split()[1]: line for line in found["inputs and outputs"]}
    assert "a layer's state, updated in place" in meanings["target_state.*"]
    assert "a layer's window, updated in place" in meanings["target_window.*.out"]
    assert "a layer's cache, updated in place" in meanings["target_key.*"]


def test_differences_are_listed(engine: Path) -> None:
    (engine / "tokenizer.json").unlink()
    (engine / "rank0.safetensors").write_bytes(b"short")
    inspection = inspect_engine(engine)
    assert len(inspection.differences) == 2
    assert any(
        "rank0.safetensors has 5 bytes; the build wrote " in text
        for text in inspection.differences
    )
    assert any("tokenizer.json is missing" in text for text in inspection.differences)
    assert _lines(engine)["check"] == inspection.differences


def test_a_changed_config_is_a_difference_and_not_believed(engine: Path) -> None:
    (engine / "config.json").write_text('{"io": "nonsense"}')
    inspection = inspect_engine(engine)
    assert [text.split()[0] for text in inspection.differences] == ["config.json"]
    assert inspection.config == {}
    assert _lines(engine)["check"] == inspection.differences


def test_an_engine_with_the_keys_of_2026_11_is_shown(engine: Path) -> None:
    path = engine / "config.json"
    config = json.loads(path.read_text())
    config["build_config"]["gpu_arch"] = config["build_config"].pop("arch")
    config["pretrained_config"]["architecture"] = config["pretrained_config"].pop("model_type")
    path.write_text(json.dumps(config))
    facts = manifest.load(engine)
    manifest.write(engine, facts)
    overview = _lines(engine)[str(engine)]
    assert overview[0].startswith("target       llama, 5 layers")
    assert "built for    cpu by onnxruntime, float32" in overview


def test_it_can_be_written_as_json(cpu_engine: Path) -> None:
    data = json.loads(json.dumps(inspect_engine(cpu_engine).to_json()))
    assert data["differences"] == []
    assert data["config"]["dflash"]["block_size"] == 4


def test_something_else_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no manifest.json, so this is not an engine directory"
    ):
        inspect_engine(tmp_path)
