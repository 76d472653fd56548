"""An estimate as it is written: the declaration of its JSON (as in `profile.result`)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from trtllm_dflash.profile.curve import Curve, CurvePoint
from trtllm_dflash.profile.result import Advice


@dataclass(frozen=True, kw_only=True)
class StepEstimate(CurvePoint):
    """A step of one way of decoding at one batch size, and where its time goes.

    Of a tree, `draft_len` counts the tokens.
    """

    way: Annotated[str, "plain, DFlash or EAGLE-3"]
    speedup: Annotated[float, "tokens_per_second_per_user over plain decoding's"]
    seconds_by_limit: Annotated[dict[str, float], "step_seconds by what the GPU waits for"]
    seconds_by_part: Annotated[dict[str, float], "the same by target, accept, drafter and host"]

    def point(self) -> CurvePoint:
        """Return the step as no more than a point of a curve."""
        values = {each.name: getattr(self, each.name) for each in fields(CurvePoint)}
        return CurvePoint(**values)


@dataclass(frozen=True)
class EqualInteractivity:
    """Throughput where every user gets the same, on the frontier of plain decoding.

    Plain decoding serves no user faster than alone. As interactivity nears that, the ratio of both
    throughputs grows without a bound. It means nothing for a batch of 1 and is not stated.
    """

    tokens_per_second_per_user: Annotated[float, "what one sequence gets"]
    plain_batch: Annotated[int, "sequences without drafts"]
    dflash_batch: Annotated[float, "sequences with drafts, between two batch sizes"]
    plain_per_gpu: Annotated[float, "tokens a second of a GPU without drafts"]
    dflash_per_gpu: Annotated[float, "the same with the best number of drafts"]
    ratio: Annotated[float | None, "dflash_per_gpu over plain_per_gpu; null where unbounded"]


@dataclass(frozen=True)
class EstimateReport:
    """Everything that one estimate says."""

    schema: Annotated[int, "3"]
    version: Annotated[str, "of dflash-trt"]
    target: Annotated[str, "as asked for"]
    drafter: Annotated[str, "as asked for, or the listed target's own"]
    gpu: Annotated[str, "its name in the table of GPUs"]
    gpus: Annotated[int, "how many share every layer"]
    context: Annotated[int, "positions of every sequence"]
    assumptions: Annotated[list[str], "in words, each with its value and reason"]
    ttft_seconds: Annotated[
        dict[str, float], "way to time to first token: a prompt of `context` tokens, alone"
    ]
    prompt_chunk: Annotated[int, "tokens of a prompt in one step"]
    steps: Annotated[
        list[StepEstimate], "ways of decoding by batch size, DFlash with the whole block"
    ]
    best_steps: Annotated[
        list[StepEstimate],
        "by batch size with the best number of drafts, of which `advice` speaks",
    ]
    curves: Annotated[list[Curve], "the same as curves of throughput against interactivity"]
    equal_interactivity: Annotated[list[EqualInteractivity], "by growing interactivity"]
    best_block_sizes: Annotated[dict[str, int], "batch size to best block size; 1: no drafter"]
    left_out: Annotated[list[int], "batch sizes whose caches do not fit into memory"]
    advice: Annotated[Advice, "how many drafts pay in an engine of the drafter's whole block"]

    def steps_of(self, way: str) -> list[StepEstimate]:
        """Return the steps of one way of decoding by batch size."""
        return [step for step in self.steps if step.way == way]
