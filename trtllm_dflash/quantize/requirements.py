"""The packages that quantization needs; importing this module imports none of them."""

from __future__ import annotations

from importlib.util import find_spec

from trtllm_dflash.errors import QuantizeError, install_command

INSTALL = install_command("quantize")
# ModelOpt imports requests without asking for it.
_MODULES = ("torch", "modelopt", "requests")
_REFERENCE = "dflash"


def require_packages() -> None:
    """Raise QuantizeError if a package is missing, with what to install."""
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise QuantizeError(
            "quantizing needs ModelOpt and torch, and here there is no module"
            f" {' and no '.join(missing)}: {INSTALL}"
        )


def require_device(device: str) -> None:
    """Raise QuantizeError for a GPU that torch does not see; only then is torch imported."""
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise QuantizeError(
            "--device cuda: torch sees no GPU here. Install a CUDA build of torch, or use --device"
            " cpu."
        )


def require_reference() -> None:
    """Raise QuantizeError if the reference package is missing; it runs the drafter."""
    if find_spec(_REFERENCE) is None:
        raise QuantizeError(
            "--quantize-drafter runs the drafter in the reference package, which is not installed"
            f" here (no module {_REFERENCE}): pip install --no-deps dflash==0.1.0"
        )
