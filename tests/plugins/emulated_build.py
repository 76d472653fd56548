"""Build of the emulated library: the kernels compiled by g++ over the emulator."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.plugins.library import GXX, GXX_WARNINGS, HEAD_DIMS, INCLUDES, PLUGINS, run

EMULATOR = ("emulator", "instructions")  # what every emulated kernel needs


def build_emulated(folder: Path, only: Collection[str] = ()) -> Path:
    """Compile the emulated library into `folder` with g++, and return the library's path.

    With `only`, it has these objects, as "attention_64", and lacks the C library's launchers.
    """
    kernels, common = PLUGINS / "kernels", (*GXX, *GXX_WARNINGS, *INCLUDES)
    as_cpp = ("-x", "c++")
    commands: dict[str, tuple[str, ...]] = {}
    for dim in HEAD_DIMS:
        arguments = (*as_cpp, f"-DDFLASH_HEAD_DIM={dim}", str(kernels / "attention.cu"))
        commands[f"attention_{dim}.o"] = arguments
        commands[f"attention_{dim}_fp8.o"] = ("-DDFLASH_FP8_CACHE=1", *arguments)
    for weight_format in range(4):
        define = f"-DDFLASH_WEIGHT_FORMAT={weight_format}"
        commands[f"moe_{weight_format}.o"] = (*as_cpp, define, str(kernels / "moe.cu"))
    for source in ("accept", "gated_delta", "block_linear", "select", "argmax"):
        commands[f"{source}_kernel.o"] = (*as_cpp, str(kernels / f"{source}.cu"))
    for name in (
        "library/library",
        "library/moe",
        "library/gated_delta",
        "library/block_linear",
        "library/select",
        "library/argmax",
        "emulator/emulator",
        "emulator/instructions",
    ):
        commands[f"{Path(name).name}.o"] = (str(PLUGINS / f"{name}.cpp"),)

    if only:
        wanted = {f"{name}.o" for name in (*only, *EMULATOR)}
        commands = {name: found for name, found in commands.items() if name in wanted}
        assert commands.keys() == wanted

    def compile_one(item: tuple[str, tuple[str, ...]]) -> str:
        name, arguments = item
        run([*common, "-c", *arguments, "-o", str(folder / name)])
        return str(folder / name)

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, commands.items()))
    path = folder / "libdflash_kernels_emulated.so"
    run(["g++", "-shared", *objects, "-o", str(path)])
    return path


def build_starter(folder: Path, emulated: Path) -> Path:
    """Compile a library that starts kernels of the emulated one by address."""
    path = folder / "libstarter.so"
    source = str(Path(__file__).with_name("emulated_launch.cpp"))
    run([*GXX, *INCLUDES, "-shared", source, str(emulated), "-o", str(path)])
    return path
