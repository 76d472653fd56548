"""The batch sizes and draft lengths that a profile measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.runtime.draft_len_chooser import CANDIDATES


@dataclass(frozen=True)
class Sweep:
    """The DFlash engine, and the batch sizes and draft lengths to measure it with, growing."""

    directory: Path
    engine: EngineConfig
    batches: tuple[int, ...]
    draft_lens: tuple[int, ...]
    drafts: tuple[str, ...] = ("both",)
    auto: bool = False  # and as many drafts as pay

    @classmethod
    def resolve(cls, config: ProfileConfig, engine: EngineConfig) -> Sweep:
        """Fill in the defaults.

        Raises:
            UsageError: for what the engine cannot do.
        """
        if not engine.speculates:
            raise UsageError(
                f"{config.engine}: this engine has no drafter, so there is nothing to compare it"
                " with. Give the DFlash engine, and this one as --plain."
            )
        num_slots = engine.max_batch_size
        batches = config.batches or _powers_of_two(num_slots)
        if batches[-1] > num_slots:
            raise UsageError(
                f"--batch {batches[-1]}: {config.engine} has {num_slots} slots (its"
                " --max-batch-size)."
            )
        defaults = {0, engine.draft_len, engine.block_size - 1}
        draft_lens = config.draft_len_values or tuple(sorted(defaults))
        if draft_lens[-1] >= engine.block_size:
            raise UsageError(
                f"--draft-lens {draft_lens[-1]}: a block of {engine.block_size} holds"
                f" {engine.block_size - 1} drafts."
            )
        if config.draft_sources != ("dflash",) and not engine.has_lookup:
            raise UsageError(
                f"--drafts {config.drafts}: this engine was built by a version that looks no drafts"
                " up. Build it again, or give --drafts dflash."
            )
        auto = engine.auto_draft_len if config.tries_auto is None else config.tries_auto
        return cls(config.engine, engine, batches, draft_lens, config.draft_sources, auto)

    @property
    def system_names(self) -> dict[int, str]:
        """Return the name of the DFlash system for each draft_len, of the advised sources."""
        return {
            draft_len: self.name_of(draft_len, self.drafts[-1]) for draft_len in self.draft_lens
        }

    @property
    def ready_draft_lens(self) -> tuple[int, ...]:
        """Return the numbers of drafts that steps may have."""
        chosen = [width - 1 for width in CANDIDATES if width <= self.engine.block_size]
        if not self.auto:
            return self.draft_lens
        return tuple(sorted({*self.draft_lens, *chosen, self.engine.draft_len}))

    @property
    def systems(self) -> list[tuple[int | str, str]]:
        """Return draft_len and sources of each DFlash system; without drafts there is one."""
        *others, last = self.drafts
        found: list[tuple[int | str, str]] = []
        for draft_len in (*self.draft_lens, *((AUTO,) if self.auto else ())):
            found += [(draft_len, sources) for sources in others if draft_len]
            found.append((draft_len, last))
        return found

    def name_of(self, draft_len: int | str, sources: str) -> str:
        """Return the name of a DFlash system."""
        if sources == "both" or not draft_len:
            return f"DFlash {draft_len}"
        return f"DFlash {draft_len}, {'drafter' if sources == 'dflash' else sources} alone"


def _powers_of_two(limit: int) -> tuple[int, ...]:
    """Return the powers of two up to `limit`."""
    return tuple(1 << exponent for exponent in range(limit.bit_length()))
