"""Build of the stand-in CUDA driver: a libcuda.so.1 of public functions over the emulator.

Functions that it lacks are made from cuda.h. Each says its name and answers NOT_SUPPORTED.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from tests.plugins.library import GXX_WARNINGS, run

HERE = Path(__file__).parent
SOURCES = ("memory", "streams", "control")
_COMPILE = ("g++", "-std=c++17", "-O1", "-fPIC", *GXX_WARNINGS)
_DECLARED = re.compile(r"\bCUresult\s+(cu[A-Z]\w+)\s*\(")
_RENAMED = re.compile(
    r"^#define\s+(cu[A-Z]\w+)\s+(?:__CUDA_API_PT\w+\()?(cu[A-Z]\w+)", re.MULTILINE
)
_ERROR = re.compile(r"\b(CUDA_(?:ERROR_\w+|SUCCESS))\s*=\s*(\d+)")
_UNSUPPORTED = """\
extern "C" __attribute__((weak)) int {name}() {{ return stand_in_unsupported("{name}"); }}"""


def cuda_header() -> Path | None:
    """Return cuda.h of the package nvidia-cuda-runtime, None if that is not installed."""
    try:
        owned = files("nvidia-cuda-runtime") or ()
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in owned if file.name == "cuda.h"]
    return found[0] if found else None


def build_driver(folder: Path) -> Path:
    """Compile libcuda.so.1 into `folder`, and return its path."""
    header = cuda_header()
    assert header is not None
    generated = folder / "generated.cpp"
    generated.write_text(_generated(header))
    sources = [*(HERE / f"{name}.cpp" for name in SOURCES), generated]

    def compile_one(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        run([*_COMPILE, f"-isystem{header.parent}", "-c", str(source), "-o", made])
        return made

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, sources))
    path = folder / "libcuda.so.1"
    # By this name a program finds the library that its process has loaded already.
    run(["g++", "-shared", "-Wl,-soname,libcuda.so.1", *objects, "-ldl", "-o", str(path)])
    return path


def _generated(header: Path) -> str:
    """Return C++ with functions that are not supported, symbols by name, and names of errors."""
    text = header.read_text(encoding="utf-8")
    declared = set(_DECLARED.findall(run(["g++", "-E", "-x", "c++", str(header)])))
    symbols = dict(reversed(_RENAMED.findall(text)))  # the first of a name counts
    return "\n".join(
        [
            "#include <map>",
            "#include <string>",
            'extern "C" int stand_in_unsupported(const char*);',
            *(_UNSUPPORTED.format(name=name) for name in sorted(declared)),
            "extern const std::map<std::string, std::string> stand_in_symbols{",
            *(f'{{"{name}", "{symbol}"}},' for name, symbol in sorted(symbols.items())),
            "};",
            "extern const std::map<int, std::string> stand_in_errors{",
            *(f'{{{number}, "{name}"}},' for name, number in _ERROR.findall(text)),
            "};\n",
        ]
    )
