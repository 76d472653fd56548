"""The house rules that a program can check: sizes, direction of imports, who may import what."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house.rules import (
    PACKAGE,
    ROOT,
    dense_comprehensions,
    misdirected,
    oversized,
    repeated_class_names,
    repeated_file_names,
    shadowing_files,
    sources,
    wide_lines,
)

FOLDERS = ("trtllm_dflash", "examples", "plugins", "tests")


@pytest.mark.parametrize("folder", FOLDERS)
def test_sizes(folder: str) -> None:
    assert [line for path in sources(ROOT / folder) for line in oversized(path)] == []


def test_templates_are_as_narrow_as_code() -> None:
    templates = [*PACKAGE.rglob("*.j2"), *PACKAGE.rglob("*.toml")]
    assert len(templates) > 5
    assert [line for path in sorted(templates) for line in wide_lines(path)] == []


def test_sizes_are_really_checked(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * 70 + "y = 2\n" * 399 + "#" * 101 + "\n")
    assert oversized(path) == [
        "long.py: 471 lines",
        "long.py:471: 101 columns",
        "long.py: f has 71 lines",
    ]


def test_direction_of_imports() -> None:
    assert [
        line for path in sources(PACKAGE) for line in misdirected(path, path.read_text())
    ] == []


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("models", "from trtllm_dflash.engine_dir.io_tensors import IoTensor"),
        ("graph", "import trtllm_dflash.builder.build_engine"),
        ("runtime", "from trtllm_dflash.checkpoint.loader import load_target"),
        ("runtime", "from trtllm_dflash.builder.build_engine import build_engine"),
        ("graph", "import onnxruntime"),
        ("graph", "import tensorrt_rtx"),
        ("runtime", "import tensorrt"),
        ("runtime", "from trtllm_dflash.builder.trt import profiles"),
        ("builder", "import torch"),
        ("runtime", "import modelopt.torch.quantization"),
        ("builder", "from trtllm_dflash.quantize.pipeline import quantize"),
        ("checkpoint", "import pickle"),
    ],
)
def test_a_wrong_import_is_found(part: str, text: str) -> None:
    assert misdirected(PACKAGE / part / "file.py", text)


def test_help_is_light() -> None:
    """`--help` imports neither a runtime nor a framework."""
    heavy = (
        "torch",
        "modelopt",
        "onnxruntime",
        "transformers",
        "tensorrt_rtx",
        "onnx_ir",
        "onnx",
    )
    code = (
        "import sys\nfrom trtllm_dflash.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print('heavy:', [m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "heavy: []" in done.stderr


def test_waiting_for_a_build_loads_no_graph_library() -> None:
    """The waiting process's memory comes on top of the builder process's."""
    modules = "sys, trtllm_dflash.cli.build, trtllm_dflash.builder.build_engine"
    code = f"import {modules}\nassert 'onnx_ir' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_is_installed() -> None:
    """Packages are listed by hand, since the kernels' sources come from another folder."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {path.parent.relative_to(ROOT) for path in sources(PACKAGE)}
    assert sorted(listed) == sorted(
        [*(".".join(folder.parts) for folder in folders), "trtllm_dflash.kernels"]
    )


def test_pytest_looks_into_every_folder_of_tests(pytestconfig: pytest.Config) -> None:
    """pytest silently skips folders by name; its own list has build and dist."""
    left_out = pytestconfig.getini("norecursedirs")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(folders) > 10
    unseen = set()
    for folder in folders:
        if any(fnmatch(part, pattern) for part in folder.parts for pattern in left_out):
            unseen.add(str(folder))
    assert not unseen, f"norecursedirs in pyproject.toml keeps pytest out of {sorted(unseen)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_comprehensions_are_simple(folder: str) -> None:
    assert [
        line for path in sources(ROOT / folder) for line in dense_comprehensions(path)
    ] == []


def test_comprehensions_are_really_checked(tmp_path: Path) -> None:
    path = tmp_path / "dense.py"
    path.write_text(
        "x = [\n    [a for a in b]\n    for b in c\n]\ny = [[a for a in b] for b in c]\n"
    )
    assert dense_comprehensions(path) == ["dense.py:1: a nested comprehension of four lines"]


def test_class_names_stand_for_one_thing() -> None:
    assert repeated_class_names(PACKAGE) == []


def test_file_names_stand_in_two_rooms_at_most() -> None:
    assert repeated_file_names(PACKAGE) == []


def test_files_shadow_no_standard_module() -> None:
    assert shadowing_files(PACKAGE) == []


def test_names_are_really_checked(tmp_path: Path) -> None:
    for room in ("a", "b", "c"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "statistics.py").write_text("class Mean: ...\n")
    files = ["a/statistics.py", "b/statistics.py", "c/statistics.py"]
    assert repeated_class_names(tmp_path) == [f"Mean: {', '.join(files)}"]
    assert repeated_file_names(tmp_path) == ["statistics.py: a, b, c"]
    assert shadowing_files(tmp_path) == files
