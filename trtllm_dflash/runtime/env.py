"""Switches in the environment: 1 is on, 0 is off, anything else is a mistake that is said."""

from __future__ import annotations

import os
from collections.abc import Mapping

from trtllm_dflash.errors import UsageError

CUDA_GRAPH = (  # on: generation steps are captured; off: launched kernel by kernel, to compare
    "DFLASH_CUDA_GRAPH"
)
ANY_GPU = (  # off: an engine runs on the GPU that it was built for; on: try it on any other
    "DFLASH_ANY_GPU"
)


def env_flag(name: str, *, default: bool, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the switch `name` is on; unset or empty is the default."""
    text = environment.get(name, "")
    if text not in ("", "0", "1"):
        raise UsageError(
            f"{name} is {text!r}, expected 1 (on) or 0 (off). Set one of them or unset it."
        )
    return default if not text else text == "1"
