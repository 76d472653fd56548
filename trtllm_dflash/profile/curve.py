"""Points and curves of throughput against interactivity, for measurements, estimates and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any


@dataclass(frozen=True)
class CurvePoint:
    """One way of decoding at one batch size, while every slot generates."""

    batch: Annotated[int, "sequences that generate together, over all GPUs that serve them"]
    draft_len: Annotated[int, "drafts verified in a step; 0: plain decoding"]
    acceptance_length: Annotated[
        float,
        "τ: tokens that a step yields for each sequence, bonus included; 1 without drafts",
    ]
    step_seconds: Annotated[float, "one step of the whole batch"]
    tokens_per_second_per_user: Annotated[
        float, "interactivity: what one sequence gets, acceptance_length / step_seconds"
    ]
    tokens_per_second_per_gpu: Annotated[
        float,
        "throughput: what all sequences get, over the number of GPUs (a CPU counts as one)",
    ]
    limited_by: Annotated[
        str | None, "what bounds the step, where it is known: memory bandwidth, launches, …"
    ] = None

    @classmethod
    def of_step(
        cls,
        *,
        batch: int,
        draft_len: int,
        acceptance_length: float,
        step_seconds: float,
        gpus: int = 1,
        limited_by: str | None = None,
    ) -> CurvePoint:
        """Return the point of a step whose time and yield are known."""
        per_user = acceptance_length / step_seconds
        per_gpu = batch * per_user / gpus
        return cls(
            batch, draft_len, acceptance_length, step_seconds, per_user, per_gpu, limited_by
        )


@dataclass(frozen=True)
class Curve:
    """One way of decoding over several batch sizes."""

    name: Annotated[str, "label: plain, DFlash, …"]
    points: Annotated[tuple[CurvePoint, ...], "by batch size"]
    estimated: Annotated[bool, "computed from a model of the device, and drawn so"] = False

    def to_json(self) -> dict[str, Any]:
        """Return plain types, from which `from_json` makes the curve again."""
        return asdict(self) | {"points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curve:
        """Return the curve that `to_json` gave."""
        points = tuple(CurvePoint(**point) for point in data["points"])
        return cls(data["name"], points, data["estimated"])


def frontier(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return the points that no other beats in interactivity and throughput at once.

    They are sorted by growing interactivity.
    """

    def rates(point: CurvePoint) -> tuple[float, float]:
        return point.tokens_per_second_per_user, point.tokens_per_second_per_gpu

    best: list[CurvePoint] = []
    for point in sorted(points, key=rates, reverse=True):
        if not best or point.tokens_per_second_per_gpu > best[-1].tokens_per_second_per_gpu:
            best.append(point)
    return best[::-1]


def throughput_at(points: Sequence[CurvePoint], user: float) -> float:
    """Return the tokens a second of a GPU at an interactivity, in straight lines on a frontier.

    Below the frontier it is that of the first point. Beyond the last point it is 0.
    """
    if user <= points[0].tokens_per_second_per_user:
        return points[0].tokens_per_second_per_gpu
    for a, b in pairwise(points):
        if user <= b.tokens_per_second_per_user:
            distance = b.tokens_per_second_per_user - a.tokens_per_second_per_user
            share = (user - a.tokens_per_second_per_user) / distance
            gained = b.tokens_per_second_per_gpu - a.tokens_per_second_per_gpu
            return a.tokens_per_second_per_gpu + share * gained
    return 0.0
