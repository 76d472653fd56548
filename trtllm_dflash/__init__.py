"""dflash-trt: one TensorRT engine that drafts, verifies and accepts on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtllm_dflash.environment import set_defaults

if TYPE_CHECKING:
    from trtllm_dflash.options.sampling import SamplingParams
    from trtllm_dflash.runtime.async_engine import AsyncEngine
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.outputs import Generation

__version__ = "0.1.0"
__all__ = ["AsyncEngine", "Engine", "Generation", "SamplingParams", "__version__"]

_HOMES = {
    "AsyncEngine": "trtllm_dflash.runtime.async_engine",
    "Engine": "trtllm_dflash.runtime.engine",
    "Generation": "trtllm_dflash.runtime.outputs",
    "SamplingParams": "trtllm_dflash.options.sampling",
}

set_defaults()  # before any module of ours imports a dependency


def __getattr__(name: str) -> Any:
    # Lazy, so that `dflash-trt --help` pays for neither onnxruntime nor transformers.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trtllm_dflash' has no attribute {name!r}")
