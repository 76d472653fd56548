"""On what, with what and from what a profile was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from trtllm_dflash.hardware.devices import cuda_gpus
from trtllm_dflash.log import human_bytes
from trtllm_dflash.runtime.threads import available_cores

PACKAGES = (
    "numpy",
    "onnxruntime",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "tokenizers",
    "transformers",
    "torch",
    "dflash",
)
_PROCESSORS = Path("/proc/cpuinfo")


def machine_facts(num_threads: int) -> dict[str, Any]:
    """This machine, in plain types; `load_average` says what else it had to do in the last
    minute.
    """
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
    """The processor's own name where the system tells it, else its architecture."""
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(module: Path = Path(__file__)) -> str | None:
    """The git commit of the checkout that this package is part of, with + where tracked files
    differ; None without.

    A package may also lie in somebody else's checkout, as in a virtual environment: git then does
    not track `module`.
    """
    try:
        here = ["git", "-C", str(module.parent)]
        tracked = [*here, "ls-files", "--error-unmatch", "--", module.name]
        subprocess.run(tracked, capture_output=True, check=True, timeout=20)
        found = subprocess.run(
            [*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=20
        )
        changed = subprocess.run(
            [*here, "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")
