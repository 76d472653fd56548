"""Where "15x" comes from: gpt-oss-120b on eight B300, throughput at equal interactivity.

NVIDIA's figure (developer blog, 23 June 2026) is the ratio of two systems' throughput where each
user gets 500 to 600 tokens a second. Plain decoding ends near there: only a few users at a time can
have that speed, while DFlash gives it to many. The ratio therefore has no bound; it is no speedup
of one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trtllm_dflash.catalog.gpus import GPUS
from trtllm_dflash.estimate.acceptance import Acceptance
from trtllm_dflash.estimate.clock import Machine
from trtllm_dflash.estimate.constants import CONSTANTS, ENGINE, SERVING, Constants, Runtime
from trtllm_dflash.estimate.count import Work
from trtllm_dflash.estimate.equal import throughput_at
from trtllm_dflash.estimate.known import find_drafter, find_target
from trtllm_dflash.estimate.pair import Pair
from trtllm_dflash.estimate.precision import Precision
from trtllm_dflash.estimate.tables import table
from trtllm_dflash.profile.curve import CurvePoint, frontier

TARGET, DRAFTER, GPU, GPUS_IN_ALL = "gpt-oss-120b", "gpt-oss-120b-DFlash", "B300", 8
TAU, CONTEXT = (
    4.4,
    1024,
)  # of HumanEval (paper, table 11): that of SPEED-Bench's coding split is not published
BAND, CLAIM = (500.0, 600.0), 15.0
_BATCHES = [2**i for i in range(12)]
_RATIOS = 400  # points of the curve of ratios


@dataclass(frozen=True)
class Case:
    """One set of assumptions."""

    name: str
    runtime: Runtime
    constants: Constants


CASES = (
    Case("the estimate's constants, PyTorch server", SERVING, CONSTANTS),
    Case(
        "kernels of 2 µs, sums of 5 µs, no host",
        ENGINE,
        replace(CONSTANTS, kernel=2e-6, sum_latency=5e-6),
    ),
)


@dataclass(frozen=True)
class Comparison:
    """Both frontiers of a case, of all ways to split the GPUs; throughput is that of a GPU."""

    case: Case
    plain: tuple[CurvePoint, ...]
    dflash: tuple[CurvePoint, ...]

    def ratios(self) -> list[tuple[float, float]]:
        """(Interactivity, DFlash's throughput over plain decoding's), up to where plain decoding
        ends.
        """
        low, high = (
            self.plain[0].tokens_per_second_per_user,
            self.plain[-1].tokens_per_second_per_user,
        )
        steps = [low + (high - low) * i / _RATIOS for i in range(_RATIOS + 1)]
        return [
            (user, throughput_at(self.dflash, user) / throughput_at(self.plain, user))
            for user in steps
        ]

    def claimed_at(self) -> float | None:
        """The interactivity from which on the ratio is CLAIM; None if it never is."""
        ratios = self.ratios()
        below = [index for index, (_, ratio) in enumerate(ratios) if ratio < CLAIM]
        first = below[-1] + 1 if below else 0
        return ratios[first][0] if first < len(ratios) else None

    @property
    def at_batch_1(self) -> float:
        """How much faster one answer is, with all GPUs."""
        return (
            self.dflash[-1].tokens_per_second_per_user / self.plain[-1].tokens_per_second_per_user
        )


def comparisons() -> list[Comparison]:
    """All cases."""
    target, drafter = find_target(TARGET), find_drafter(DRAFTER)
    pair = Pair(target, drafter, Precision(experts=target.expert_number))
    block = drafter.config.block_size
    acceptance = Acceptance.of_tau(TAU, block - 1)
    drafted = [(k, pair.dflash(block, k), acceptance.tau(k)) for k in range(1, block)]
    return [
        Comparison(
            case, _frontier(case, pair, [(0, pair.plain(), 1.0)]), _frontier(case, pair, drafted)
        )
        for case in CASES
    ]


def markdown(found: Sequence[Comparison]) -> str:
    """Each case: where plain decoding ends, where the ratio is NVIDIA's, and what one sequence
    gains.
    """
    rows = []
    for one in found:
        end, claimed = one.plain[-1].tokens_per_second_per_user, one.claimed_at()
        middle = sum(BAND) / 2
        there = (
            throughput_at(one.dflash, middle) / throughput_at(one.plain, middle)
            if middle < end
            else None
        )
        rows.append(
            (
                one.case.name,
                f"{end:.0f}",
                "never" if claimed is None else f"{claimed:.0f}",
                "plain decoding does not get there" if there is None else f"{there:.0f}x",
                f"{one.at_batch_1:.1f}x",
            )
        )
    names = (
        "assumptions", "plain decoding ends at, tokens/s a user", f"{CLAIM:.0f}x at", f"ratio at {sum(BAND) / 2:.0f}",
        "one sequence alone",
    )  # fmt: skip
    return f"{table(names, rows)}\n\n{GPUS_IN_ALL} x {GPU}, τ {TAU}."


def _frontier(
    case: Case, pair: Pair, ways: Sequence[tuple[int, Sequence[Work], float]]
) -> tuple[CurvePoint, ...]:
    """The best of 8 groups of one GPU, 4 of two, 2 of four and one of eight, of all batches and
    numbers of drafts.
    """
    gpu = next(gpu for gpu in GPUS if gpu.name == GPU)
    points = []
    for together in (1, 2, 4, GPUS_IN_ALL):
        machine = Machine(gpu, together, case.runtime, case.constants)
        for batch in _BATCHES:
            if pair.memory_bytes(batch, CONTEXT) > machine.memory_bytes:
                continue
            for drafts, works, tau in ways:
                time = machine.time(works, batch=batch, context=CONTEXT, drafts=drafts > 0)
                points.append(
                    CurvePoint.of_step(
                        batch=batch, draft_len=drafts, acceptance_length=tau, step_seconds=time.seconds, gpus=together,
                        limited_by=time.limited_by,
                    )
                )  # fmt: skip
    return tuple(frontier(points))
