"""CUDA sources of plugins/kernels into cubins, by NVRTC: no GPU, no nvcc and no host compiler is
needed.

`python -m trtllm_dflash.trt_plugins.nvrtc sm120 attention head_dim=64` writes one to stdout, and
the log to stderr.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.hardware.kernel_compiler import cuda_header_folders, uncompilable_reason
from trtllm_dflash.trt_plugins.kernel_sources import constants, kernel_sources, source_digest
from trtllm_dflash.trt_plugins.launch_config import OPERATIONS

_FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
    r" spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<smem>\d+) bytes smem)?",
    re.DOTALL,
)
_TARGET = re.compile(r"for '(sm_\w+)'")
_FIRST_FAMILY = 100  # sm100, sm103, sm120, sm121: Blackwell
_FAMILY_CUDA = constants("convert.cuh")["kConversionCuda"]
_REFUSED = 3  # exit status of a process that says why in our words; an exception gives 1


@dataclass(frozen=True)
class FunctionReport:
    """What the compiler says of one function."""

    spilled_bytes: int  # stored and loaded
    registers: int
    static_shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """A kernel source compiled for an arch; `log` is the compiler's: registers, spills, shared
    memory.
    """

    key: KernelVariant
    arch: str
    code: bytes
    log: str

    def facts(self) -> dict[str, Any]:
        """Return its entry in the manifest."""
        return {
            "kernel": str(self.key),
            "arch": self.arch,
            "target": self.target,
            "bytes": len(self.code),
            "sha256": hashlib.sha256(self.code).hexdigest(),
            "source_sha256": source_digest(self.key.source),
        }

    @property
    def target(self) -> str:
        """Return what the compiler says that it compiled for, as sm_120f."""
        found = _TARGET.search(self.log)
        return found[1] if found else ""

    def reports(self) -> dict[str, FunctionReport]:
        """Return the compiler's reports by function."""
        return {
            found["name"]: FunctionReport(
                int(found["stores"]) + int(found["loads"]),
                int(found["registers"]),
                int(found["smem"] or 0),
            )
            for found in _FUNCTION.finditer(self.log)
        }


def compile_kernel(key: KernelVariant, arch: str) -> Cubin:
    """Compile one source for `arch` (as in --arch).

    The same source gives the same bytes on every machine: no path of this one gets in.

    Raises: BuildError: with the compiler's log, if it refuses; if there is no such source; if NVRTC
    is not installed.
    """
    reason = uncompilable_reason()
    if reason is not None:
        raise BuildError(f"cannot compile the kernel {key}: {reason}")
    sources = kernel_sources()
    name = f"{key.source}.cu"
    if name not in sources:
        raise BuildError(f"there is no kernel source {name}, only {', '.join(sorted(sources))}")
    options = [
        f"--gpu-architecture={_target_of(arch)}",
        "--std=c++17",
        # plan functions and constants are shared with the host
        "--device-as-default-execution-space",
        "--ptxas-options=-v",
        *(f"-DDFLASH_{name.upper()}={value}" for name, value in key.sizes),
        *(f"-I{folder}" for folder in cuda_header_folders().values()),
    ]
    headers = {
        header: text for header, text in sources.items() if header.endswith((".h", ".cuh"))
    }
    ok, code, log = _nvrtc(name, sources[name], headers, options)
    if not ok:
        raise BuildError(f"the kernel {key} does not compile for {arch}:\n{log}")
    missing = [
        kernel
        for kernel in OPERATIONS[key.source].kernels(key)
        if f".text.{kernel}\0".encode() not in code
    ]
    if missing:
        raise BuildError(
            f"{name} compiled for {arch} ({key}) has no function {', '.join(missing)}"
        )
    return Cubin(key, arch, code, log)


def _target_of(arch: str) -> str:
    """Return the target for an arch: Blackwell's is that of its family, which converts codes.

    No other has instructions that the kernels use beyond the plain target's. A family's cubin runs
    where the plain one does. An older NVRTC has no names for the conversions, and gets the plain
    target: the kernels expand codes by integer instructions then.
    """
    from cuda.bindings import nvrtc

    plain, number = arch.replace("sm", "sm_"), arch[2:]
    if not number.isdigit() or int(number) < _FIRST_FAMILY:
        return plain
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{plain}f" if major * 100 + minor >= _FAMILY_CUDA else plain


def compile_in_subprocess(key: KernelVariant, arch: str) -> Cubin:
    """`compile_kernel` in a process of its own: NVRTC keeps 18 MiB, which a builder has no use for.

    Raises:
        BuildError: as `compile_kernel`; if that process dies.
    """
    command = [
        sys.executable,
        "-m",
        __name__,
        arch,
        key.source,
        *(f"{name}={value}" for name, value in key.sizes),
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    if done.returncode == _REFUSED:
        raise BuildError(said)
    if done.returncode:
        raise BuildError(
            f"compiling the kernel {key} for {arch} ended with exit status"
            f" {done.returncode}:\n{said}"
        )
    return Cubin(key, arch, done.stdout, said)


def main() -> None:
    """Serve `compile_in_subprocess`."""
    from trtllm_dflash.trt_plugins.cubin_cache import cached_kernel

    arch, source, *sizes = sys.argv[1:]
    pairs = (size.split("=") for size in sizes)
    try:
        cubin = cached_kernel(
            KernelVariant(source, tuple((name, int(value)) for name, value in pairs)), arch
        )
    except BuildError as error:
        sys.stderr.write(str(error))
        sys.exit(_REFUSED)
    sys.stderr.write(cubin.log)
    sys.stdout.buffer.write(cubin.code)


def _nvrtc(
    name: str, source: bytes, headers: dict[str, bytes], options: list[str]
) -> tuple[bool, bytes, str]:
    """Compile: whether it worked, the cubin, the log."""
    from cuda.bindings import nvrtc

    names = [header.encode() for header in headers]
    _, program = nvrtc.nvrtcCreateProgram(
        source, name.encode(), len(names), list(headers.values()), names
    )
    (status,) = nvrtc.nvrtcCompileProgram(
        program, len(options), [option.encode() for option in options]
    )
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    code = b""
    if status == nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        code = b" " * size
        nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return (
        status == nvrtc.nvrtcResult.NVRTC_SUCCESS,
        code,
        log.decode(errors="replace").rstrip("\0\n "),
    )


if __name__ == "__main__":
    main()
