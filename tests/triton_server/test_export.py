"""dflash-trt export-triton: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.cli import main
from trtllm_dflash.cli.export_triton import _summary
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.runtime.metric_table import METRICS
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.triton_server.export import (
    ExportReport,
    check_options,
    config_pbtxt,
    engine_digest,
)
from trtllm_dflash.triton_server.io_table import ALL_INPUTS, OUTPUTS
from trtllm_dflash.triton_server.readme import IMAGE, model_page
from trtllm_dflash.triton_server.settings import Settings

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export-triton", *map(str, arguments)])


def test_export_writes_a_model(tiny_engine: Path, tmp_path: Path) -> None:
    result = run(
        tiny_engine,
        "--output-dir",
        tmp_path / "models",
        "--name",
        "llm",
        "--cpu",
        "--instances",
        "2",
    )
    assert result.exit_code == 0, result.stderr
    model = tmp_path / "models" / "llm"
    assert f"model:  {model} (cpu, 8 sequences at a time, 2 instances)" in result.stdout
    assert sorted(path.name for path in model.rglob("*")) == [
        "1",
        "README.md",
        "config.pbtxt",
        "model.py",
    ]
    config = (model / "config.pbtxt").read_text()
    assert "instance_group [ { count: 2 kind: KIND_CPU } ]" in config
    assert f'key: "engine_dir" value {{ string_value: "{tiny_engine.resolve()}" }}' in config
    assert f'string_value: "{engine_digest(tiny_engine)}"' in config
    assert re.findall(r'name: "(\w+)" data_type', config) == [
        field.name for field in (*ALL_INPUTS.values(), *OUTPUTS)
    ]
    assert config.count("optional: true") == len(ALL_INPUTS)
    page = (model / "README.md").read_text()
    assert all(
        f"| `{field.name}` |" in page for field in (*ALL_INPUTS.values(), *OUTPUTS, *METRICS)
    )
    assert f"-v {tiny_engine.resolve()}:{tiny_engine.resolve()}:ro" in page
    assert "--gpus" not in page


def commands(page: str) -> list[list[str]]:
    """Return the words of each command of a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


@pytest.mark.parametrize("arch", ARCHS)
def test_readme_commands_fit_the_backend(tiny_engine: Path, arch: str) -> None:
    """An image with what running needs; two containers of it, each with its port; a question."""
    backend = BACKENDS[ARCHS[arch].backend]
    config = replace(EngineConfig.load(tiny_engine), gpu_arch=arch, backend=backend.name)
    image, server, question, frontend = commands(
        model_page("llm", config, engine=Path("/an engine"), chat=True)
    )
    assert image[:2] == ["docker", "build"]
    assert f"EXTRA={backend.run_extra}" in image
    for command, port in ((server, "8000:8000"), (frontend, "9000:9000")):
        assert command[:3] == ["docker", "run", "--rm"]
        assert ("--gpus" in command) == ARCHS[arch].is_gpu
        assert IMAGE in command
        options = list(pairwise(command))
        assert ("-p", port) in options
        mounted = [value for option, value in options if option == "-v"]
        assert mounted == ["$PWD:/models:ro", "/an engine:/an engine:ro"]
    assert ("--tokenizer", "/an engine") in list(pairwise(frontend))
    assert ("--default-max-tokens", "2048") in list(pairwise(frontend))
    copied = commands(model_page("llm", config, engine=None, chat=True))[3]
    assert ("--tokenizer", "/models/llm/1/engine") in list(pairwise(copied))
    assert json.loads(question[-1])["chat"] is True


def test_page_says_licence_and_template_options(tiny_engine: Path) -> None:
    config = replace(
        EngineConfig.load(tiny_engine), chat_template_kwargs={"enable_thinking": False}
    )
    page = model_page("llm", config, engine=None, chat=True, licence="MIT (its card)")
    assert "- the drafter's licence, and that of its weights in the engine: MIT (its card)" in (
        page
    )
    assert 'chats have the template options {"enable_thinking": false}' in page
    plain = model_page("llm", EngineConfig.load(tiny_engine), engine=None, chat=True)
    assert "licence" not in plain
    assert "template options" not in plain


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for backend in BACKENDS.values():
        for extra in filter(None, (backend.extra, backend.run_extra)):
            assert any(row.startswith(backend.package) for row in extras[extra])
        if backend.run_extra:  # the compiler is left out, and nothing else is added
            assert set(extras[backend.run_extra]) < set(extras[backend.extra])


def test_readme_asks_for_chat_only_with_a_template(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_template in (True, False):
        monkeypatch.setattr(Tokenizer, "has_chat_template", has_template)
        assert run(tiny_engine, "--output-dir", tmp_path, "--overwrite").exit_code == 0
        question = json.loads(commands((tmp_path / "dflash" / "README.md").read_text())[2][-1])
        assert question.get("chat", False) is has_template


def test_export_with_a_copy_needs_nothing_else(tiny_engine: Path, tmp_path: Path) -> None:
    assert run(tiny_engine, "--output-dir", tmp_path, "--copy").exit_code == 0
    copied = tmp_path / "dflash" / "1" / "engine"
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in tiny_engine.iterdir()
    }
    assert str(tiny_engine) not in (tmp_path / "dflash" / "config.pbtxt").read_text()
    assert str(tiny_engine) not in (tmp_path / "dflash" / "README.md").read_text()


