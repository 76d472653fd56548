"""From the kernels of a step to its time: a roofline for each kernel, launches, GPUs and host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trtllm_dflash.catalog.gpus import GpuSpec
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.constants import CONSTANTS, ENGINE, LINK_GBS, Constants, Runtime
from trtllm_dflash.estimate.workload import KernelCost

WEIGHTS, CACHE, COMPUTE, HEAD = "weights", "KV cache", "compute", "head and logits"
ACTIVATIONS, LAUNCHES = "activations", "launches"
COMMUNICATION, HOST = "communication", "host"
LIMITS = (WEIGHTS, CACHE, COMPUTE, HEAD, ACTIVATIONS, LAUNCHES, COMMUNICATION, HOST)


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step, by what bounds them and by part of the step."""

    by_limit: Mapping[str, float]
    by_part: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Return the time of the whole step."""
        return sum(self.by_limit.values())

    @property
    def limited_by(self) -> str:
        """Return what bounds the largest share of the step."""
        return max(self.by_limit, key=lambda limit: self.by_limit[limit])


@dataclass(frozen=True)
class Roofline:
    """`gpus` GPUs that share every layer (tensor parallel), and the software on them.

    Raises:
        UsageError: for several GPUs without NVLink.
    """

    gpu: GpuSpec
    gpus: int = 1
    runtime: Runtime = ENGINE
    constants: Constants = CONSTANTS

    def __post_init__(self) -> None:
        """Check that the GPUs can share layers."""
        if self.gpus > 1 and self.gpu.arch not in LINK_GBS:
            raise UsageError(
                f"--gpus {self.gpus}: {self.gpu.name} has no NVLink, over which the estimate shares"
                f" layers; GPUs of {', '.join(LINK_GBS)} have it"
            )

    @property
    def memory_bytes(self) -> int:
        """Return the memory of all GPUs."""
        return self.gpus * self.gpu.memory_bytes

    def time(
        self,
        costs: Iterable[KernelCost],
        *,
        batch: int,
        context: float,
        drafts: bool,
        prompt: bool = False,
    ) -> StepTime:
        """Return the time of a step of `batch` sequences with `context` positions each.

        A `prompt` is never a CUDA graph.
        """
        captured = self.runtime.captured and not prompt
        limits, parts = dict.fromkeys(LIMITS, 0.0), dict[str, float]()
        for cost in costs:
            spent = [
                self._kernel_time(cost, batch, context),
                (LAUNCHES, self._launch_time(cost, captured)),
                (COMMUNICATION, self._reduction_time(cost, batch)),
            ]
            for limit, seconds in spent:
                limits[limit] += seconds
                parts[cost.part] = parts.get(cost.part, 0.0) + seconds
        host = self.runtime.plain_host
        if drafts:
            host = self.runtime.draft_host + batch * self.runtime.draft_host_per_sequence
        limits[HOST] += host
        return StepTime(limits, parts | {"host": host})

    def _kernel_time(self, cost: KernelCost, batch: int, context: float) -> tuple[str, float]:
        tokens = batch * cost.rows
        uses = cost.experts.top_k if cost.experts else 1
        copies = cost.experts.expected_active(tokens) if cost.experts else 1.0
        positions = batch * (min(context, cost.window) if cost.window else context)
        moved = (
            cost.weight_bytes * copies
            + tokens * uses * cost.row_bytes
            + positions * cost.position_bytes
        )
        flops = tokens * uses * cost.row_flops + positions * cost.position_flops
        bandwidth = self.gpu.bandwidth_gbs * 1e9 * self.constants.bandwidth_fraction
        rate = cost.format.peak_flops(self.gpu) * self.constants.compute_fraction
        reading, computing = moved / bandwidth, flops / rate
        limit = _limit(cost, is_computing=computing > reading)
        return limit, max(reading, computing) / self.gpus

    def _launch_time(self, cost: KernelCost, captured: bool) -> float:
        launch = 0.0 if captured else self.runtime.launch * self.runtime.unfused
        return cost.kernels * max(self.constants.kernel, launch)

    def _reduction_time(self, cost: KernelCost, batch: int) -> float:
        if self.gpus == 1 or not cost.reduced_bytes:
            return 0.0
        link = LINK_GBS[self.gpu.arch] * 1e9 * self.constants.link_fraction
        moved = 2 * (self.gpus - 1) / self.gpus * batch * cost.rows * cost.reduced_bytes
        return self.constants.sum_latency + moved / link


def _limit(cost: KernelCost, *, is_computing: bool) -> str:
    if cost.operation == "head":
        return HEAD
    if is_computing:
        return COMPUTE
    by_operation = {"attention": CACHE, "linear": WEIGHTS, "experts": WEIGHTS}
    return by_operation.get(cost.operation, ACTIVATIONS)
