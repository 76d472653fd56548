"""Versions are those of the modules that are imported, whatever distribution brought them."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trtllm_dflash.engine_dir.manifest import version_differences
from trtllm_dflash.hardware.doctor import diagnose_machine
from trtllm_dflash.hardware.module_probe import probe_module
from trtllm_dflash.hardware.versions import (
    installed_version,
    module_version,
    owner_of,
    owners_of,
    pip_line,
    version_of_module,
)

VERSION = "11.4.0.106"
MakeModule = Callable[..., Path]


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeModule]:
    """`make_module(source, distribution=None, installer="pip", version=…)`: a module tensorrt."""
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("a real TensorRT is installed here")
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(
        source: str,
        distribution: str | None = None,
        installer: str = "pip",
        version: str = VERSION,
    ) -> Path:
        module = tmp_path / "tensorrt"
        module.mkdir()
        (module / "__init__.py").write_text(source)
        if distribution is not None:
            info = tmp_path / f"{distribution}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            )
            (info / "RECORD").write_text("tensorrt/__init__.py,,\n")
            (info / "INSTALLER").write_text(f"{installer}\n")
        importlib.invalidate_caches()
        forget()
        return tmp_path

    def forget() -> None:
        owner_of.cache_clear()
        probe_module.cache_clear()

    yield make
    forget()


LITERAL = f'raise ImportError("it must not be imported")\n__version__ = "{VERSION}"\n'
COMPUTED = f'from os import name\n__version__ = ".".join("{VERSION}".split("."))\n'


@pytest.mark.parametrize("distribution", [None, "tensorrt_cu13", "tensorrt", "nv_container"])
def test_module_and_its_version_count(
    make_module: MakeModule, distribution: str | None
) -> None:
    make_module(LITERAL, distribution)
    assert module_version("tensorrt") == VERSION
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        assert installed_version(name) == VERSION
    owner = owner_of("tensorrt")
    assert (owner or "").replace("-", "_") == (distribution or "")
    assert owners_of(["tensorrt", "numpy"]) == ({} if owner is None else {"tensorrt": owner})


def test_version_that_only_the_distribution_says(make_module: MakeModule) -> None:
    make_module("from .bindings import *\n", "nv_container", version="11.5")
    assert module_version("tensorrt") == "11.5"


def test_version_without_any_metadata(make_module: MakeModule) -> None:
    make_module(COMPUTED)
    assert module_version("tensorrt") == VERSION
    assert "tensorrt" not in sys.modules


@pytest.mark.parametrize("source", ["1 / 0", "raise SystemExit(3)", "import os; os.abort()"])
def test_broken_module_without_metadata(make_module: MakeModule, source: str) -> None:
    """It is imported in a process of its own, which may end as it likes."""
    make_module(source)
    assert module_version("tensorrt") is None


@pytest.mark.parametrize("file", ["METADATA", "RECORD", "INSTALLER"])
def test_metadata_that_is_no_text(make_module: MakeModule, file: str) -> None:
    folder = make_module(LITERAL, "nv_container")
    (info,) = folder.glob("*.dist-info")
    (info / file).write_bytes(b"\xffName: \xfe")
    owner_of.cache_clear()
    assert module_version("tensorrt") == VERSION
    assert owner_of("tensorrt") == ("nv_container" if file == "INSTALLER" else None)
    assert pip_line("tensorrt", "11.3") is None


def test_module_inside_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as archive:
        archive.writestr("dflash_zipped/__init__.py", "__version__ = '11.4'")
    monkeypatch.syspath_prepend(str(tmp_path / "modules.zip"))
    assert module_version("dflash_zipped") == "11.4"
    assert owner_of("dflash_zipped") is None


@pytest.mark.parametrize("source", ["1 / 0", "raise SystemExit(3)"])
def test_parent_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "dflash_parent" / "bindings").mkdir(parents=True)
    (tmp_path / "dflash_parent" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert module_version("dflash_parent.bindings") is None


def test_doctor_and_inspect_agree(make_module: MakeModule) -> None:
    """Old manifests have a distribution's name for the module, new ones its own."""
    make_module(LITERAL, "nv_container")
    for name in ("tensorrt", "tensorrt-cu13"):
        assert version_differences({"versions": {name: VERSION}}) == []
        (difference,) = version_differences({"versions": {name: "11.3"}})
        assert difference == f"{name} is {VERSION} here; the engine was built with 11.3"
    packages = dict(diagnose_machine(()).sections())["packages"]
    (line,) = [line for line in packages if line.split()[0] == "tensorrt"]
    assert line.split(maxsplit=1)[1] == f"{VERSION} (of nv_container)"


@pytest.mark.parametrize(
    ("distribution", "installer", "line"),
    [
        ("tensorrt_cu13", "pip", "pip install tensorrt-cu13==11.3"),
        ("nv_container", "uv", "pip install nv_container==11.3"),
        ("nv_container", "conda", None),
        (None, "pip", None),
    ],
)
def test_pip_is_advised_where_pip_installed_it(
    make_module: MakeModule, distribution: str | None, installer: str, line: str | None
) -> None:
    make_module(LITERAL, distribution, installer)
    assert pip_line("tensorrt", "11.3") == line


def test_versions_of_a_manifest_by_module() -> None:
    assert (
        version_of_module({"numpy": "1", "tensorrt-rtx-cu13": "1.7"}, "tensorrt_rtx") == "1.7"
    )
    assert version_of_module({"tensorrt_rtx": "1.8"}, "tensorrt_rtx") == "1.8"
    assert version_of_module({"tensorrt_rtx": "1.8"}, "tensorrt") is None
    assert version_of_module({"onnxruntime-gpu": "1.30"}, "onnxruntime") == "1.30"


def test_missing_module() -> None:
    assert module_version("no_such_module.inside") is None
    assert owner_of("no_such_module") is None
    assert pip_line("no_such_module", "1") is None
