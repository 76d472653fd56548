"""The benchmark commands work, on a sample: the figures in their README come from the whole run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.examples.scripts import ROOT, example
from tests.patience import PATIENCE
from trtllm_dflash.profile.load import load

pytestmark = [pytest.mark.slow, pytest.mark.demo]


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_speed_compares_all_systems(tmp_path: Path) -> None:
    """Both sides and the reference on two prompts; every text equal."""
    pytest.importorskip("dflash")
    options = (
        "--limit",
        "1",
        "--max-tokens",
        "8",
        "--draft-lens",
        "3",
        "--json",
        str(tmp_path / "speed.json"),
    )
    assert "reference" in _run("benchmark/speed.py", *options)
    totals = json.loads((tmp_path / "speed.json").read_text())["totals"]
    assert {"heldout", "unseen"} <= totals.keys()
    for sides in totals.values():
        assert {side: total["same_text"] for side, total in sides.items()} == dict.fromkeys(
            ("plain", "draft 3", "reference"), sides["plain"]["prompts"]
        )


def test_linear_attention_is_measured(tmp_path: Path) -> None:
    options = (
        "--target",
        "Qwen3.5-4B",
        "--block-sizes",
        "16",
        "--widths",
        "1",
        "--repeats",
        "2",
    )
    _run("benchmark/linear_attention.py", *options, "--json", str(tmp_path / "cost.json"))
    (row,) = json.loads((tmp_path / "cost.json").read_text())["layers"]
    assert row["linears_ms"] > 0
    assert row["rest_ms"] > 0


@pytest.mark.demo("plain-int8", "int8")
def test_nodes_of_a_step_are_measured(tmp_path: Path) -> None:
    """Rows of each engine, and a goal that a made-up share reaches."""
    engines = ("demo/plain-int8", "demo/int8")
    out = _run(
        "benchmark/step_nodes.py", *engines, "--steps", "3", "--json", f"{tmp_path}/n.json"
    )
    assert "Goal, one row of plain-int8: at most 20% other." in out
    facts = json.loads((tmp_path / "n.json").read_text())
    found = [(row["engine"], row["rows"]) for row in facts["steps"]]
    assert found == [("plain-int8", 1), ("plain-int8", 4), *(("int8", n) for n in (1, 4, 8))]
    assert all(row["products_ms"] > row["attention_ms"] > 0 for row in facts["steps"])
    facts["steps"][0]["other_share"] = 0.2
    assert "20.0%: reached." in example("benchmark/step_nodes.py").markdown(facts)


def test_experts_are_measured(tmp_path: Path) -> None:
    """Integers are smaller and faster, and ratios are float32's time over theirs."""
    sizes = ("--layers", "1", "--experts", "16", "--vocab-size", "512", "--rounds", "3")
    out = _run("benchmark/experts.py", *sizes, "--json", f"{tmp_path}/experts.json")
    facts = json.loads((tmp_path / "experts.json").read_text())
    gigabytes = facts["engine_gb"]
    assert gigabytes["int4"] < 0.7 * gigabytes["int8"] < 0.25 * gigabytes["float32"]
    assert [(row["kind"], row["tokens"]) for row in facts["rows"]] == [
        *(("step", count) for count in (1, 4, 8)),
        ("prompt", 64),
    ]
    first = facts["rows"][0]["ms"]
    ratio = first["float32"] / first["int8"]
    assert ratio > 1
    assert f"({ratio:.1f}× as fast)" in out


def test_build_cost_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _run("benchmark/build_cost.py", "--layers", "2", "--json", str(tmp_path / "cost.json"))
    (row,) = json.loads((tmp_path / "cost.json").read_text())["builds"]
    assert row["layers"] == 2
    assert row["seconds"] > 0


def test_layer_costs_are_on_a_line() -> None:
    """Two layers more cost 6 units, so that one costs 3 and ten cost 34."""
    script = example("benchmark/layer_cost.py")
    common = {"arch": "sm120", "format": "bf16", "kernels": True}
    costs = (dict.fromkeys(script.COSTS, 10 + 3 * (layers - 2)) for layers in (4, 2))
    rows = [common | cost | {"layers": n} for n, cost in zip((4, 2), costs, strict=True)]
    two, four, layer, whole = script.with_lines(rows, 10)
    assert (two["layers"], four["layers"]) == (2, 4)
    assert whole["layers"] == "10, by the line"
    for name in script.COSTS:
        assert (layer[name], whole[name]) == pytest.approx((3, 34))


@pytest.mark.parametrize("name", ["layer cost", "layer cost dflash2"])
def test_layer_cost_table_has_the_measured_figures(name: str) -> None:
    script = example("benchmark/layer_cost.py")
    folder = ROOT / "examples" / "benchmark"
    facts = json.loads((folder / f"{name.replace(' ', '_')}.json").read_text())
    page = (folder / "README.md").read_text()
    table = page.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
    whole = script.all_layers(facts["provenance"]["pair"])
    assert table == script.markdown(facts["builds"], whole)


