"""The one door to TensorRT: code behind it is the same for both kinds, and a process has one of
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trtllm_dflash.errors import EngineError

if TYPE_CHECKING:
    from trtllm_dflash.trt.flavors import Flavor

_FLAVORS = {  # module of TensorRT -> module and class of what is particular to it
    "tensorrt_rtx": "trtllm_dflash.trt.flavors:TensorRTRTX",
    "tensorrt": "trtllm_dflash.trt.flavors:TensorRT",
}
_DEFAULT = "tensorrt_rtx"
_chosen: list[str] = []


def select_flavor(module: str) -> None:
    """Make `module` the TensorRT of this process, before anything behind the door is imported.

    Raises: EngineError: if the process already has the other one: their plugins are classes of one
    module each.
    """
    if _chosen and _chosen[0] != module:
        raise EngineError(
            f"this process has loaded {_chosen[0]} already, and an engine of {module} needs a"
            " process of its own"
        )
    if not _chosen:
        _chosen.append(module)


def import_tensorrt() -> Any:
    """The TensorRT of this process: the one chosen, else TensorRT-RTX.

    Raises:
        EngineError: if it cannot be imported.
    """
    select_flavor(_chosen[0] if _chosen else _DEFAULT)
    try:
        return import_module(_chosen[0])
    except (ImportError, OSError) as error:  # OSError: a library of it that is not there
        raise EngineError(f"the Python module {_chosen[0]} cannot be imported: {error}") from error


def flavor() -> Flavor:
    """What is particular to the TensorRT of this process."""
    import_tensorrt()
    module, name = _FLAVORS[_chosen[0]].split(":")
    made: Flavor = getattr(import_module(module), name)()
    return made
