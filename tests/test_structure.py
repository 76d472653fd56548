"""The house rules that a program can check: sizes, direction of imports, who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trtllm_dflash"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Data flows from left to right; a part may import those in its row. errors and log are open to all.
MAY_IMPORT = {
    "errors": set(),
    "log": {"errors"},
    "config": set(),
    "checkpoint": {"config"},
    "graph": {"config", "checkpoint"},
    "trt": set(),
    "plugins": {"config", "graph", "trt"},
    "build": {"config", "checkpoint", "graph", "plugins", "trt"},
    "runtime": {"config", "plugins", "trt"},
    "quantize": {"config", "checkpoint", "build", "runtime"},
    "evaluate": {"config", "build", "graph", "runtime"},
    "handover": {"config", "checkpoint", "build"},
    "profile": {"config", "checkpoint", "graph", "build", "runtime"},
    "triton": {"config", "build", "runtime"},
    "cli": {
        "config",
        "checkpoint",
        "graph",
        "build",
        "runtime",
        "quantize",
        "evaluate",
        "handover",
        "profile",
        "triton",
    },
}
# All that the runtime may know of how an engine comes to be: it reads engine directories, on a
# machine.
RUNTIME_READS = (
    "trtllm_dflash.hardware.backends",
    "trtllm_dflash.hardware.devices",
    "trtllm_dflash.hardware.doctor",
    "trtllm_dflash.engine_dir.manifest",
    "trtllm_dflash.engine_dir.io_tensors",
)
BACKEND_IMPORTERS = {
    "tensorrt_rtx": {"trt", "build", "plugins", "runtime"},
    "tensorrt": {"trt"},
    "onnxruntime": {"build", "runtime", "evaluate"},
    "transformers": {"runtime", "quantize", "profile"},
    "matplotlib": {"profile"},
    "torch": {"quantize", "profile"},
    "modelopt": {"quantize"},
}
NEVER_IMPORTED = {"pickle"}


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if ".venv" not in path.parts)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def oversized(path: Path) -> list[str]:
    """What in a file is longer than the house allows."""
    text = path.read_text()
    found = [f"{path.name}: {lines} lines"] if (lines := text.count("\n")) > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{path.name}: {node.name} has {lines} lines")
    return found


def misdirected(path: Path, text: str) -> list[str]:
    """Imports in `text`, taken as the file `path` of the package, that go against the direction of
    data.
    """
    part, found = _part(path), []
    if part not in MAY_IMPORT:
        return []
    for name in _imports(ast.parse(text)):
        top, _, rest = name.partition(".")
        if top in NEVER_IMPORTED or part not in BACKEND_IMPORTERS.get(top, {part}):
            found.append(f"{path.name}: {name}")
        other = rest.split(".")[0]
        if (
            top != "trtllm_dflash"
            or other in {"", part, "errors", "log"}
            or other not in MAY_IMPORT
        ):
            continue
        contract = part == "runtime" and name.startswith(RUNTIME_READS)
        if other not in MAY_IMPORT[part] and not contract:
            found.append(f"{path.name}: {name}")
    return found


@pytest.mark.parametrize("folder", ["trtllm_dflash", "examples", "tests"])
def test_sizes(folder: str) -> None:
    assert [line for path in _sources(ROOT / folder) for line in oversized(path)] == []


def test_sizes_are_really_checked(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * 70 + "y = 2\n" * 400)
    assert oversized(path) == ["long.py: 471 lines", "long.py: f has 71 lines"]


def test_direction_of_imports() -> None:
    assert [
        line for path in _sources(PACKAGE) for line in misdirected(path, path.read_text())
    ] == []


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("config", "from trtllm_dflash.engine_dir.io_tensors import IoTensor"),
        ("graph", "import trtllm_dflash.builder.build_engine"),
        ("runtime", "from trtllm_dflash.checkpoint.loader import load_target"),
        ("runtime", "from trtllm_dflash.builder.build_engine import build_engine"),
        ("graph", "import onnxruntime"),
        ("graph", "import tensorrt_rtx"),
        ("runtime", "import tensorrt"),
        ("runtime", "from trtllm_dflash.builder.trt import profiles"),
        ("build", "import torch"),
        ("runtime", "import modelopt.torch.quantization"),
        ("build", "from trtllm_dflash.quantize.pipeline import quantize"),
        ("checkpoint", "import pickle"),
    ],
)
def test_a_wrong_import_is_found(part: str, text: str) -> None:
    assert misdirected(PACKAGE / part / "file.py", text)


def test_help_is_light() -> None:
    """`--help` imports neither a runtime nor a framework."""
    heavy = ("torch", "modelopt", "onnxruntime", "transformers", "tensorrt_rtx", "onnx_ir", "onnx")
    code = (
        "import sys\nfrom trtllm_dflash.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print('heavy:', [m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stderr


def test_the_process_that_waits_for_a_build_has_no_graph_library() -> None:
    """It plans the build and then waits for the builder process: what it holds comes on top of what
    that needs.
    """
    code = (
        "import sys, trtllm_dflash.cli.build, trtllm_dflash.builder.build_engine\nassert 'onnx_ir'"
        " not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_is_installed() -> None:
    """They are listed by hand, since the kernels' sources come from another folder."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in _sources(PACKAGE)}
    assert sorted(listed) == sorted(
        [*(".".join(folder.parts) for folder in folders), "trtllm_dflash.kernels"]
    )


def test_pytest_looks_into_every_folder_of_tests(pytestconfig: pytest.Config) -> None:
    """pytest passes over folders by name without a word: by its own list, a folder called build or
    dist.
    """
    left_out = pytestconfig.getini("norecursedirs")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(folders) > 10
    unseen = {
        str(folder)
        for folder in folders
        for part in folder.parts
        if any(fnmatch(part, p) for p in left_out)
    }
    assert not unseen, f"norecursedirs in pyproject.toml keeps pytest out of {sorted(unseen)}"