def test_engine_of_a_whole_dflash_2_pair_is_the_stated_one() -> None:
    """By the line through its builds, with the rest of the vocabulary."""
    script = example("benchmark/layer_cost.py")
    folder = ROOT / "examples" / "benchmark"
    built = json.loads((folder / "layer_cost_dflash2.json").read_text())["builds"]
    last = script.with_lines(built, 64)[-1]
    assert (len(built), last["layers"]) == (3, "64, by the line")
    tokens = 248320 - 16384
    vocabulary = tokens * 2 * (2 * 5120 + 2 * 256)  # embedding, head and codebooks in BF16
    whole = last["plan_bytes"] + vocabulary
    assert f"engine of {whole / 1e9:.1f} GB" in (folder / "README.md").read_text().replace(
        "\n", " "
    )
    assert f"{vocabulary / 1e9:.1f} GB more" in (folder / "README.md").read_text()


def test_a_whole_drafter_has_its_layers_and_taps() -> None:
    """Spread over a target of fewer layers; the drafter that is cut has one of each."""
    script = example("benchmark/layer_cost.py")
    whole = script.drafter_config("Qwen3.8-27B", 12, 300, True)
    assert whole["target_layer_ids"] == [0, 2, 5, 8, 10]
    assert (whole["num_hidden_layers"], whole["selector_rank"]) == (5, 256)
    cut = script.drafter_config("Qwen3.8-27B", 12, 300, False)
    assert (cut["target_layer_ids"], cut["num_hidden_layers"]) == ([10], 1)
    for config in (whole, cut):
        assert (config["vocab_size"], config["mask_token_id"]) == (300, 299)
        assert len(config["layer_types"]) == config["num_hidden_layers"]


def test_quantization_table_has_the_measured_figures() -> None:
    script = example("benchmark/quantization.py")
    facts = json.loads((ROOT / "examples" / "benchmark" / "quantization.json").read_text())
    page = (ROOT / "docs" / "quantization.md").read_text()
    table = page.split("<!-- quantization -->\n")[1].split("<!-- /quantization -->")[0]
    assert table == script.markdown(facts)
    cases = {case.label: case for case in script.all_cases()}
    largest = 3 * facts["checkpoint_bytes"]
    measured = [row["label"] for row in facts["rows"]]
    assert measured == [label for label in cases if label in measured]
    for row in facts["rows"]:
        assert row.get("linears") is None or row["linears"] <= (
            0.51 if "FP8" in row["name"] else 0.30
        )
        assert row["perplexity"] > 1
        case = cases[row["label"]]
        assert (row["quantize_memory"] is not None) == (case.quant is not None)
        assert ("gpu_build_memory" in row) == (case.weight_only is None)
        for memory in ("quantize_memory", "cpu_build_memory", "gpu_build_memory"):
            assert row.get(memory) is None or 0 < row[memory] <= largest


