"""Fixtures shared by all tests: tiny checkpoints, made once a session by the factories of
tests/fixtures/tiny_models.py.
"""

from __future__ import annotations

import hashlib
import os

# Processes of a parallel run share the cores: pools of threads in each would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "DFLASH_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import weakref
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fixtures.tiny_models import tiny_drafter, tiny_target

DEMO = Path(__file__).parent.parent / "demo"
# `make test` has made the engines and the server's environment: there, what needs them fails
# without them.
REQUIRE_ALL = os.environ.get("DFLASH_REQUIRE_ALL") == "1"
# No extra of ours has these: what needs them may be skipped even then.
ELSEWHERE = frozenset({"speculators", "triton"})


@pytest.fixture(scope="session")
def random_cases(pytestconfig: pytest.Config) -> Callable[[int], int]:
    """`random_cases(n)`: how many of n random cases run. A third, or all with --whole-tables."""
    whole = pytestconfig.getoption("whole_tables")
    return lambda count: count if whole else -(-count // 3)


def shared_base(factory: pytest.TempPathFactory) -> Path:
    """Return a run's folder, which all processes of a parallel one have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Yield the folder in which builds of all processes of a run share what they compile."""
    folder = shared_base(tmp_path_factory) / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLASH_CUBIN_CACHE", str(folder))
        yield folder


def import_or_fail(name: str, skip: Callable[..., Any] = pytest.importorskip) -> Any:
    """Import a module as `pytest.importorskip` does, but fail if one that we install is missing."""
    return skip(name) if name in ELSEWHERE else import_module(name)


if REQUIRE_ALL:
    pytest.importorskip = import_or_fail

# The same examples in every run, and no limits that a busy machine breaks.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--whole-tables`, as `make test-whole` says it."""
    parser.addoption(
        "--whole-tables", action="store_true", help="run every case of tests marked `sample`"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run slow tests first; skip tests marked `demo` whose engines are not built.

    Of tests marked `sample(n)` n cases run, or all with --whole-tables.

    `demo` needs the engines plain and cpu, which `make test` builds; `demo("sm120")` needs that
    one too, which `make demo` and `make test-all` build.
    """
    # The long files first, so that no process of a parallel run ends with one.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if not config.getoption("whole_tables"):
        _leave_samples(config, items)
    if REQUIRE_ALL:
        return
    for item in items:
        if marker := item.get_closest_marker("demo"):
            engines = ("plain", "cpu", *marker.args)
            if not all((DEMO / engine / "manifest.json").exists() for engine in engines):
                reason = "the demo engines are not built: run `make demo`"
                item.add_marker(pytest.mark.skip(reason=reason))


def _leave_samples(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave n cases of each test marked `sample(n)`.

    A hash of their names chooses. So each run has the same ones, of all parts of a regular table.
    """
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: list[pytest.Item] = []
    for cases in tables.values():
        marker = cases[0].get_closest_marker("sample")
        assert marker is not None
        (count,) = marker.args
        cases.sort(key=lambda item: hashlib.sha256(item.nodeid.encode()).digest())
        left_out += cases[count:]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        others = set(left_out)
        items[:] = [item for item in items if item not in others]


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let what a test has captured reach pytest-xdist, which sends UTF-8 alone.

    Names that are no UTF-8 come in logs and in parameters of tests.
    """
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(key): _sendable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sendable(entry) for entry in value)
    return value


@pytest.fixture
def no_other_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out of account what other tests have not closed."""
    from trtllm_dflash.tokenizing import tokenizer_process

    monkeypatch.setattr(tokenizer_process, "_LIVING", weakref.WeakSet())


@pytest.fixture(scope="session")
def make_target(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_target(model_type, **options of tiny_target)` -> directory, made once per set of
    arguments.
    """
    made: dict[str, Path] = {}

    def make(model_type: str = "llama", **options: Any) -> Path:
        key = repr((model_type, sorted(options.items())))
        if key not in made:
            made[key] = tiny_target(
                tmp_path_factory.mktemp("target") / model_type, model_type, **options
            )
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_drafter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_drafter(target_directory, **options of tiny_drafter)` -> directory, made once per set
    of arguments.
    """
    made: dict[str, Path] = {}

    def make(target: Path, **options: Any) -> Path:
        key = repr((target, sorted(options.items())))
        if key not in made:
            made[key] = tiny_drafter(
                tmp_path_factory.mktemp("drafter") / "dflash", target, **options
            )
        return made[key]

    return make


@pytest.fixture(scope="session")
def modelopt_checkpoint(
    make_target: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`modelopt_checkpoint(model_type, format, kv_cache_dtype=None, **options of tiny_target)` ->
    directory.

    Each is ModelOpt's own export of the tiny target, made once per set of arguments; not to be
    changed.
    """
    from tests.quantize import modelopt

    made: dict[str, Path] = {}

    def make(
        model_type: str, form: str, kv_cache_dtype: str | None = None, **options: Any
    ) -> Path:
        target = make_target(model_type, **options)
        key = repr((target, form, kv_cache_dtype))
        if key not in made:
            model = modelopt.quantized_model(target, form, kv_cache_dtype)
            made[key] = modelopt.export(
                model, target, tmp_path_factory.mktemp("modelopt") / form
            )
        return made[key]

    return make


@pytest.fixture(scope="session")
def llama(make_target: Callable[..., Path]) -> Path:
    """Make a tiny Llama with the llama3 RoPE and an untied head."""
    return make_target("llama", rope="llama3")


@pytest.fixture(scope="session")
def qwen3(make_target: Callable[..., Path]) -> Path:
    """Make a tiny Qwen3 with a tied head."""
    return make_target("qwen3", tied=True)
