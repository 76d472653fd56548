"""Switches in the environment: 1 is on, 0 is off, anything else is an error."""

from __future__ import annotations

import os
from collections.abc import Mapping

from trtllm_dflash.errors import UsageError

# On: decode steps are captured in CUDA graphs. Off: they are launched kernel by kernel.
CUDA_GRAPH = "DFLASH_CUDA_GRAPH"
# Off: an engine runs only on the GPU architecture that it was built for. On: try any GPU.
ANY_GPU = "DFLASH_ANY_GPU"
# On: steps run once, and are captured, when an engine is loaded. Off: when they are first needed.
WARM_UP = "DFLASH_WARM_UP"
# On: kernels that TensorRT-RTX has finished are kept for the next start, in a file.
KERNEL_CACHE = "DFLASH_KERNEL_CACHE"


def env_flag(name: str, *, default: bool, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the switch `name` is on; unset or empty is the default."""
    text = environment.get(name, "")
    if text not in ("", "0", "1"):
        raise UsageError(
            f"{name} is {text!r}, expected 1 (on) or 0 (off). Set one of them or unset it."
        )
    return default if not text else text == "1"