def test_config_of_engines_on_gpus(tiny_engine: Path) -> None:
    config = replace(EngineConfig.load(tiny_engine), gpu_arch="sm120")
    two = TritonExportConfig(tiny_engine, Path("models"), instances=2, gpu_ids="0,3")
    text = config_pbtxt(two, config, Settings('/a "b"\\c', "0"))
    assert "instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 3 ] } ]" in text
    assert 'string_value: "/a \\"b\\"\\\\c"' in text
    one = TritonExportConfig(tiny_engine, Path("models"))
    assert "KIND_GPU } ]" in config_pbtxt(one, config, Settings("e", "0"))


@pytest.mark.parametrize(
    ("options", "arch", "words"),
    [
        ({}, "cpu", "1 instance"),
        ({"instances": 2}, "sm120", "2 instances on each GPU"),
        ({"gpu_ids": "3"}, "sm120", "1 instance on GPU 3"),
        ({"gpu_ids": "0,1"}, "sm120", "1 instance on each of the GPUs 0, 1: 2 in all"),
    ],
)
def test_summary_counts_instances(
    tiny_engine: Path, options: dict[str, Any], arch: str, words: str
) -> None:
    config = TritonExportConfig(tiny_engine, Path("models"), **options)
    report = ExportReport(
        Path("models/dflash"), replace(EngineConfig.load(tiny_engine), gpu_arch=arch)
    )
    assert f"8 sequences at a time, {words})" in _summary(config, report)


def test_export_overwrites_only_its_own_models(tiny_engine: Path, tmp_path: Path) -> None:
    assert run(tiny_engine, "--output-dir", tmp_path).exit_code == 0
    again = run(tiny_engine, "--output-dir", tmp_path)
    assert again.exit_code == 2
    assert "dflash exists. Give another --name or --output-dir, or --overwrite" in again.stderr
    assert (
        run(tiny_engine, "--output-dir", tmp_path, "--overwrite", "--instances", "3").exit_code
        == 0
    )
    assert "count: 3" in (tmp_path / "dflash" / "config.pbtxt").read_text()
    (tmp_path / "mine" / "1").mkdir(parents=True)
    (tmp_path / "mine" / "1" / "model.py").write_text("my own model")
    other = run(tiny_engine, "--output-dir", tmp_path, "--name", "mine", "--overwrite")
    assert other.exit_code == 2
    assert "replaces a model that an export wrote" in other.stderr
    assert (tmp_path / "mine" / "1" / "model.py").read_text() == "my own model"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--name", "../up"), "--name '../up': expected letters"),
        (("--instances", "0"), "--instances is 0, expected an integer of at least 1"),
        (("--gpu-ids", "0"), "--gpu-ids is for engines on GPUs, and this one is for the CPU"),
        (("--gpu-ids", "a,b"), "--gpu-ids is 'a,b', expected integers"),
        (("--gpus", "0"), "--gpu-ids is for engines on GPUs"),  # its older spelling
    ],
)
def test_export_refuses_wrong_options(
    tiny_engine: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    result = run(tiny_engine, "--output-dir", tmp_path / "models", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "models").exists()


def test_export_for_the_cpu_refuses_a_gpu_engine(tiny_engine: Path) -> None:
    config = replace(EngineConfig.load(tiny_engine), gpu_arch="sm120")
    with pytest.raises(
        UsageError,
        match="--cpu is for engines built with --arch cpu, and this one is for sm120",
    ):
        check_options(TritonExportConfig(tiny_engine, Path("models"), cpu=True), config)


def test_export_needs_an_engine_and_a_tokenizer(
    tiny_engine: Path, make_target: Callable[..., Path], tmp_path: Path
) -> None:
    nothing = run(tmp_path, "--output-dir", tmp_path / "models")
    assert (
        nothing.exit_code,
        "no config.json, so this is not an engine" in nothing.stderr,
    ) == (
        1,
        True,
    )
    build_engine(BuildConfig(str(make_target("llama")), tmp_path / "mute", max_seq_len=64))
    mute = run(tmp_path / "mute", "--output-dir", tmp_path / "models")
    assert (
        mute.exit_code,
        "no tokenizer.json, and requests to a server are text" in mute.stderr,
    ) == (1, True)
    damaged = shutil.copytree(tiny_engine, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{}")
    stale = run(damaged, "--output-dir", tmp_path / "models")
    assert (
        stale.exit_code,
        "is not what its build wrote: tokenizer.json has 2 bytes" in stale.stderr,
    ) == (1, True)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "config.pbtxt has no parameter engine_dir"),
        ({"engine_dir": "e", "engine_digest": ""}, "has no parameter engine_digest"),
        (
            {"engine_dir": "e", "engine_digest": "0", "num_threads": "0"},
            "num_threads is 0, expected an integer",
        ),
        (
            {"engine_dir": "e", "engine_digest": "0", "max_wating": "9"},
            "parameter max_wating, which this model does not know; did you mean max_waiting",
        ),
        (
            {"engine_dir": "e", "engine_digest": "0", "gpt_model_path": "x"},
            "gpt_model_path, which this model does not know. Its parameters are: engine_dir",
        ),
    ],
)
def test_settings_refuse_wrong_parameters(parameters: dict[str, str], words: str) -> None:
    config = {"parameters": {name: {"string_value": text} for name, text in parameters.items()}}
    with pytest.raises(EngineError, match=words):
        Settings.from_config(config)


def test_settings_survive_config_pbtxt() -> None:
    settings = Settings("e", "0", max_waiting=3, num_threads=2)
    rows = {name: {"string_value": text} for name, text in settings.parameters().items()}
    assert Settings.from_config({"parameters": rows}) == settings
    triton_own = {"EXECUTION_ENV_PATH": {"string_value": "/env"}}
    assert Settings.from_config({"parameters": rows | triton_own}) == settings
