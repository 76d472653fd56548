"""What a build would make and need, before it is built and on any machine.

It counts bytes by format, and what fits on which GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.catalog.gpus import GpuSpec, gpus_of
from trtllm_dflash.checkpoint.locate import honouring_allow_links
from trtllm_dflash.engine_dir.atomic import check_output, check_space
from trtllm_dflash.errors import BuildError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import unbuildable_reason
from trtllm_dflash.log import Rows, human_bytes
from trtllm_dflash.options.build import DTYPE_BYTES, BuildConfig

_LENGTHS = (2048, 8192, 32768, 131072)
# The part of the memory left by the engine and its steps that goes to caches. TensorRT-LLM has the
# same default.
_CACHE_SHARE = 0.9
_ROWS = 64  # by which caches grow


@dataclass(frozen=True)
class GpuFit:
    """Whether a build fits on one GPU, and how many slots would, by sequence length.

    Lengths of which not even one slot fits are left out.
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

    @property
    def engine_bytes(self) -> int:
        """Return about the bytes of the engine file.

        Those are its weights, and a tied head once more, since compilers store it transposed. The
        demo pair's real engine for sm120 is 2.7 % larger.
        """
        target = self.models.target.config
        if not target.tie_word_embeddings:
            return self.models.weight_bytes
        size = DTYPE_BYTES[self.models.resolved.dtype]
        head = target.vocab_size * target.hidden_size * size
        return self.models.weight_bytes + head

    @property
    def cache_bytes_per_token(self) -> dict[str, int]:
        """Return the bytes that one more token takes in a slot's caches, by model."""
        sizes = self.models.resolved
        longer = replace(sizes, max_seq_len=sizes.max_seq_len + _ROWS)
        now = self.models.cache_bytes_by_role()
        then = replace(self.models, resolved=longer).cache_bytes_by_role()
        return {role: (then[role] - size) // _ROWS for role, size in now.items()}

    @property
    def step_bytes(self) -> int:
        """Return about the bytes of intermediate results of the widest steps.

        Those are all slots' logits, and a prompt chunk's MLP and features.
        """
        return _step_bytes(self.models, self.models.resolved.max_batch_size)

    @property
    def total_bytes(self) -> int:
        """Return the bytes of engine, steps and caches for the slots that were asked for."""
        slots = self.models.resolved.max_batch_size
        return self.engine_bytes + self.step_bytes + slots * self.models.cache_bytes_per_slot

    def fits(self) -> list[GpuFit]:
        """Return what fits on each known GPU of the arch, for sequences up to the target's own."""
        longest = self.models.target.config.longest_context
        lengths = sorted({min(tokens, longest) for tokens in _LENGTHS})
        sizes = {tokens: self._slot_bytes(tokens) for tokens in lengths}
        gpus = gpus_of(self.models.resolved.gpu_arch)
        return [self._fit(gpu, sizes) for gpu in gpus]

    def _slot_bytes(self, tokens: int) -> int:
        resolved = replace(self.models.resolved, max_seq_len=tokens)
        return replace(self.models, resolved=resolved).cache_bytes_per_slot

    def _fit(self, gpu: GpuSpec, sizes: dict[int, int]) -> GpuFit:
        chunk_bytes = _step_bytes(self.models, 0)
        logits_bytes = _step_bytes(self.models, 1) - chunk_bytes
        left = gpu.memory_bytes - self.engine_bytes - chunk_bytes
        for_caches = int(_CACHE_SHARE * left)
        fitting = {}
        for tokens, size in sizes.items():
            slots = for_caches // (size + logits_bytes)
            if slots > 0:
                fitting[tokens] = slots
        as_asked = self.total_bytes <= gpu.memory_bytes
        return GpuFit(gpu, as_asked, fitting)

    def sections(self) -> list[tuple[str, Rows]]:
        """Return the dry run for people: titles and rows."""
        fits = []
        for fit in self.fits():
            gpu = f"1 x {fit.gpu.name} ({fit.gpu.memory_gb:g} GB)"
            fits.append((gpu, str(fit)))
        obstacles = [("not here", text) for text in self.obstacles]
        found = [
            ("would build", summary_rows(self.models)),
            ("memory", self._memory_rows()),
            ("GPUs", fits),
            ("this machine", obstacles),
        ]
        return [(title, rows) for title, rows in found if rows]

    def _memory_rows(self) -> Rows:
        sizes = self.models.resolved
        formats = self.models.bytes_by_format.items()
        weights = [f"{human_bytes(size)} {name}" for name, size in formats]
        caches = self.cache_bytes_per_token
        token = human_bytes(sum(caches.values()))
        roles = [f"{role} {human_bytes(size)}" for role, size in caches.items()]
        slot = human_bytes(self.models.cache_bytes_per_slot)
        asked = f"{sizes.max_batch_size} x {sizes.max_seq_len} tokens"
        return [
            ("weights", ", ".join(weights)),
            ("engine", f"about {human_bytes(self.engine_bytes)}"),
            ("caches", f"{token} a token ({', '.join(roles)}), {slot} a slot"),
            ("steps", f"about {human_bytes(self.step_bytes)}"),
            ("in all", f"about {human_bytes(self.total_bytes)} for {asked}"),
        ]


@honouring_allow_links
def preview_build(config: BuildConfig, *, overwrite: bool = False) -> DryRun:
    """Resolve a build for any arch without building it; reads headers, no weights.

    Nothing is fetched: models are local or in the hub's cache, or their published sizes are used.

    Raises:
        DFlashError: for an output directory, model or size that cannot work anywhere.
    """
    config = replace(config, output_dir=config.output_dir.expanduser().resolve())
    check_output(config.output_dir, overwrite=overwrite)
    models = resolve_models(config, fetch=False)
    obstacles = [unbuildable_reason(ARCHS[config.arch], plugins=config.with_plugins)]
    try:
        check_space(config.output_dir, models.weight_bytes)
    except BuildError as error:
        obstacles.append(str(error))
    return DryRun(models, tuple(text for text in obstacles if text))


def _step_bytes(models: ResolvedModels, slots: int) -> int:
    """Return the bytes of the float32 logits of `slots` slots, and of one prompt chunk."""
    sizes = models.resolved
    target = models.target.config
    verify_logits = sizes.block_size * target.vocab_size
    if sizes.gather_generation_logits:  # once as a result of the step, once as its output
        verify_logits *= 2
    draft_logits = (sizes.block_size - 1) * models.draft_vocab_size
    logits_bytes = (verify_logits + draft_logits) * DTYPE_BYTES["float32"]
    taps = models.drafter.config.num_taps if models.drafter else 0
    row = 2 * target.intermediate_size + (4 + taps) * target.hidden_size
    chunk_bytes = sizes.max_num_tokens * row * DTYPE_BYTES[sizes.dtype]
    return slots * logits_bytes + chunk_bytes


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
