"""Where NVIDIA's "15x" comes from: gpt-oss-120b on eight B300, throughput at equal interactivity.

The figure is the ratio of two systems' throughput where each user gets 500 to 600 tokens a second.
Plain decoding ends near there: only a few users at a time can have that speed. DFlash gives it to
many. The ratio therefore has no bound, and it is no speedup of one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from docs.estimate.prediction import ALL_GPUS, ASSUMPTIONS, SOFTWARE, stored_pair
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.acceptance import Shares, acceptance_length, shares_of_length
from trtllm_dflash.estimate.roofline import CONSTANTS, Roofline
from trtllm_dflash.estimate.workload import KernelCost
from trtllm_dflash.profile.curve import CurvePoint, frontier, throughput_at
from trtllm_dflash.profile.theme import require_matplotlib

CLAIM: dict[str, Any] = ASSUMPTIONS["claim"]
LOW, HIGH = CLAIM["tokens_per_second_per_user"]
_BATCHES = [2**power for power in range(12)]
_RATIOS = 400  # points of the curve of ratios
_COLOURS = {"plain": "#6b7280", "DFlash": "#76b900"}
_RATIO_TICKS = (1, 2, 5, 10, 15, 30, 60)


@dataclass(frozen=True)
class ClaimCase:
    """Both frontiers under one set of assumptions, over all ways to split the GPUs.

    Throughput is that of one GPU.
    """

    name: str
    plain: tuple[CurvePoint, ...]
    dflash: tuple[CurvePoint, ...]

    def ratio_at(self, user: float) -> float:
        """Return DFlash's throughput over plain decoding's at an interactivity."""
        return throughput_at(self.dflash, user) / throughput_at(self.plain, user)

    def ratios(self) -> list[tuple[float, float]]:
        """Return interactivities and ratios, up to where plain decoding ends."""
        low = self.plain[0].tokens_per_second_per_user
        distance = self.plain_end - low
        users = [low + distance * step / _RATIOS for step in range(_RATIOS + 1)]
        return [(user, self.ratio_at(user)) for user in users]

    def claimed_at(self) -> float | None:
        """Return the interactivity from which on the ratio is that of the claim, None if never."""
        ratios = self.ratios()
        below = [index for index, (_, ratio) in enumerate(ratios) if ratio < CLAIM["ratio"]]
        first = below[-1] + 1 if below else 0
        return ratios[first][0] if first < len(ratios) else None

    @property
    def plain_end(self) -> float:
        """Return the highest interactivity of plain decoding."""
        return self.plain[-1].tokens_per_second_per_user

    @property
    def at_batch_1(self) -> float:
        """Return how much faster one answer is, with all GPUs."""
        return self.dflash[-1].tokens_per_second_per_user / self.plain_end


def claim_cases() -> list[ClaimCase]:
    """Return the frontiers of every case in assumptions.toml."""
    pair = stored_pair(CLAIM["drafter"])
    block_size = pair.drafter.config.block_size
    length = CLAIM["acceptance_length"]
    shares = shares_of_length(length, block_size - 1)
    plain = {0: pair.plain_step()}
    drafted = {k: pair.dflash_step(block_size, k) for k in range(1, block_size)}
    cases = []
    for case in CLAIM["cases"]:
        constants = replace(CONSTANTS, **case.get("constants", {}))
        gpu = next(gpu for gpu in ALL_GPUS if gpu.name == CLAIM["gpu"])
        rooflines = [
            Roofline(gpu, gpus, SOFTWARE[case["runtime"]], constants)
            for gpus in (1, 2, 4, CLAIM["gpus"])
        ]
        frontiers = (_frontier(rooflines, steps, shares) for steps in (plain, drafted))
        cases.append(ClaimCase(case["name"], *frontiers))
    return cases


def _frontier(
    rooflines: Sequence[Roofline],
    steps: dict[int, tuple[KernelCost, ...]],
    shares: Shares,
) -> tuple[CurvePoint, ...]:
    """Return the best of groups of 1, 2, 4 and 8 GPUs, of all batches and numbers of drafts."""
    pair, context, points = stored_pair(CLAIM["drafter"]), CLAIM["context"], []
    memory = {batch: pair.memory_bytes(batch, context) for batch in _BATCHES}
    for roofline in rooflines:
        for batch in _BATCHES:
            if memory[batch] > roofline.memory_bytes:
                continue
            for draft_len, costs in steps.items():
                time = roofline.time(costs, batch=batch, context=context, drafts=draft_len > 0)
                point = CurvePoint.of_step(
                    batch=batch,
                    draft_len=draft_len,
                    acceptance_length=acceptance_length(shares, draft_len),
                    step_seconds=time.seconds,
                    gpus=roofline.gpus,
                    limited_by=time.limited_by,
                )
                points.append(point)
    return tuple(frontier(points))


def claim_rows(cases: Sequence[ClaimCase]) -> list[tuple[str, ...]]:
    """Return for each case where plain decoding ends, where the ratio is reached, and the gain."""
    rows, middle = [], (LOW + HIGH) / 2
    for case in cases:
        claimed, there = case.claimed_at(), "plain decoding does not get there"
        if middle < case.plain_end:
            there = f"{case.ratio_at(middle):.0f}x"
        where = "never" if claimed is None else f"{claimed:.0f}"
        rows.append(
            (case.name, f"{case.plain_end:.0f}", where, there, f"{case.at_batch_1:.1f}x")
        )
    return rows


def draw_claim(cases: Sequence[ClaimCase], path: Path) -> None:
    """Draw both frontiers of every case and their ratio.

    Raises:
        UsageError: without matplotlib, or for a file that cannot be written.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "dflash-trt"
    import matplotlib.pyplot as plt

    figure, (curves, ratios) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for case, line in zip(cases, ("-", "--"), strict=True):
        _draw_frontiers(curves, case, line)
        _draw_ratio(ratios, case, line)
    ratios.axhline(CLAIM["ratio"], color="#b91c1c", linewidth=1)
    ratios.axhline(1, color="#9ca3af", linewidth=0.8)
    band = f"NVIDIA's {LOW} to {HIGH} tokens/s a user"
    for axes in (curves, ratios):
        axes.axvspan(LOW, HIGH, color="#fde68a", alpha=0.5, label=band)
        axes.set(xlabel="tokens/s a user (interactivity)", yscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    curves.set(title="throughput against interactivity", ylabel="tokens/s a GPU")
    ratios.set(title="their ratio at equal interactivity", ylabel="DFlash over plain")
    ratios.set_ylim(0.6, 100)
    ratios.set_yticks(_RATIO_TICKS, [f"{ratio}x" for ratio in _RATIO_TICKS])
    ratios.minorticks_off()
    ratios.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.12))
    curves.legend(fontsize=8)
    figure.suptitle(
        f"gpt-oss-120b on {CLAIM['gpus']} x {CLAIM['gpu']}, estimated:"
        f" τ {CLAIM['acceptance_length']} with 9 drafts, {CLAIM['context']} positions, best split"
        " of the GPUs and number of drafts at every point\n",
        fontsize=11,
    )
    try:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=130, metadata=metadata)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    finally:
        plt.close(figure)


