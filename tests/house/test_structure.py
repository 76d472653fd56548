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
    long_sentences,
    long_test_names,
    misdirected,
    oversized,
    passive_docstrings,
    private_words,
    repeated_class_names,
    repeated_file_names,
    shadowing_files,
    sources,
)


@pytest.mark.parametrize("folder", ["trtllm_dflash", "examples", "tests"])
def test_sizes(folder: str) -> None:
    assert [line for path in sources(ROOT / folder) for line in oversized(path)] == []


def test_sizes_are_really_checked(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * 70 + "y = 2\n" * 400)
    assert oversized(path) == ["long.py: 471 lines", "long.py: f has 71 lines"]


def test_direction_of_imports() -> None:
    assert [line for path in sources(PACKAGE) for line in misdirected(path, path.read_text())] == []


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
    folders = {path.parent.relative_to(ROOT) for path in sources(PACKAGE)}
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


@pytest.mark.parametrize("folder", ["trtllm_dflash", "examples", "plugins", "tests"])
def test_comprehensions_are_simple(folder: str) -> None:
    assert [line for path in sources(ROOT / folder) for line in dense_comprehensions(path)] == []


def test_names_of_files_and_classes() -> None:
    assert repeated_class_names(PACKAGE) == []
    assert repeated_file_names(PACKAGE) == []
    assert shadowing_files(PACKAGE) == []


def test_words_are_the_fields() -> None:
    assert [line for path in sources(PACKAGE) for line in private_words(path)] == []


def test_names_of_tests_are_short() -> None:
    assert [line for path in sources(ROOT / "tests") for line in long_test_names(path)] == []


def test_docstrings_begin_with_a_verb() -> None:
    assert [line for path in sources(PACKAGE) for line in passive_docstrings(path)] == []


def test_sentences_are_short() -> None:
    pages = [path for path in ROOT.rglob("*.md") if not {".venv", "demo"} & set(path.parts)]
    paths = [*pages, *sources(PACKAGE), *sources(ROOT / "examples")]
    assert [line for path in paths for line in long_sentences(path)] == []
