"""From the kernels of a step to its time: a roofline for each kernel, launches, GPUs and host."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.catalog.gpus import GpuSpec
from trtllm_dflash.checkpoint.formats import WeightFormat
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.workload import KernelCost

# The values that every estimate assumes, each with its meaning and reason.
_FILE = Path(__file__).with_name("constants.toml")
DATA: dict[str, Any] = tomllib.loads(_FILE.read_text("utf-8"))
WEIGHTS, CACHE, COMPUTE, HEAD = "weights", "KV cache", "compute", "head and logits"
ACTIVATIONS, LAUNCHES = "activations", "launches"
COMMUNICATION, HOST = "communication", "host"
LIMITS = (WEIGHTS, CACHE, COMPUTE, HEAD, ACTIVATIONS, LAUNCHES, COMMUNICATION, HOST)
STATE = "recurrent state"  # of targets with linear attention alone
_LIMITED_BY = {
    "attention": CACHE,
    "linear attention": STATE,
    "linear": WEIGHTS,
    "experts": WEIGHTS,
    "head": HEAD,
}


@dataclass(frozen=True)
class Constants:
    """Seconds, and fractions of a datasheet's figure."""

    bandwidth_fraction: float
    compute_fraction: float
    kernel: float
    sum_latency: float
    link_fraction: float


@dataclass(frozen=True)
class Runtime:
    """The software that runs a step, and the seconds that a step waits for its host.

    `copies_states`: with drafts it writes a recurrent state for each row, and copies the accepted
    one to its place.
    """

    name: str
    meaning: str
    reason: str
    plain_host: float = 0.0
    draft_host: float = 0.0
    copies_states: bool = False


CONSTANTS = Constants(**{name: each["value"] for name, each in DATA["constants"].items()})
RUNTIMES = {name: Runtime(name, **values) for name, values in DATA["runtimes"].items()}
LINK_GBS: dict[str, float] = DATA["link_gbs"]


def expected_active(num_experts: int, top_k: int, tokens: float) -> float:
    """Return how many different experts `tokens` tokens use, if each chooses uniformly.

    A token misses an expert with probability 1 - top_k/num_experts. All tokens miss it with that to
    the power of `tokens`. Real routing is uneven, and neighbouring tokens choose alike. Both lower
    the number, so this is an upper estimate.
    """
    return num_experts * (1 - float((1 - top_k / num_experts) ** tokens))


def peak_flops(fmt: WeightFormat | None, gpu: GpuSpec) -> float:
    """Return the operations a second at which `gpu` multiplies a format at most; None is BF16.

    Raises:
        UsageError: if its tensor cores lack the type.
    """
    if fmt is None or not fmt.has_input_scale:
        return gpu.bf16_tflops * 1e12
    is_fp8 = fmt.group_size is None
    rate = gpu.fp8_tflops if is_fp8 else gpu.fp4_tflops
    if rate is None:
        multiplied_as = "fp8" if is_fp8 else "fp4"
        problem = f"does not multiply {multiplied_as}, which {fmt.name} needs"
        raise UsageError(f"{gpu.name} {problem}")
    return rate * 1e12


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step, by what bounds them and by part of the step."""

    by_limit: dict[str, float]
    by_part: dict[str, float]

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
    runtime: Runtime = RUNTIMES["engine"]
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
        self, costs: Iterable[KernelCost], *, batch: int, context: float, drafts: bool
    ) -> StepTime:
        """Return the time of a step of `batch` sequences with `context` positions each."""
        limits, parts = dict.fromkeys(LIMITS, 0.0), defaultdict[str, float](float)
        shared = 2 * (self.gpus - 1) / self.gpus  # of a sum, over a GPU's link
        link = LINK_GBS.get(self.gpu.arch, 0.0) * 1e9 * self.constants.link_fraction
        for cost in costs:
            states = self._state_traffic(cost, drafts=drafts)
            limit, working = self._working_time(cost, batch, context, states)
            launching = cost.kernels * self.constants.kernel
            summing = 0.0
            if self.gpus > 1 and cost.reduced_bytes:
                moved = shared * batch * cost.rows * cost.reduced_bytes
                summing = self.constants.sum_latency + moved / link
            limits[limit] = limits.get(limit, 0.0) + working
            limits[LAUNCHES] += launching
            limits[COMMUNICATION] += summing
            parts[cost.part] += working + launching + summing
        host = self.runtime.draft_host if drafts else self.runtime.plain_host
        limits[HOST] += host
        return StepTime(limits, {**parts, "host": host})

    def _state_traffic(self, cost: KernelCost, *, drafts: bool) -> float:
        """Return the bytes of one sequence's state and window that are read and written."""
        traffic = 2 * cost.state_bytes
        if drafts and self.runtime.copies_states:
            # One write becomes one for each row; the accepted state is read and written again.
            traffic += (cost.rows + 1) * (cost.state_bytes - cost.window_bytes)
        return traffic

    def _working_time(
        self, cost: KernelCost, batch: int, context: float, states: float
    ) -> tuple[str, float]:
        """Return the longer of reading and computing, and which it is."""
        tokens = batch * cost.rows
        rows = tokens * cost.top_k  # one for each expert of a token
        positions = batch * min(context, cost.window or context)
        weights = cost.weight_bytes * expected_active(cost.num_experts, cost.top_k, tokens)
        moved = weights + rows * cost.row_bytes + positions * cost.position_bytes
        moved += batch * states
        flops = rows * cost.row_flops + positions * cost.position_flops
        bandwidth = self.gpu.bandwidth_gbs * 1e9 * self.constants.bandwidth_fraction
        rate = peak_flops(cost.format, self.gpu) * self.constants.compute_fraction
        reading, computing = moved / bandwidth, flops / rate
        is_computing = computing > reading and cost.operation != "head"
        limit = COMPUTE if is_computing else _LIMITED_BY.get(cost.operation, ACTIVATIONS)
        return limit, max(reading, computing) / self.gpus
