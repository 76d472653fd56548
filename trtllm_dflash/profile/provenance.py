"""The machine and the commit that a profile was measured with."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.manifest import bytes_digest
from trtllm_dflash.hardware.devices import cuda_gpus
from trtllm_dflash.log import human_bytes
from trtllm_dflash.runtime.threads import available_cores

PACKAGES = (
    "numpy",
    "onnxruntime",
    "tensorrt_rtx",
    "cuda-bindings",
    "tokenizers",
    "transformers",
    "torch",
    "dflash",
)
_PROCESSORS = Path("/proc/cpuinfo")


def machine_facts(num_threads: int) -> dict[str, Any]:
    """Describe this machine in plain types; `load_average` is that of the last minute."""
    gpus = cuda_gpus()
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "threads": num_threads,
        "memory": human_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "gpus": [] if isinstance(gpus, str) else [str(gpu) for gpu in gpus],
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


def processor_name(path: Path = _PROCESSORS) -> str:
    """Return the processor's name where the system knows it, else its architecture."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(module: Path = Path(__file__)) -> str | None:
    """Return the git commit of the package's checkout, with + where tracked files differ.

    It is None outside of a checkout, and where git does not track `module`. A package in a virtual
    environment may lie in another project's checkout.
    """
    folder = module.parent
    try:
        _git(folder, "ls-files", "--error-unmatch", "--", module.name)
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def digest(value: Any) -> str:
    """Return the sha256 of plain data."""
    return bytes_digest(json.dumps(value).encode())


def _git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints in `folder`, which stays as it is, its index included."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, encoding="utf-8"
    )
    return done.stdout.strip()
