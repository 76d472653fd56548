"""An estimate as it is written: the declaration of its JSON (as in `profile.result`), and the
assumptions in words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from trtllm_dflash import __version__
from trtllm_dflash.estimate.run import Estimate, Estimated
from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.result import Advice

SCHEMA = 1


@dataclass(frozen=True)
class StepReport:
    """A step of one way of decoding at one batch size."""

    way: Annotated[str, "plain, DFlash or EAGLE-3"]
    batch: Annotated[int, "sequences that generate together, on all GPUs"]
    draft_len: Annotated[int, "drafts verified in a step; of a tree, its tokens"]
    tau: Annotated[float, "tokens that a step yields for a sequence, bonus included"]
    step_seconds: Annotated[float, "the step"]
    tokens_per_second_per_user: Annotated[float, "tau over step_seconds"]
    tokens_per_second_per_gpu: Annotated[float, "of all sequences, over the GPUs"]
    speedup: Annotated[
        float, "tokens_per_second_per_user over that of plain decoding at this batch"
    ]
    limited_by: Annotated[str, "the largest entry of seconds_by_limit"]
    seconds_by_limit: Annotated[dict[str, float], "step_seconds by what the GPU waits for"]
    seconds_by_part: Annotated[dict[str, float], "the same by target, accept, drafter and host"]


@dataclass(frozen=True)
class EstimateReport:
    """Everything that one estimate says."""

    schema: Annotated[int, "1"]
    version: Annotated[str, "of dflash-trt"]
    target: Annotated[str, "as asked for"]
    drafter: Annotated[str, "as asked for, or the listed target's own"]
    gpu: Annotated[str, "its name in the table of GPUs"]
    gpus: Annotated[int, "how many share every layer"]
    context: Annotated[int, "positions of every sequence"]
    assumptions: Annotated[list[str], "in words, each with its value and reason"]
    steps: Annotated[list[StepReport], "ways of decoding by batch size"]
    curves: Annotated[list[Curve], "the same as curves of throughput against interactivity"]
    best_block_sizes: Annotated[
        dict[str, int],
        "batch size to the block size that an engine for it should be built with; 1: without"
        " drafter",
    ]
    left_out: Annotated[list[int], "batch sizes whose caches do not fit into memory"]
    advice: Annotated[Advice, "how many drafts pay in an engine of the drafter's whole block"]

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return asdict(self)


def report(found: Estimate) -> EstimateReport:
    """The estimate, to be written."""
    config = found.config
    ways = (("plain", found.plain), ("DFlash", found.dflash), ("EAGLE-3", found.eagle))
    return EstimateReport(
        schema=SCHEMA,
        version=__version__,
        target=config.target,
        drafter=found.drafter_name,
        gpu=config.device.name,
        gpus=config.gpus,
        context=config.context,
        assumptions=assumptions(found),
        steps=[
            _step(way, row, base)
            for way, rows in ways
            for row, base in zip(rows, found.plain, strict=False)
        ],
        curves=list(found.curves),
        best_block_sizes={
            str(row.point.batch): size for row, size in zip(found.plain, found.blocks, strict=True)
        },
        left_out=list(found.left_out),
        advice=found.advice,
    )


def _step(way: str, row: Estimated, base: Estimated) -> StepReport:
    point = row.point
    return StepReport(
        way,
        point.batch,
        point.draft_len,
        point.acceptance_length,
        point.step_seconds,
        point.tokens_per_second_per_user,
        point.tokens_per_second_per_gpu,
        point.tokens_per_second_per_user / base.point.tokens_per_second_per_user,
        row.time.limited_by,
        dict(row.time.by_limit),
        dict(row.time.by_part),
    )


def assumptions(found: Estimate) -> list[str]:
    """What the figures rest on, in words."""
    config, pair, runtime, gpu = (
        found.config,
        found.pair,
        found.machine.runtime,
        found.config.device,
    )
    numbers, experts = pair.precision, pair.target.experts
    lines = [
        (
            f"τ of {pair.drafter.config.block_size - 1} drafts: {found.tau_source}; fewer drafts as"
            " if each were accepted with one probability, where positions were not measured; the"
            " same at every batch size"
        ),
        f"shapes: target from {pair.target.source}, drafter from {pair.drafter.source}",
        f"target's linears {numbers.linears}{f', experts {numbers.experts}' if experts else ''},"
        f" head {numbers.head}; drafter {numbers.drafter}; target's caches {numbers.cache};"
        f" {config.context} positions a sequence"
        + (
            f"; {len(numbers.others)} modules otherwise, as their checkpoint stores them"
            if numbers.others
            else ""
        ),
        (
            f"{gpu.name}: {gpu.bandwidth_gbs:g} GB/s, {gpu.bf16_tflops:g} TFLOPS in BF16"
            f" ({gpu.source})"
        ),
        f"software: {runtime.meaning} ({runtime.reason})",
        *(
            f"{value} {meaning} ({reason})"
            for value, meaning, reason in found.machine.constants.rows()
        ),
        (
            "elementwise work is fused; a kernel takes the longer of its reading and its computing;"
            " none overlap"
        ),
    ]
    if experts:
        lines.append(
            f"{experts.count} experts, {experts.top_k} a token: n tokens read {experts.count} · (1"
            f" - (1 - {experts.top_k}/{experts.count})^n) of them, as if each chose uniformly and"
            " by itself. Neighbouring tokens choose alike, so a small batch reads fewer"
        )
    if found.machine.gpus > 1:
        lines.append(
            f"{found.machine.gpus} GPUs share every layer: weights, caches and operations are"
            " divided, and the outputs of o_proj, down_proj and fc summed over NVLink"
        )
    return lines