def _draw_frontiers(axes: Any, case: ClaimCase, line: str) -> None:
    for name, points in (("plain", case.plain), ("DFlash", case.dflash)):
        users = [point.tokens_per_second_per_user for point in points]
        rates = [point.tokens_per_second_per_gpu for point in points]
        style = {"marker": "o", "markersize": 3, "color": _COLOURS[name]}
        axes.plot(users, rates, line, label=f"{name}, {case.name}", **style)


def _draw_ratio(axes: Any, case: ClaimCase, line: str) -> None:
    users, values = zip(*case.ratios(), strict=True)
    axes.plot(users, values, line, color="#1f2937", label=case.name)
    claimed, ratio = case.claimed_at(), CLAIM["ratio"]
    if claimed is not None:
        axes.plot([claimed], [ratio], "o", color="#b91c1c", markersize=6)
        style = {"textcoords": "offset points", "ha": "right", "color": "#b91c1c"}
        axes.annotate(f"{ratio}x at {claimed:.0f}", (claimed, ratio), (-8, 6), **style)
    end = case.plain_end
    axes.axvline(end, color="#9ca3af", linestyle=":", linewidth=1)
    style = {"rotation": 90, "ha": "right", "fontsize": 8, "color": "#6b7280"}
    axes.text(end, 3.3, f"plain ends at {end:.0f} ", **style)
