"""What a build would make and need, before it is built, on any machine: bytes by format, and what
fits on which GPU.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.catalog.gpus import GpuSpec, gpus_of
from trtllm_dflash.engine_dir.atomic import check_output, check_space
from trtllm_dflash.errors import BuildError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import unbuildable_reason
from trtllm_dflash.log import Rows, human_bytes
from trtllm_dflash.options.build import DTYPE_BYTES, BuildConfig

_LENGTHS = (2048, 8192, 32768, 131072)
# Of what the engine and its steps leave free, this part goes to caches: TensorRT-LLM's default for
# the same decision.
_CACHE_SHARE = 0.9
_ROWS = 64  # by which caches grow


@dataclass(frozen=True)
class GpuFit:
    """Whether a build fits on one GPU, and the slots that would, by sequence length (none: the
    length is left out).
    """

    gpu: GpuSpec
    as_asked: bool
    slots: dict[int, int]

    def __str__(self) -> str:
        most = ", ".join(
            f"batch {slots} at {_length(tokens)}" for tokens, slots in self.slots.items()
        )
        return (
            f"{'fits' if self.as_asked else 'does not fit'};"
            f" {f'at most {most}' if most else 'nor would any batch'}"
        )


@dataclass(frozen=True)
class DryRun:
    """A build that is resolved and goes no further. `obstacles`: why it could not be made on this
    machine.
    """

    models: ResolvedModels
    obstacles: tuple[str, ...]

    @property
    def engine_bytes(self) -> int:
        """The engine file, about: its weights, and a tied head once more, since compilers store it
        transposed.

        The demo pair's real engine for sm120 is 2.7 % larger.
        """
        target, size = self.models.target.config, DTYPE_BYTES[self.models.resolved.dtype]
        again = target.vocab_size * target.hidden_size * size if target.tie_word_embeddings else 0
        return self.models.weight_bytes + again

    @property
    def cache_bytes_per_token(self) -> dict[str, int]:
        """Bytes that one more token of a sequence takes in a slot's caches, by model."""
        longer = replace(self.models.resolved, max_seq_len=self.models.resolved.max_seq_len + _ROWS)
        now, then = (
            _cache_bytes(self.models),
            _cache_bytes(replace(self.models, resolved=longer)),
        )
        return {owner: (then[owner] - size) // _ROWS for owner, size in now.items()}

    @property
    def step_bytes(self) -> int:
        """Intermediate results of the widest steps, about: all slots' logits, and a prompt chunk's
        MLP and features.
        """
        return _step_bytes(self.models, self.models.resolved.max_batch_size)

    @property
    def total_bytes(self) -> int:
        """All of it for the slots that were asked for."""
        slots = self.models.resolved.max_batch_size
        return self.engine_bytes + self.step_bytes + slots * self.models.cache_bytes_per_slot

    def fits(self) -> list[GpuFit]:
        """What fits on each known GPU of the arch, for some sequence lengths up to the target's
        own.
        """
        longest = self.models.target.config.max_position_embeddings
        lengths = [tokens for tokens in _LENGTHS if tokens < longest] + [min(longest, _LENGTHS[-1])]
        sizes = {tokens: self._slot_bytes(tokens) for tokens in dict.fromkeys(lengths)}
        return [self._fit(gpu, sizes) for gpu in gpus_of(self.models.resolved.gpu_arch)]

    def _slot_bytes(self, tokens: int) -> int:
        resolved = replace(self.models.resolved, max_seq_len=tokens)
        return replace(self.models, resolved=resolved).cache_bytes_per_slot

    def _fit(self, gpu: GpuSpec, sizes: dict[int, int]) -> GpuFit:
        free = gpu.memory_bytes - self.engine_bytes - _step_bytes(self.models, 0)
        each = _step_bytes(self.models, 1) - _step_bytes(self.models, 0)
        slots = {
            tokens: int(_CACHE_SHARE * free) // (size + each) for tokens, size in sizes.items()
        }
        fitting = {tokens: count for tokens, count in slots.items() if count > 0}
        return GpuFit(gpu, self.total_bytes <= gpu.memory_bytes, fitting)

    def sections(self) -> list[tuple[str, Rows]]:
        """All of it, for people: titles and rows."""
        sizes = self.models.resolved
        formats = ", ".join(
            f"{human_bytes(size)} {name}" for name, size in self.models.bytes_by_format.items()
        )
        caches = self.cache_bytes_per_token
        owners = ", ".join(f"{owner} {human_bytes(size)}" for owner, size in caches.items())
        memory = [
            ("weights", formats),
            ("engine", f"about {human_bytes(self.engine_bytes)}"),
            (
                "caches",
                (
                    f"{human_bytes(sum(caches.values()))} a token ({owners}), "
                    f"{human_bytes(self.models.cache_bytes_per_slot)} a slot"
                ),
            ),
            ("steps", f"about {human_bytes(self.step_bytes)}"),
            (
                "in all",
                (
                    f"about {human_bytes(self.total_bytes)} for {sizes.max_batch_size} x"
                    f" {sizes.max_seq_len} tokens"
                ),
            ),
        ]
        fits = [(f"1 x {fit.gpu.name} ({fit.gpu.memory_gb:g} GB)", str(fit)) for fit in self.fits()]
        here = [("not here", text) for text in self.obstacles]
        found = [
            ("would build", self.models.rows()),
            ("memory", memory),
            ("GPUs", fits),
            ("this machine", here),
        ]
        return [(title, rows) for title, rows in found if rows]


def preview_build(config: BuildConfig, *, overwrite: bool = False) -> DryRun:
    """Everything that can be said of a build without building it, for any arch; reads headers, no
    weights.

    Nothing is fetched: models are local or in the hub's cache.

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
    """Of `slots` slots' float32 logits, and of one prompt chunk."""
    sizes, target = models.resolved, models.target.config
    drafted = target.vocab_size if models.draft_vocab is None else len(models.draft_vocab)
    logits = sizes.block_size * target.vocab_size + (sizes.block_size - 1) * drafted
    taps = models.drafter.config.num_taps if models.drafter else 0
    row = 2 * target.intermediate_size + (4 + taps) * target.hidden_size
    return (
        slots * logits * DTYPE_BYTES["float32"]
        + sizes.max_num_tokens * row * DTYPE_BYTES[sizes.dtype]
    )


def _cache_bytes(models: ResolvedModels) -> Counter[str]:
    """Bytes of one slot's caches, by model."""
    found = Counter[str]()
    for port in models.ports:
        if port.cache and port.direction == "input":
            found[port.cache] += (
                prod(size for size in port.shape if isinstance(size, int)) * port.item_bytes
            )
    return found


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
