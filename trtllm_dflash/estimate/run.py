"""The estimate: from what the user asks to points, curves and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtllm_dflash.checkpoint.loader import pair_mismatches
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.acceptance import Acceptance, read_acceptance
from trtllm_dflash.estimate.clock import Machine, StepTime
from trtllm_dflash.estimate.constants import RUNTIMES
from trtllm_dflash.estimate.count import Work
from trtllm_dflash.estimate.eagle import Eagle
from trtllm_dflash.estimate.equal import throughput_at
from trtllm_dflash.estimate.formats import precision_of
from trtllm_dflash.estimate.known import KnownDrafter, find_drafter, find_target
from trtllm_dflash.estimate.pair import Pair
from trtllm_dflash.estimate.precision import NUMBERS
from trtllm_dflash.options.estimate import EstimateConfig
from trtllm_dflash.profile.advice import advise
from trtllm_dflash.profile.curve import Curve, CurvePoint, frontier
from trtllm_dflash.profile.result import Advice


@dataclass(frozen=True)
class Estimated:
    """One way of decoding at one batch size: the point of the curve, and where its step's time
    goes.
    """

    point: CurvePoint
    time: StepTime


@dataclass(frozen=True)
class Estimate:
    """All that is printed and written: `plain`, `dflash` (the whole block) and `eagle` by batch;
    `best` block sizes.
    """

    config: EstimateConfig
    pair: Pair
    machine: Machine
    acceptance: Acceptance
    tau_source: str
    plain: tuple[Estimated, ...]
    dflash: tuple[Estimated, ...]
    drafted: tuple[CurvePoint, ...]  # all batch sizes with all numbers of drafts
    eagle: tuple[Estimated, ...]
    advice: Advice
    blocks: tuple[int, ...]  # the best block size to build with, for each batch
    left_out: tuple[int, ...]  # batch sizes that do not fit into memory

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The curves of all ways of decoding."""
        named = {"plain": self.plain, "DFlash": self.dflash, "EAGLE-3": self.eagle}
        return tuple(
            Curve(name, tuple(row.point for row in rows), estimated=True)
            for name, rows in named.items()
            if rows
        )

    @property
    def drafter_name(self) -> str:
        """As asked for, or that of the listed target's own."""
        return self.config.drafter or self.pair.drafter.name

    def at_equal_interactivity(self) -> list[tuple[float, float, float]]:
        """(Tokens a second of a user, of a GPU plain, of a GPU with the best number of drafts) on
        plain's frontier.
        """
        best = frontier(self.drafted)
        plain = frontier([row.point for row in self.plain])
        return [
            (
                point.tokens_per_second_per_user,
                point.tokens_per_second_per_gpu,
                throughput_at(best, point.tokens_per_second_per_user),
            )
            for point in plain
        ]

    def speedup(self, index: int) -> float:
        """Of the whole block over plain decoding, at the batch size of that index."""
        one, other = self.dflash[index].point, self.plain[index].point
        return one.tokens_per_second_per_user / other.tokens_per_second_per_user


def estimate(config: EstimateConfig) -> Estimate:
    """Estimate every batch size, every number of drafts and every block size.

    Raises: UsageError: for a model that is not known, a pair that does not fit, or batches that all
    exceed the memory.
    """
    pair = _pair(config)
    machine = Machine(config.device, config.gpus, RUNTIMES[config.runtime])
    block = pair.drafter.config.block_size
    acceptance, source = _acceptance(config, pair.drafter)
    batches = [
        b for b in config.batches if pair.memory_bytes(b, config.context) <= machine.memory_bytes
    ]
    if not batches:
        needed = pair.memory_bytes(config.batches[0], config.context) / 1e9
        raise UsageError(
            f"{config.gpus} x {config.device.name} have {machine.memory_bytes / 1e9:.0f} GB, and"
            f" batch {config.batches[0]} needs {needed:.0f} GB; give more --gpus or another --quant"
        )
    clock = _Clock(config, machine)
    plain = [clock(pair.plain(), b, 0, 1.0) for b in batches]
    by_len = {
        k: [clock(pair.dflash(block, k), b, k, acceptance.tau(k)) for b in batches]
        for k in range(1, block)
    }
    off = [row.point for row in plain]
    drafted = tuple(row.point for rows in by_len.values() for row in rows)
    return Estimate(
        config,
        pair,
        machine,
        acceptance,
        source,
        tuple(plain),
        tuple(by_len[block - 1]),
        drafted,
        tuple(_eagle(config, pair, clock, batches)),
        advise([*drafted, *off], off),
        tuple(_best_block(pair, clock, b, acceptance) for b in batches),
        tuple(b for b in config.batches if b not in batches),
    )


@dataclass(frozen=True)
class _Clock:
    config: EstimateConfig
    machine: Machine

    def __call__(self, works: Sequence[Work], batch: int, draft_len: int, tau: float) -> Estimated:
        time = self.machine.time(
            works, batch=batch, context=self.config.context, drafts=draft_len > 0
        )
        point = CurvePoint.of_step(
            batch=batch,
            draft_len=draft_len,
            acceptance_length=tau,
            step_seconds=time.seconds,
            gpus=self.machine.gpus,
            limited_by=time.limited_by,
        )
        return Estimated(point, time)


def _pair(config: EstimateConfig) -> Pair:
    target = find_target(config.target)
    drafter = find_drafter(config.drafter, target=config.target)
    problems = pair_mismatches(target.config, drafter.config)
    if problems:
        raise UsageError(
            f"the drafter {drafter.name} does not fit the target {target.name}:"
            f" {'; '.join(problems)}. Give the drafter that was trained for this target."
        )
    return Pair(target, drafter, precision_of(config, target, drafter))


def _acceptance(config: EstimateConfig, drafter: KnownDrafter) -> tuple[Acceptance, str]:
    drafts = drafter.config.block_size - 1
    if config.tau is None:
        if drafter.tau is None:
            raise UsageError(
                f"--tau is needed: no published one is known for the drafter {drafter.name}"
            )
        return Acceptance.of_tau(drafter.tau, drafts), f"{drafter.tau} ({drafter.tau_source})"
    try:
        tau = float(config.tau)
    except ValueError:
        return read_acceptance(Path(config.tau), drafts), f"as measured in {config.tau}"
    return Acceptance.of_tau(tau, drafts), f"{tau} (--tau)"


def _eagle(
    config: EstimateConfig, pair: Pair, clock: _Clock, batches: Sequence[int]
) -> list[Estimated]:
    if config.eagle_tree is None:
        return []
    tokens, depth, branches, tau = config.eagle_tree
    drafter = Eagle(tokens, depth, branches)
    works = pair.forward(tokens + 1, tokens + 1) + drafter.works(
        pair.target, NUMBERS[pair.precision.drafter]
    )
    return [clock(works, batch, tokens, tau) for batch in batches]


def _best_block(pair: Pair, clock: _Clock, batch: int, acceptance: Acceptance) -> int:
    """The block to build for this batch; what smaller blocks accept is taken from the whole block's
    positions.
    """
    plain = clock(pair.plain(), batch, 0, 1.0).point.tokens_per_second_per_user
    speeds = {1: plain}
    for block in range(2, pair.drafter.config.block_size + 1):
        row = clock(pair.dflash(block, block - 1), batch, block - 1, acceptance.tau(block - 1))
        speeds[block] = row.point.tokens_per_second_per_user
    return max(speeds, key=lambda block: speeds[block])
