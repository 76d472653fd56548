"""Points and curves of throughput against interactivity: the form that measurements, estimates and
plots share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class CurvePoint:
    """One way of decoding at one batch size, while every slot generates."""

    batch: Annotated[int, "sequences that generate together, over all GPUs that serve them"]
    draft_len: Annotated[int, "drafts verified in a step; 0: plain decoding"]
    acceptance_length: Annotated[
        float, "tokens that a step yields for each sequence, bonus included; 1 without drafts"
    ]
    step_seconds: Annotated[float, "one step of the whole batch"]
    tokens_per_second_per_user: Annotated[
        float, "interactivity: what one sequence gets, acceptance_length / step_seconds"
    ]
    tokens_per_second_per_gpu: Annotated[
        float, "throughput: what all sequences get, over the number of GPUs (a CPU counts as one)"
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
        """The point of a step whose time and yield are known."""
        user = acceptance_length / step_seconds
        return cls(
            batch, draft_len, acceptance_length, step_seconds, user, batch * user / gpus, limited_by
        )


@dataclass(frozen=True)
class Curve:
    """One way of decoding over several batch sizes."""

    name: Annotated[str, "label: plain, DFlash, …"]
    points: Annotated[tuple[CurvePoint, ...], "by batch size"]
    estimated: Annotated[bool, "computed from a model of the device, and drawn so"] = False

    def to_json(self) -> dict[str, Any]:
        """Plain types; `from_json` takes it back."""
        return asdict(self) | {"points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curve:
        """The curve that `to_json` gave."""
        return cls(
            data["name"], tuple(CurvePoint(**point) for point in data["points"]), data["estimated"]
        )


def frontier(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points that no other beats in interactivity and throughput at once, by growing
    interactivity.
    """
    best: list[CurvePoint] = []
    ordered = sorted(
        points,
        key=lambda p: (p.tokens_per_second_per_user, p.tokens_per_second_per_gpu),
        reverse=True,
    )
    for point in ordered:
        if not best or point.tokens_per_second_per_gpu > best[-1].tokens_per_second_per_gpu:
            best.append(point)
    return best[::-1]
