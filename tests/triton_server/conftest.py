"""A real Triton server with models that `export-triton` has written: the tiny pair's, and the demo
pair's.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import DEMO, REQUIRE_ALL
from tests.fixtures.engines import with_fixed_drafts
from tests.fixtures.tiny_models import EOS_ID
from tests.patience import wait_for
from tests.triton_server.client import Client
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.triton_server.export import export

ROOT = Path(__file__).parents[2]
SLOTS, NARROW_QUEUE = 8, 2


def load_local_server() -> ModuleType:
    """Import the example's module, which is in no package."""
    spec = importlib.util.spec_from_file_location(
        "local_server", ROOT / "examples" / "triton" / "local_server.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["local_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


local_server = load_local_server()


@pytest.fixture(scope="session")
def tiny_engine(
    tmp_path_factory: pytest.TempPathFactory,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
) -> Path:
    """Build a CPU engine of a tiny pair whose tokenizer has a token for each ASCII character."""
    target = make_target("qwen3", tied=True, tokenizer=True, eos_token_ids=(EOS_ID,))
    output = tmp_path_factory.mktemp("engine") / "tiny"
    config = BuildConfig(
        str(target),
        output,
        drafter=str(make_drafter(target)),
        max_batch_size=SLOTS,
        max_seq_len=2000,
        max_input_len=1500,
        max_num_tokens=64,
    )
    build_engine(with_fixed_drafts(config))
    return output


@pytest.fixture(scope="session")
def oracle(tiny_engine: Path) -> Engine:
    """Load the same engine in this process, for the answers that `run` would give."""
    return Engine.load(tiny_engine, num_threads=1)


@pytest.fixture(scope="session")
def repository(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the models `tiny`, `narrow` (a short queue), `twins` (two instances) and `demo`."""
    path = tmp_path_factory.mktemp("repository")
    export(TritonExportConfig(tiny_engine, path, name="tiny", cpu=True))
    export(TritonExportConfig(tiny_engine, path, name="narrow", copy=True))
    export(TritonExportConfig(tiny_engine, path, name="twins", instances=2))
    config = path / "narrow" / "config.pbtxt"
    row = 'key: "max_waiting" value { string_value: "%s" }'
    text = config.read_text()
    assert row % 128 in text
    config.write_text(text.replace(row % 128, row % NARROW_QUEUE))
    if (DEMO / "cpu" / "manifest.json").exists():
        export(TritonExportConfig(DEMO / "cpu", path, name="demo"))
    return path


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`start(repository, **options)`: a server of the test's own with the model `tiny`, ended with
    it.
    """
    monkeypatch.setenv("DFLASH_NUM_THREADS", "1")
    started: list[Any] = []

    def make(repository: Path, **options: Any) -> Any:
        arguments = ("--model-control-mode=explicit", "--load-model=tiny")
        started.append(
            local_server.LocalServer(
                repository, tmp_path / "log", arguments=arguments, **options
            )
        )
        started[-1].wait_until_ready()
        return started[-1]

    yield make
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a server for all tests that leave it as it was, with the model `tiny`.

    Others are loaded on demand.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLASH_NUM_THREADS", "1")
        log = tmp_path_factory.mktemp("server") / "log"
        arguments = ("--model-control-mode=explicit", "--load-model=tiny")
        with local_server.LocalServer(repository, log, arguments=arguments) as running:
            running.wait_until_ready()
            yield running
        assert running.left_behind == []


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    """Make a client of the shared server; after each test its slots are empty, and no other model
    is loaded.
    """
    client = Client(server.http, server.metrics)
    yield client
    wait_for(lambda: client.metrics("tiny")["dflash_slots_in_use"] == 0)
    wait_for(lambda: client.models_that_run() == {"tiny"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the server's environment, tests of this folder that need it are skipped, and say so.

    pytest hands over the items of all folders, and others have fixtures of the same names.
    """
    if REQUIRE_ALL or local_server.packaged_servers():
        return
    folder = Path(__file__).parent
    for item in items:
        needs = {"server", "start"} & set(getattr(item, "fixturenames", ()))
        if needs and item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.skip(reason="no Triton server: run `make test-all`"))
