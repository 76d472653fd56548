"""Our operators as TensorRT plugins: kernels compiled with NVRTC at build time, that travel inside
the engine.

Used by the builder process and by the GPU session. Nothing here needs a GPU before `enqueue`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtllm_dflash.graph.kernel_specs import KernelVariant


def register(cubins: Mapping[KernelVariant, bytes] | None = None) -> None:
    """Make our plugins known to TensorRT; again and again is the same as once.

    `cubins` are the kernels of an engine to be built. An engine that is loaded brings its own.

    Raises:
        EngineError: if TensorRT does not take them.
    """
    from trtllm_dflash.trt_plugins import plugin

    plugin.register(cubins)


def pop_errors() -> list[str]:
    """Return what plugins of this process have refused since the last time, oldest first; TensorRT
    has no words for it.
    """
    from trtllm_dflash.trt_plugins import plugin

    return plugin.pop_errors()
