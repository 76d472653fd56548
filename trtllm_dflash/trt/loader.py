"""Import of TensorRT or TensorRT-RTX. All other code of the package imports it from here.

A process can use only one of the two.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trtllm_dflash.errors import EngineError

if TYPE_CHECKING:
    from trtllm_dflash.trt.flavors import Flavor

_FLAVORS = {  # module of TensorRT -> our module and class for it
    "tensorrt_rtx": "trtllm_dflash.trt.flavors:TensorRTRTX",
    "tensorrt": "trtllm_dflash.trt.flavors:TensorRT",
}
_DEFAULT = "tensorrt_rtx"
_chosen: list[str] = []


def select_flavor(module: str) -> None:
    """Make `module` the TensorRT of this process.

    Call it before any module that uses TensorRT is imported: plugins are classes of one flavor.

    Raises:
        EngineError: if the process already uses the other one.
    """
    if _chosen and _chosen[0] != module:
        raise EngineError(
            f"this process has loaded {_chosen[0]} already, and an engine of {module} needs a"
            " process of its own"
        )
    if not _chosen:
        _chosen.append(module)


def import_tensorrt() -> Any:
    """Import the selected TensorRT, by default TensorRT-RTX.

    Raises:
        EngineError: if it cannot be imported.
    """
    select_flavor(_chosen[0] if _chosen else _DEFAULT)
    try:
        return import_module(_chosen[0])
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        raise EngineError(
            f"the Python module {_chosen[0]} cannot be imported: {error}"
        ) from error


def flavor() -> Flavor:
    """Return the flavor of this process's TensorRT."""
    import_tensorrt()
    module, name = _FLAVORS[_chosen[0]].split(":")
    made: Flavor = getattr(import_module(module), name)()
    return made
