"""What a build would make and need, before it is built and on any machine.

It counts bytes by format, what fits on which GPU, and what the build itself takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from trtllm_dflash.atomic.disk import free_bytes, same_disk
from trtllm_dflash.atomic.output_directory import check_space
from trtllm_dflash.builder.host_costs import HostCosts, hub_cache
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.builder.scratch_limit import scratch_refusal
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.builder.what_if import UNQUANTIZED
from trtllm_dflash.catalog.gpus import GpuSpec, gpus_of
from trtllm_dflash.checkpoint.links import honouring_allow_links
from trtllm_dflash.engine_dir.replacing import check_output
from trtllm_dflash.errors import BuildError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import unbuildable_reason
from trtllm_dflash.log import Rows, human_bytes
from trtllm_dflash.options.build import BuildConfig

_LENGTHS = (2048, 8192, 32768, 131072)


@dataclass(frozen=True)
class GpuFit:
    """Whether a build fits on one GPU, and how many slots would, by sequence length.

    The length that was asked for is among them, so that both say the same. Lengths of which not
    even one slot fits are left out.
    """

    gpu: GpuSpec
    as_asked: bool
    slots: dict[int, int]

    def __str__(self) -> str:
        fits = "fits" if self.as_asked else "does not fit"
        batches = []
        for tokens, slots in self.slots.items():
            batches.append(f"batch {slots} at {_length(tokens)}")
        if not batches:
            return f"{fits}; nor would any batch"
        return f"{fits}; at most {', '.join(batches)}"


@dataclass(frozen=True)
class DryRun:
    """A build that is resolved and goes no further.

    `obstacles` are the reasons why it could not be made on this machine.
    """

    models: ResolvedModels
    obstacles: tuple[str, ...]

    @cached_property
    def plan(self) -> MemoryPlan:
        """Return the memory on the device."""
        return MemoryPlan.of(self.models)

    def fits(self) -> list[GpuFit]:
        """Return what fits on each known GPU of the arch, for sequences up to the target's own."""
        longest = self.models.target.config.longest_context
        asked = self.models.resolved.max_seq_len
        lengths = sorted({asked, *(min(tokens, longest) for tokens in _LENGTHS)})
        plans = {tokens: self.plan.with_length(tokens) for tokens in lengths}
        return [_fit(gpu, self.plan, plans) for gpu in gpus_of(self.models.resolved.gpu_arch)]

    def sections(self) -> list[tuple[str, Rows]]:
        """Return the dry run for people: titles and rows."""
        obstacles = [("not here", text) for text in self.obstacles]
        found = [
            ("what if", self._supposed_rows()),
            ("would build", summary_rows(self.models)),
            ("memory", self._memory_rows()),
            ("GPUs", self._gpu_rows()),
            ("the build", HostCosts(self.plan).rows()),
            ("this machine", obstacles),
        ]
        return [(title, rows) for title, rows in found if rows]

    def _supposed_rows(self) -> Rows:
        return [("supposed", self.models.supposed)] if self.models.supposed else []

    def _gpu_rows(self) -> Rows:
        arch = self.models.resolved.gpu_arch
        if not ARCHS[arch].is_gpu:
            return []
        rows = []
        for fit in self.fits():
            shared = ", shared with the CPU" if fit.gpu.shared_memory else ""
            rows.append((f"1 x {fit.gpu.name} ({fit.gpu.memory_gb:g} GB{shared})", str(fit)))
        return rows or [(arch, f"no GPU of {arch} in the table")]

    def _memory_rows(self) -> Rows:
        plan, sizes = self.plan, self.models.resolved
        formats = self.models.bytes_by_format.items()
        weights = [f"{human_bytes(size)} {name}" for name, size in formats]
        parts = plan.engine_parts()
        others = [(name, size) for name, size in parts.items() if name != "weights"]
        caches = plan.cache_bytes_per_token()
        token = human_bytes(sum(caches.values()))
        roles = [f"{role} {human_bytes(size)}" for role, size in caches.items()]
        slot = human_bytes(self.models.cache_bytes_per_slot)
        states = self.models.slot_memory.describe_states()
        spare = plan.spare_states.nbytes(sizes.max_batch_size)
        if spare:
            states += f"; {human_bytes(spare)} of copies beside the slots"
        asked = f"{sizes.max_batch_size} x {sizes.max_seq_len} tokens"
        return [
            ("weights", ", ".join(weights)),
            *((name, f"about {human_bytes(size)}") for name, size in others),
            ("engine", f"about {human_bytes(plan.engine_bytes)}"),
            ("caches", f"{token} a token ({', '.join(roles)}), {slot} a slot"),
            *((("states", states),) if states else ()),
            ("steps", f"about {human_bytes(plan.step_bytes())}"),
            ("in all", f"about {human_bytes(plan.total_bytes())} for {asked}"),
        ]


def _fit(gpu: GpuSpec, asked: MemoryPlan, plans: dict[int, MemoryPlan]) -> GpuFit:
    fitting = {}
    for tokens, plan in plans.items():
        slots = plan.most_slots(gpu.memory_bytes)
        if slots > 0:
            fitting[tokens] = slots
    return GpuFit(gpu, asked.fits(gpu.memory_bytes), fitting)


@honouring_allow_links
def preview_build(
    config: BuildConfig, *, overwrite: bool = False, quant: str = UNQUANTIZED
) -> DryRun:
    """Resolve a build for any arch without building it; reads headers, no weights.

    Nothing is fetched: models are local or in the hub's cache, or their published sizes are used.
    `quant` supposes that the target were quantized to a format.

    Raises:
        DFlashError: for an output directory, model or size that cannot work anywhere.
    """
    config = replace(config, output_dir=config.output_dir.expanduser().resolve())
    check_output(config.output_dir, overwrite=overwrite)
    models = resolve_models(config, fetch=False, quant=quant)
    plan = MemoryPlan.of(models)
    obstacles = [
        unbuildable_reason(ARCHS[config.arch], plugins=config.with_plugins),
        scratch_refusal(plan),
    ]
    obstacles.append(_disk_obstacle(plan))
    return DryRun(models, tuple(text for text in obstacles if text))


def _disk_obstacle(plan: MemoryPlan) -> str | None:
    """Return which disk is too small: that of the hub's cache, or the output's."""
    costs, output = HostCosts(plan), plan.models.config.output_dir
    downloads = sum(costs.downloads().values())
    needed, cache, what = costs.disk_bytes, hub_cache(), "the engine"
    if downloads and same_disk(output, cache):
        needed, what = needed + downloads, "the engine with its download"
    elif downloads and free_bytes(cache) < downloads:
        return (
            f"the download needs about {human_bytes(downloads)}, and the disk of {cache} has"
            f" {human_bytes(free_bytes(cache))} free; set HF_HOME to a larger one"
        )
    try:
        check_space(output, needed, what=what)
    except BuildError as error:
        return str(error)
    return None


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
