"""Build of the emulated library: the kernels compiled by g++ over the emulator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.plugins.library import (
    CONVERSIONS,
    GXX,
    GXX_WARNINGS,
    HEAD_DIMS,
    INCLUDES,
    PLUGINS,
    run,
)

CONVERTING = (
    "moe_1",
    "moe_2",
    "moe_3",
    "block_linear_kernel",
)  # objects whose weights are codes
EMULATOR = ("emulator", "instructions")  # what every emulated kernel needs


def build_emulated(folder: Path, only: Collection[str] = ()) -> Path:
    """Compile the emulated library into `folder` with g++, and return the library's path.

    With `only`, it has these objects, as "attention_64", and lacks the C library's launchers.
    """
    commands = _commands()
    if only:
        wanted = {f"{name}.o" for name in (*only, *EMULATOR)}
        commands = {name: found for name, found in commands.items() if name in wanted}
        assert commands.keys() == wanted
    return _link(folder, _compile(folder, commands))


def build_converting(folder: Path, emulated: Path) -> Path:
    """Compile `emulated` once more, with codes converted as Blackwell's families do it.

    Objects that have no codes are those beside `emulated`.
    """
    commands = _commands()
    converting = {f"{name}.o": (CONVERSIONS, *commands[f"{name}.o"]) for name in CONVERTING}
    others = [str(emulated.with_name(name)) for name in commands if name not in converting]
    return _link(folder, [*_compile(folder, converting), *others])


def _commands() -> dict[str, tuple[str, ...]]:
    """Return what each object of the library is compiled from, and how."""
    kernels, as_cpp = PLUGINS / "kernels", ("-x", "c++")
    commands: dict[str, tuple[str, ...]] = {}
    for dim in HEAD_DIMS:
        arguments = (*as_cpp, f"-DDFLASH_HEAD_DIM={dim}", str(kernels / "attention.cu"))
        commands[f"attention_{dim}.o"] = arguments
        commands[f"attention_{dim}_fp8.o"] = ("-DDFLASH_FP8_CACHE=1", *arguments)
    for weight_format in range(4):
        define = f"-DDFLASH_WEIGHT_FORMAT={weight_format}"
        commands[f"moe_{weight_format}.o"] = (*as_cpp, define, str(kernels / "moe.cu"))
    for source in (
        "accept",
        "gated_delta",
        "block_linear",
        "select",
        "argmax",
        "lookup",
        "adjust",
    ):
        commands[f"{source}_kernel.o"] = (*as_cpp, str(kernels / f"{source}.cu"))
    for name in (
        "library/library",
        "library/moe",
        "library/gated_delta",
        "library/block_linear",
        "library/select",
        "library/argmax",
        "library/lookup",
        "library/adjust",
        "emulator/emulator",
        "emulator/instructions",
    ):
        commands[f"{Path(name).name}.o"] = (str(PLUGINS / f"{name}.cpp"),)
    return commands


def _compile(folder: Path, commands: Mapping[str, tuple[str, ...]]) -> list[str]:
    common = (*GXX, *GXX_WARNINGS, *INCLUDES)

    def compile_one(item: tuple[str, tuple[str, ...]]) -> str:
        name, arguments = item
        run([*common, "-c", *arguments, "-o", str(folder / name)])
        return str(folder / name)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, commands.items()))


def _link(folder: Path, objects: Sequence[str]) -> Path:
    path = folder / "libdflash_kernels_emulated.so"
    run(["g++", "-shared", *objects, "-o", str(path)])
    return path


def build_starter(folder: Path, emulated: Path) -> Path:
    """Compile a library that starts kernels of the emulated one by address."""
    path = folder / "libstarter.so"
    source = str(Path(__file__).with_name("emulated_launch.cpp"))
    run([*GXX, *INCLUDES, "-shared", source, str(emulated), "-o", str(path)])
    return path
