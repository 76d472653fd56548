"""Type stubs of both flavors' Python bindings, made from the bindings themselves.

NVIDIA publishes neither stubs nor, on PyPI, the libraries of TensorRT. Its bindings are there and
have types. Libraries that hold nothing but the names that the bindings need are enough to import
them.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
# What the packages around the compiled modules add.
ADDED = "__version__: str\n"
MODULES = {
    "tensorrt": ("tensorrt_bindings", "tensorrt_bindings.tensorrt"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings.tensorrt_rtx"),
}


def why_no_stubs(name: str) -> str | None:
    """Return why the stubs of a flavor cannot be made here; None if they can."""
    package = MODULES[name][0]
    if find_spec(package) is None:
        return f"there is no module {package}"
    if shutil.which("cc") is None:
        return "there is no C compiler"
    return None


def stand_in_libraries(folder: Path) -> Path:
    """Libraries that can be loaded in place of TensorRT's, and do nothing."""
    folder.mkdir(parents=True)
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in LIBRARIES:
        command = [
            "cc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{name}",
            "-o",
            str(folder / name),
            str(source),
        ]
        subprocess.run(command, check=True)
    return folder


def write_stubs(name: str, folder: Path) -> None:
    """Write folder/NAME/__init__.pyi for a kind's module."""
    package, compiled = MODULES[name]
    libraries = stand_in_libraries(folder / "libraries" / name)
    path = os.pathsep.join(
        filter(
            None, [str(libraries) if name == "tensorrt" else "", os.getenv("LD_LIBRARY_PATH")]
        )
    )
    arguments = ["--inspect-mode", "-m", compiled, "-o", str(folder / "raw"), "-q"]
    script = (
        f"import {package}\nif __name__ == '__main__':\n    from mypy import stubgen\n   "
        f" stubgen.main({arguments})\n"
    )
    (folder / "make.py").write_text(script)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": path,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, folder / "make.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = (folder / "raw" / Path(*compiled.split("."))).with_suffix(".pyi")
    (folder / name).mkdir()
    (folder / name / "__init__.pyi").write_text(
        _corrected(made.read_text().replace(f"{compiled}.", "")) + ADDED
    )


def _corrected(text: str) -> str:
    """Replace what a stub cannot express by Any.

    Some arguments have a default and the next ones none; and `bool` is a data type of TensorRT's
    module too.
    """
    lines = [
        "import builtins",
        *re.sub(r"(?<=[>:,|\[] )bool\b|(?<=\[)bool\b", "builtins.bool", text).splitlines(),
    ]
    while (wrong := _syntax_error("\n".join(lines))) is not None:
        head, _, _ = lines[wrong].partition("(")
        assert head.lstrip().startswith("def "), lines[wrong]
        lines[wrong] = f"{head}(self, *args, **kwargs): ..."
    return "\n".join(lines) + "\n"


def _syntax_error(text: str) -> int | None:
    """Return the index of the first line with one."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return (error.lineno or 1) - 1
    return None
