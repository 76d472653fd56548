"""The one door of the plugins to TensorRT, so that they are the same code for each of its kinds."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE = "tensorrt_rtx"


def tensorrt() -> Any:
    """The TensorRT of this process."""
    return import_module(_MODULE)
