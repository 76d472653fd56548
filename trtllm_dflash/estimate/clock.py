"""From work to time: a roofline for every kernel, and what one kernel, one step and one sum over
GPUs cost besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trtllm_dflash.catalog.gpus import GpuSpec
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.constants import CONSTANTS, ENGINE, LINK_GBS, Constants, Runtime
from trtllm_dflash.estimate.count import Work

WEIGHTS, CACHE, COMPUTE, HEAD, ACTIVATIONS, LAUNCHES, COMMUNICATION, HOST = LIMITS = (
    "weights", "KV cache", "compute", "head and logits", "activations", "launches", "communication", "host",
)  # fmt: skip


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by what bounds them, and by part of the step."""

    by_limit: Mapping[str, float]
    by_part: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.by_limit.values())

    @property
    def limited_by(self) -> str:
        """What most of the step waits for."""
        return max(self.by_limit, key=lambda limit: self.by_limit[limit])


@dataclass(frozen=True)
class Machine:
    """`gpus` GPUs that share every layer (tensor parallel), and the software on them."""

    gpu: GpuSpec
    gpus: int = 1
    runtime: Runtime = ENGINE
    constants: Constants = CONSTANTS

    def __post_init__(self) -> None:
        """Check that the GPUs can share layers."""
        if self.gpus > 1 and self.gpu.arch not in LINK_GBS:
            linked = ", ".join(LINK_GBS)
            raise UsageError(
                f"--gpus {self.gpus}: {self.gpu.name} has no NVLink, over which the estimate shares"
                f" layers; GPUs of {linked} have it"
            )

    @property
    def memory_bytes(self) -> int:
        """Of all GPUs."""
        return self.gpus * self.gpu.memory_bytes

    def time(
        self,
        works: Iterable[Work],
        *,
        batch: int,
        context: float,
        drafts: bool,
        prompt: bool = False,
    ) -> StepTime:
        """The step of `batch` sequences that have `context` positions each; a prompt's is never a
        CUDA graph.
        """
        captured = self.runtime.captured and not prompt
        limits, parts = dict.fromkeys(LIMITS, 0.0), dict[str, float]()
        for work in works:
            spent = [
                self._roofline(work, batch, context),
                (LAUNCHES, self._launches(work, captured)),
                self._sum(work, batch),
            ]
            for limit, seconds in spent:
                limits[limit] += seconds
                parts[work.part] = parts.get(work.part, 0.0) + seconds
        host = self._host(batch) if drafts else self.runtime.plain_host
        limits[HOST] += host
        return StepTime(limits, parts | {"host": host})

    def _roofline(self, work: Work, batch: int, context: float) -> tuple[str, float]:
        tokens = batch * work.rows
        copies = work.experts.touched(tokens) if work.experts else 1.0
        uses = work.experts.top_k if work.experts else 1
        positions = batch * (min(context, work.window) if work.window else context)
        moved = (
            work.weight_bytes * copies
            + tokens * uses * work.row_bytes
            + positions * work.position_bytes
        )
        flops = tokens * uses * work.row_flops + positions * work.position_flops
        reading = moved / (self.gpu.bandwidth_gbs * 1e9 * self.constants.bandwidth_fraction)
        computing = flops / (work.number.flops(self.gpu) * self.constants.compute_fraction)
        return _limit(work, reading, computing), max(reading, computing) / self.gpus

    def _host(self, batch: int) -> float:
        return self.runtime.draft_host + batch * self.runtime.draft_host_per_sequence

    def _launches(self, work: Work, captured: bool) -> float:
        seconds = max(
            self.constants.kernel, 0.0 if captured else self.runtime.launch * self.runtime.unfused
        )
        return work.kernels * seconds

    def _sum(self, work: Work, batch: int) -> tuple[str, float]:
        if self.gpus == 1 or not work.reduced_bytes:
            return COMMUNICATION, 0.0
        link = LINK_GBS[self.gpu.arch] * 1e9 * self.constants.link_fraction
        moved = 2 * (self.gpus - 1) / self.gpus * batch * work.rows * work.reduced_bytes
        return COMMUNICATION, self.constants.sum_latency + moved / link


def _limit(work: Work, reading: float, computing: float) -> str:
    if work.kind == "head":
        return HEAD
    if computing > reading:
        return COMPUTE
    return {"attention": CACHE, "linear": WEIGHTS, "experts": WEIGHTS}.get(work.kind, ACTIVATIONS)
