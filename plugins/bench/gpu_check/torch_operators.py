"""Operators on torch tensors, and what every part that measures begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from plugins.bench.gpu_check.cubins import loader
from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.rows import SkippedError
from plugins.bench.gpu_check.timing import copy_bandwidth, seconds

Tensors = dict[str, torch.Tensor]  # by the names of an operator's inputs and outputs
Launch = Callable[[Tensors], object]


class WrongResultError(Exception):
    """A result is further from float64's than its rounding explains."""


def check_rows(
    where: str,
    got: torch.Tensor,
    exact: torch.Tensor,
    eager: torch.Tensor,
    row: str = "token {}",
) -> None:
    """Compare rows [..., N] with float64's: the bound is twice the error of eager bfloat16, plus
    the rounding of the result.

    Raises:
        WrongResultError: with the worst row, which `row` names by its index.
    """
    error = (got.double() - exact).norm(dim=-1)
    allowed = 2 * (eager - exact).norm(dim=-1) + 2.0**-8 * exact.norm(dim=-1)
    if not bool((error <= allowed).all()):
        worst = int((error / allowed).nan_to_num(math.inf).argmax())
        raise WrongResultError(
            f"{where}: {row.format(worst)} is off by {error.flatten()[worst]:.3g}, allowed"
            f" {allowed.flatten()[worst]:.3g}"
        )


class Machine:
    """The GPU as torch sees it: where kernels come from, and how fast its memory copies."""

    def __init__(self, folder: Path) -> None:
        """Raise SkippedError where torch sees no GPU."""
        if not torch.cuda.is_available():
            raise SkippedError(
                f"torch {torch.__version__} sees no GPU (torch.cuda.is_available() is False):"
                " install a torch for CUDA"
            )
        torch.cuda.init()
        torch.zeros(1, device="cuda")  # the primary context is current from here on
        self.load = loader(folder)
        self.bandwidth = copy_bandwidth()

    def figures(
        self, time: float, moved_bytes: float, operations: float = 0
    ) -> dict[str, float]:
        """Return a row's figures: a time in seconds against the rate of a large copy."""
        found = {"microseconds": time * 1e6}
        if operations:
            found["teraflops"] = operations / time / 1e12
        else:
            found["bandwidth_percent"] = 100 * moved_bytes / time / self.bandwidth
        return found


def launcher(operator: Operator, tensors: Tensors) -> Launch:
    """Return a function that launches an operator on torch's stream, for tensors such as these.

    Raises:
        ValueError: naming the tensors that the operator needs and is not given. Its kernel would
            read from address 0.
    """
    spec = operator.spec
    own = [tensor for tensor in spec.outputs if not tensor.aliases]
    every = [*spec.plugin_inputs, *own]
    missing = [each.name for each in every if not each.optional and each.name not in tensors]
    if missing:
        raise ValueError(f"{spec.name} needs {', '.join(missing)}, which nobody gives")
    names = [each.name for each in every if each.name in tensors]
    device = tensors[names[0]].device

    def dims(given: Tensors) -> dict[str, tuple[int, ...]]:
        return {name: tuple(given[name].shape) for name in names}

    needed = max(operator.workspace_bytes(dims(tensors)), 1)
    workspace = torch.empty(needed, dtype=torch.uint8, device=device)

    def launch(given: Tensors) -> None:
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
        addresses = {name: given[name].data_ptr() for name in names}
        operator.launch(dims(given), addresses, workspace.data_ptr(), stream)

    return launch


def add_best_other(
    figures: dict[str, Any], ways: dict[str, Launch], sets: Sequence[Tensors]
) -> None:
    """Add the fastest of other systems' ways to a row; each is tried on one set first.

    A way that does not run here, or gives another result, is named with its reason.
    """
    quick = {}
    left_out = {}
    for name, way in ways.items():
        try:
            quick[name] = seconds(way, sets[:1], launches=1, replays=3)
        except Exception as error:  # noqa: BLE001 - not every GPU or version has every way
            left_out[name] = str(error).splitlines()[0][:80] if str(error) else repr(error)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    fastest = sorted(quick, key=lambda name: quick[name])[:2]
    times = {name: seconds(ways[name], sets) for name in fastest}
    if times:
        best = min(times, key=lambda name: times[name])
        figures |= {"other": best, "other_microseconds": times[best] * 1e6}
    if left_out:
        figures["left out"] = ", ".join(f"{name} ({why})" for name, why in left_out.items())