def test_quantization_memory_is_that_of_the_process() -> None:
    """Of a process and its children together, pages of files left out."""
    script = example("benchmark/quantization.py")
    child = (
        "data = bytearray(1 << 27); data[::4096] = bytes(len(data[::4096])); import time;"
        " time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    try:
        deadline, found = time.monotonic() + PATIENCE, 0
        while found < 1 << 27 and time.monotonic() < deadline:
            found = sum(map(script.anonymous_bytes, script.family(process.pid)))
        assert 1 << 27 <= found < 1 << 28
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert script.anonymous_bytes(process.pid) == 0


@pytest.mark.demo("plain-int8", "int8")
def test_compare_shows_both_answers() -> None:
    """What `make demo` shows at its end."""
    engines = ("demo/plain-int8", "demo/int8")
    question = ("Name three fruits.", "--max-tokens", "16")
    out = _run("demo_pair/compare.py", *engines, *question)
    assert "the same text" in out
    assert "plain decoding, int8" in out


def test_auto_has_goals_at_each_batch_size() -> None:
    script = example("benchmark/drafts.py")
    measured = load(ROOT / "examples" / "benchmark" / "profile_batches.json")
    lines = script.by_batch(measured).splitlines()[2:5]
    for batch, line in zip((1, 2, 4), lines, strict=True):
        plain, fixed, auto = [one for one in measured.results if one.batch == batch]
        assert (plain.system, fixed.auto, auto.auto) == ("plain", False, True)
        assert line.startswith(f"| {batch} |")
        for other, least in ((plain, 0.98), (fixed, 0.97)):
            ratio = auto.tokens_per_second / other.tokens_per_second
            assert f"{ratio:.3f}: {'reached' if ratio >= least else 'missed'}" in line


def test_drafts_by_kind_have_goals_reached_or_missed() -> None:
    """The measured profile, with an `auto` made up of its best number, and a text that differs."""
    script = example("benchmark/drafts.py")
    measured = load(ROOT / "examples" / "benchmark" / "profile_lookup.json")
    fixed = [one for one in measured.results if not one.auto]
    both = [one for one in fixed if one.drafts == "both"]
    best = max(both, key=lambda one: one.tokens_per_second)
    plain = next(one for one in measured.results if one.system == "plain")
    kinds = [
        replace(row, tokens_per_second_per_user=0.99 * row.tokens_per_second_per_user)
        for row in plain.by_category
    ]
    slow = plain.by_category[0].tokens_per_second_per_user / 2
    kinds[0] = replace(kinds[0], tokens_per_second_per_user=slow)
    rows = [replace(best.by_prompt[0], same_tokens=False), *best.by_prompt[1:]]
    auto = replace(
        best,
        auto=True,
        tokens_per_second=0.971 * best.tokens_per_second,
        by_category=kinds,
        by_prompt=rows,
        same_tokens=best.same_tokens - 1,
    )
    text = script.markdown(replace(measured, results=[*fixed, auto]))
    number = f"{best.draft_len} drafts"
    assert f"the best fixed number, {number}: at least 0.97 | 0.971 | reached |" in text
    kind = kinds[0].category
    assert f"`auto`, any kind: at least 0.98 | 0.500 ({kind}) | missed |" in text
    assert " | 0.50 [1 of 2 texts equal] |\n" in text
    count = sum(len(one.by_prompt) for one in [*fixed, auto] if one.drafts)
    assert f"{count - 1} of {count} texts are those of plain decoding: some are NOT." in text


def test_goals_are_reached_or_missed_by_ratios() -> None:
    """The tables of a race with made-up speeds: three systems, and a goal of each verdict."""
    script = example("benchmark/against_llama_cpp.py")
    race = script.Race({}, {})
    speeds = {"plain int8": 90, "DFlash int8": 170, "llama.cpp Q8_0": 100}
    speeds |= {"DFlash float32": 80, "llama.cpp F32": 50}
    race.sums["all"] = {
        name: script.Sum(2, speed, speed // 2, 1.0, 2) for name, speed in speeds.items()
    }
    text = script.markdown(script.facts_of(race, {"others_share": 0.02}))
    assert "| plain int8 ÷ llama.cpp Q8_0 | 1.0 | 0.90 | missed |" in text
    assert "| DFlash int8 ÷ llama.cpp Q8_0 | 1.6 | 1.70 | reached |" in text
    assert "| DFlash float32 ÷ llama.cpp F32 | 1.6 | 1.60 | reached |" in text
    assert "| plain int8 | 2 | 90.0 | 0.90 | 2.00 | 2 of 2 |" in text
    assert "Other processes used 2% of" in text


def test_what_serving_costs_is_held_against_goals() -> None:
    """The tables of made-up figures, with a goal of each verdict."""
    script = example("benchmark/serve.py")
    row = {"tokens_per_second": 90.5, "ttft_ms": 12.0, "tpot_ms": 8.0}
    result = {
        "requests": 32,
        "at_once": 8,
        "max_tokens": 48,
        "num_threads": 1,
        "rounds": 5,
        "date": "2026-11-30",
        "systems": {"scheduler": row, "serve": row, "triton": row},
        "throughput_ratios": {"serve/scheduler": 0.969, "serve/triton": 1.0},
    }
    text = script.markdown(result)
    assert "32 chats in each of 5 rounds, 8 at once" in text
    assert "| serve | 90.5 | 12.0 | 8.0 |" in text
    assert "| serve ÷ scheduler | 0.97 | 0.969 | missed |" in text
    assert "| serve ÷ triton | 1 | 1.000 | reached |" in text


def test_systems_race_in_turns_and_texts_are_compared() -> None:
    script = example("benchmark/against_llama_cpp.py")
    order = []

    def answering(name: str, tokens: list[int]) -> object:
        def run(prompt: list[int]) -> object:
            order.append((name, prompt[0]))
            return script.Run(tokens, len(tokens) - 1, 0.5)

        return run

    names = ("plain int8", "DFlash int8", "llama.cpp Q8_0", "llama.cpp Q8_0 lookup")
    texts = ([1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 2, 5])
    fast = {name: answering(name, text) for name, text in zip(names, texts, strict=True)}
    race = script.Race(fast, {})
    race.run([("heldout", "code", [number]) for number in range(2)], 0)
    assert [name for name, number in order if number == 0] == list(names)
    assert [name for name, number in order if number == 1] == [*names[1:], names[0]]
    same = {name: total.same_text for name, total in race.sums["all"].items()}
    assert same == dict(zip(names, (2, 2, 2, 0), strict=True))
