"""Our calls of TensorRT type-check against the bindings of both flavors.

No TensorRT is needed, and none can be had from PyPI: see bindings.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trt.bindings import MODULES, stand_in_libraries, why_no_stubs, write_stubs

ROOT = Path(__file__).parent.parent.parent / "trtllm_dflash"
SHARED = (
    "builder/dropped_parts.py",
    "builder/trt.py",
    "builder/trt_callbacks.py",
    "runtime/sessions/trt_engine.py",
    "trt_plugins/fields.py",
    "trt_plugins/plugin.py",
)
PARTICULAR = "trt/flavors.py"
# What is right and the stubs do not know, since the bindings' own descriptions do not say it.
NOT_WRONG = (
    'expected "Dims"',  # a tuple is converted
    # it has the buffer protocol
    'to "memoryview" has incompatible type "IHostMemory"; expected "Buffer"',
    "[override]",  # methods for Python to override are described with the arguments of C++
    'No overload variant of "PluginField"',  # an array is its data
    'has type "PluginFieldCollection_"',  # a collection of ours is converted
    "[misc]",
)
CONFIG = "trt.Builder(log).create_builder_config()"
WRONG = {
    "flag": (
        "tensorrt",
        f"{CONFIG}.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)",
        '"REQUIRE_USER_ALLOCATION"',
    ),
    "capability": (
        "tensorrt",
        f"{CONFIG}.num_compute_capabilities = 1",
        '"num_compute_capabilities"',
    ),
    "type": (
        "tensorrt_rtx",
        f"{CONFIG}.num_compute_capabilities = 'one'",
        "Incompatible types",
    ),
    "strategy": (
        "tensorrt",
        f"{CONFIG}.set_memory_pool_limit(1, 2)",
        'expected "MemoryPoolType"',
    ),
}


SCRIPT = """
import hashlib
from trtllm_dflash.trt import loader
loader.select_flavor("tensorrt")
import trtllm_dflash.builder.trt as builder
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.runtime.sessions import trt_engine
from trtllm_dflash.trt_plugins.plugin import StepPlugin, StepPluginCreator, field_types
trt = loader.import_tensorrt()
builder.BuilderLog(), builder.ProgressMonitor(print), builder.EngineWriter(None), trt_engine._Log()
spec = OPS["DFlashVerifyAttention"]
creator = StepPluginCreator(spec)
fields = {name: make(64) for name, (make, _) in field_types(spec).items()} | {"fp8_cache": 0}
made = StepPlugin(spec, fields, hashlib.sha256(b"a cubin").digest(), b"a cubin")
again = creator.create_plugin("", made.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
assert (again.cubin, again.fields) == (made.cubin, made.fields)
print(trt.__version__, loader.flavor().title)
"""


def _copy_name(name: str, module: str) -> str:
    return f"{name.removesuffix('.py').replace('/', '_')}_for_{module}.py"


def _shared(name: str, module: str) -> str:
    text = (ROOT / name).read_text()
    assert "import tensorrt_rtx as trt" in text
    return text.replace("import tensorrt_rtx as trt", f"import {module} as trt")


def _sources() -> dict[str, str]:
    """Return by file name the shared files for each flavor, flavors.py, and wrong uses."""
    shared = {
        _copy_name(name, module): _shared(name, module) for name in SHARED for module in MODULES
    }
    wrong = {
        f"wrong_{name}.py": (
            f"import {module} as trt\n\n\ndef use(log: trt.ILogger) -> None:\n    {line}\n"
        )
        for name, (module, line, _) in WRONG.items()
    }
    return {**shared, "flavors_both.py": (ROOT / PARTICULAR).read_text(), **wrong}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return what mypy says of each source, with the stubs of both flavors: one run for all."""
    for name in MODULES:
        if reason := why_no_stubs(name):
            pytest.skip(reason)
    folder = tmp_path_factory.mktemp("stubs")
    for name in MODULES:
        write_stubs(name, folder)
    sources = _sources()
    for name, text in sources.items():
        (folder / name).write_text(text)
    # Everything but TensorRT is left out: it is type-checked by `make lint`.
    options = ["--check-untyped-defs", "--ignore-missing-imports", "--no-site-packages"]
    environment = {**os.environ, "MYPYPATH": str(folder), "PYTHONPATH": ""}
    command = [
        sys.executable,
        "-m",
        "mypy",
        *options,
        "--cache-dir",
        str(folder / "cache"),
        *sources,
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert "errors prevented further checking" not in done.stdout + done.stderr, done.stdout
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    lines = [line for line in errors if not any(words in line for words in NOT_WRONG)]
    return {name: [line for line in lines if line.startswith(f"{name}:")] for name in sources}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", SHARED)
def test_shared_code_types_check_for_both_flavors(
    name: str, module: str, found: dict[str, list[str]]
) -> None:
    assert found[_copy_name(name, module)] == []


def test_flavors_types_check(found: dict[str, list[str]]) -> None:
    assert found["flavors_both.py"] == []


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_found(name: str, found: dict[str, list[str]]) -> None:
    (line,) = found[f"wrong_{name}.py"]
    assert WRONG[name][2] in line


def test_importers_load_on_tensorrt_bindings(tmp_path: Path) -> None:
    """Classes are made and plugins go through their fields; what needs a builder would need the
    libraries.
    """
    if reason := why_no_stubs("tensorrt"):
        pytest.skip(reason)
    libraries = stand_in_libraries(tmp_path / "libraries")
    (tmp_path / "tensorrt.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("11.")
    assert done.stdout.endswith(" TensorRT\n")


def test_no_other_file_imports_tensorrt() -> None:
    """Everything else imports it through trt.loader."""
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")} - {*SHARED, PARTICULAR}
    assert [
        name for name in sorted(files) if "import tensorrt" in (ROOT / name).read_text()
    ] == []
