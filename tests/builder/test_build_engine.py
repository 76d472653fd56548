"""A CPU engine directory from a tiny pair; and when the build dies, however it dies, nothing is
left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_models import write_safetensors
from tests.patience import PATIENCE
from trtllm_dflash.atomic.work_folder import LOCK_FILE
from trtllm_dflash.builder.build_engine import build_engine, plan_build
from trtllm_dflash.builder.job import BuildRequest
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import JOINED
from trtllm_dflash.engine_dir.io_tensors import step_io
from trtllm_dflash.errors import BuildError, CheckpointError, UsageError
from trtllm_dflash.options.build import BuildConfig

Configure = Callable[..., BuildConfig]
ort = pytest.importorskip("onnxruntime")
from trtllm_dflash.runtime.sessions.ort import OrtSession


def _files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _worker_pids() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8")
    found = []
    for pid in children.split():
        with suppress(FileNotFoundError):  # it has just ended
            if b"builder.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def test_an_engine_directory_is_complete_and_checked(cpu_engine: Path) -> None:
    assert _files(cpu_engine) == {
        "build.log",
        "config.json",
        "manifest.json",
        "model.onnx",
        "rank0.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert manifest.check(cpu_engine, deep=True) == []
    facts = manifest.load(cpu_engine)
    assert facts["arch"] == "cpu"
    assert facts["backend"] == "onnxruntime"
    assert facts["argv"] == ["dflash-trt", "build"]
    assert facts["platform"].keys() == {"machine", "system", "libc"}
    assert {"dflash-trt", "python", "onnx", "onnx-ir", "onnxruntime"} <= facts[
        "versions"
    ].keys()
    assert [source["model"] for source in facts["weights"]] == ["target", "drafter"]
    assert facts["graph"] == facts["files"]["model.onnx"]["sha256"]


def test_config_json_has_the_sizes_and_the_io_table(
    cpu_engine: Path, pair: dict[str, str], config: Configure
) -> None:
    data = json.loads((cpu_engine / "config.json").read_text())
    assert data["pretrained_config"] == {
        "model_type": "llama",
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_size": 16,
        "intermediate_size": 80,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "eos_token_ids": [95],
        "bos_token_id": None,
        "dtype": "float32",
        "quantization": {
            "quant_algo": None,
            "quantized_linears": {},
            "kv_cache_quant_algo": None,
        },
    }
    sizes = data["build_config"]
    assert (sizes["max_seq_len"], sizes["max_batch_size"], sizes["cache_len"]) == (64, 2, 128)
    assert data["dflash"]["layers"] == [
        {"causal": True, "window": 6},
        {"causal": True, "window": 6},
        {"causal": False, "window": 0},
    ]
    assert data["dflash"]["target_layer_ids"] == [0, 1, 2, 3]
    prepared = plan_build(config())
    assert prepared.drafter is not None
    tensors = step_io(
        prepared.target.config,
        prepared.drafter.config,
        dtype="float32",
        cache_len=128,
        block_size=4,
        ring_width=sizes["max_num_tokens"],
        gather_logits=True,
    )
    assert data["io"] == [json.loads(json.dumps(tensor.to_json())) for tensor in tensors]


def test_the_directory_is_self_contained(engine: Path) -> None:
    moved = engine.rename(engine.with_name("elsewhere"))
    session = ort.InferenceSession(moved / "model.onnx", providers=["CPUExecutionProvider"])
    names = {port["name"] for port in json.loads((moved / "config.json").read_text())["io"]}
    assert {value.name for value in (*session.get_inputs(), *session.get_outputs())} == names
    assert (moved / "model.onnx").stat().st_size < (
        moved / "rank0.safetensors"
    ).stat().st_size / 2


def test_weights_keep_their_values(cpu_engine: Path, pair: dict[str, str]) -> None:
    written = read_tensor_infos(cpu_engine / "rank0.safetensors")
    unread = {name: info.array() for name, info in written.items()}
    for model in ("target", "drafter"):
        for name, info in read_tensor_infos(Path(pair[model]) / "model.safetensors").items():
            holder = next(one for one in written if f"{model}.{name}" in unjoined(one))
            expected = info.array()
            rows = unread[holder][: len(expected)]  # of those that are joined the next ones
            np.testing.assert_array_equal(rows, expected)
            unread[holder] = unread[holder][len(expected) :]
    assert not any(len(rest) for name, rest in unread.items() if JOINED in name)


def unjoined(name: str) -> list[str]:
    """Return the names in the checkpoints of what a tensor of an engine holds."""
    modules, _, kind = name.rpartition(".")
    return [f"{module}.{kind}" for module in modules.split(JOINED)]


def test_a_bfloat16_checkpoint_is_converted(
    make_target: Callable[..., Path], make_drafter: Callable[..., Path], config: Configure
) -> None:
    target = make_target("qwen3", tied=True, dtype="BF16")
    report = build_engine(
        config(target=str(target), drafter=str(make_drafter(target, dtype="BF16")))
    )
    written = read_tensor_infos(report.directory / "rank0.safetensors")
    assert {info.dtype for info in written.values()} == {"F32"}
    name = "model.layers.4.mlp.down_proj.weight"
    original = read_tensor_infos(target / "model.safetensors")[name].array()
    np.testing.assert_array_equal(
        written[f"target.{name}"].array(), original.astype(np.float32)
    )


def test_a_plain_engine_has_no_drafter(config: Configure) -> None:
    report = build_engine(config(drafter=None))
    data = json.loads((report.directory / "config.json").read_text())
    assert data["dflash"] is None
    assert not [port for port in data["io"] if port.get("cache") == "drafter"]
    assert report.resolved.draft_len == 0


def test_the_report_and_the_log_say_what_it_cost(
    config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trtllm_dflash")
    phases: list[str] = []
    report = build_engine(config(), progress=lambda phase, *_: phases.append(phase))
    assert report.seconds > 0
    assert report.bytes == sum(path.stat().st_size for path in report.directory.iterdir())
    assert 20_000_000 < report.peak_memory < 2_000_000_000
    assert re.search(
        r"built the engine: took \d+\.\d s, wrote \d.* [kM]B, peak memory .* MB", caplog.text
    )
    for words in (
        "building the engine with:",
        "up to 64 tokens, in caches of 128 rows",
        "84 tensors",
        "a slot",
    ):
        assert words in caplog.text
    assert "building the engine with:" in (report.directory / "build.log").read_text()
    assert list(dict.fromkeys(phases)) == [
        "checking the target",
        "checking the drafter",
        "writing weights",
        "hashing the engine",
    ]


def test_folders_whose_names_are_no_text_are_built_and_run(
    pair: dict[str, str], config: Configure, tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9")
    target = shutil.copytree(pair["target"], tmp_path / f"t{name}")
    directory = build_here(
        config(target=str(target), drafter=None, output_dir=tmp_path / f"e{name}")
    )
    assert manifest.check(directory, deep=True) == []
    (source,) = manifest.load(directory)["weights"]
    assert source["directory"] == str(target)
    OrtSession(directory, EngineConfig.load(directory), num_threads=1)


def test_overwrite_replaces_an_engine(config: Configure) -> None:
    first = build_engine(config())
    with pytest.raises(UsageError, match=r"engine is not empty; give another, or --overwrite"):
        build_engine(config())
    build_engine(config(max_seq_len=48), overwrite=True)
    assert (
        json.loads((first.directory / "config.json").read_text())["build_config"]["max_seq_len"]
        == 48
    )
    assert _files(first.directory.parent) == {"engine"}


def test_a_weight_that_is_not_finite_leaves_nothing(
    pair: dict[str, str], config: Configure, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(pair["drafter"], tmp_path / "bad"))
    arrays = {
        name: np.array(info.array())
        for name, info in read_tensor_infos(bad / "model.safetensors").items()
    }
    arrays["fc.weight"][3, 7] = np.nan
    write_safetensors(bad / "model.safetensors", arrays)
    with pytest.raises(
        CheckpointError, match=r"(?s)fc.weight has nan at index \[3, 7\].*The builder's log is"
    ):
        build_engine(config(drafter=str(bad)))
    assert _files(tmp_path) == {"bad"}


def test_a_killed_builder_leaves_nothing_but_its_log(config: Configure, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(phase: str, *_: int) -> None:
        if (
            phase == "checking the drafter" and not killed
        ):  # events that it had sent before may follow
            assert all(name.startswith(".engine.building") for name in _files(tmp_path))
            killed.extend(_worker_pids())
            (pid,) = killed
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(BuildError, match=r"killed by signal 9 \(SIGKILL\)") as caught:
        build_engine(config(), progress=kill)
    assert killed
    assert not list(tmp_path.iterdir())
    log = re.search(r"Its log is (\S+), and ends", str(caught.value))
    assert log
    assert "building the engine with:" in Path(log[1]).read_text(encoding="utf-8")


def test_an_interrupt_leaves_nothing_and_no_process(
    config: Configure, tmp_path: Path, logs: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(config(), progress=interrupt)
    assert not list(tmp_path.iterdir())
    assert not list(logs.iterdir())
    assert not _worker_pids()


def test_a_directory_that_cannot_be_written_is_an_error(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", fail)
    with pytest.raises(
        BuildError,
        match=r"engine was not written: the disk of .* is full$",
    ):
        build_engine(config())
    assert not list(tmp_path.iterdir())


def test_a_worker_whose_parent_vanishes_cleans_up_and_stops(
    config: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / ".engine.building-x"
    staging = folder / "new"
    staging.mkdir(parents=True)
    (folder / LOCK_FILE).touch()
    (staging / "half a file").touch()
    worker = subprocess.Popen(
        [sys.executable, "-m", "trtllm_dflash.builder.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    request = BuildRequest(config(), staging).to_json()
    worker.communicate(request.encode() + b"\n", timeout=PATIENCE)  # and closes its stdin
    assert worker.returncode == 1
    assert not folder.exists()


def test_sigterm_of_the_caller_leaves_nothing(pair: dict[str, str], tmp_path: Path) -> None:
    options = {**pair, "output-dir": str(tmp_path / "engine")}
    command = [sys.executable, "-m", "trtllm_dflash", "build"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(config: Configure, tmp_path: Path) -> None:
    rows = dict(summary_rows(plan_build(config())))
    assert rows["masks"] == "layers 0-1 causal within 6, layer 2 bidirectional"
    assert rows["taps"] == "outputs of target layers 0, 1, 2, 3"
    # 5 layers x 2 caches x 2 heads x 16 and 1 x 2 x 3 heads x 8 of 128 rows of 4 bytes, 2 x 2 x 3 x
    # 8 of 80 rows; 128 token ids of 4 bytes
    assert rows["caches"] == "219.6 kB a slot"
    assert rows["rings"] == "2 layers of 80 rows"  # 6 - 1 + 63 + 4, in whole 16
    assert rows["weights"] == "84 tensors, 796.8 kB as float32; 0 converted"
    assert not list(tmp_path.iterdir())
