"""The estimate: from what the user asks to steps, curves and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trtllm_dflash import __version__
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.checkpoint.pair_checks import pair_mismatches
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.acceptance import AcceptanceByPosition, read_acceptance
from trtllm_dflash.estimate.assumptions import list_assumptions
from trtllm_dflash.estimate.constants import RUNTIMES
from trtllm_dflash.estimate.eagle3 import Eagle3Tree
from trtllm_dflash.estimate.formats import DRAFTER, formats_of_pair
from trtllm_dflash.estimate.models import find_drafter, find_target
from trtllm_dflash.estimate.pair import ModelPair
from trtllm_dflash.estimate.report import (
    SCHEMA,
    EqualInteractivity,
    EstimateReport,
    StepEstimate,
)
from trtllm_dflash.estimate.roofline import Roofline
from trtllm_dflash.estimate.workload import KernelCost
from trtllm_dflash.options.estimate import EstimateConfig
from trtllm_dflash.profile.advice import advise
from trtllm_dflash.profile.curve import Curve, CurvePoint, frontier, throughput_at


@dataclass(frozen=True)
class EstimateInputs:
    """What an estimate is computed from; `batches` are those that fit into memory."""

    config: EstimateConfig
    pair: ModelPair
    roofline: Roofline
    acceptance: AcceptanceByPosition
    acceptance_source: str
    batches: tuple[int, ...]

    @cached_property
    def plain_steps(self) -> list[StepEstimate]:
        """Return the steps of plain decoding by batch size."""
        return self._time_steps("plain", self.pair.plain_step(), 0, 1.0, None)

    def steps(
        self, way: str, costs: Sequence[KernelCost], draft_len: int, acceptance_length: float
    ) -> list[StepEstimate]:
        """Return the steps of another way of decoding by batch size."""
        return self._time_steps(way, costs, draft_len, acceptance_length, self.plain_steps)

    def dflash_steps(self, block_size: int, draft_len: int) -> list[StepEstimate]:
        """Return the DFlash steps that verify `draft_len` drafts by batch size."""
        costs = self.pair.dflash_step(block_size, draft_len)
        return self.steps("DFlash", costs, draft_len, self.acceptance.acceptance_length(draft_len))

    def _time_steps(
        self,
        way: str,
        costs: Sequence[KernelCost],
        draft_len: int,
        acceptance_length: float,
        plain: Sequence[StepEstimate] | None,
    ) -> list[StepEstimate]:
        context, steps = self.config.context, []
        for index, batch in enumerate(self.batches):
            time = self.roofline.time(costs, batch=batch, context=context, drafts=draft_len > 0)
            point = CurvePoint.of_step(
                batch=batch,
                draft_len=draft_len,
                acceptance_length=acceptance_length,
                step_seconds=time.seconds,
                gpus=self.roofline.gpus,
                limited_by=time.limited_by,
            )
            base = point if plain is None else plain[index]
            step = StepEstimate(
                **vars(point),
                way=way,
                speedup=point.tokens_per_second_per_user / base.tokens_per_second_per_user,
                seconds_by_limit=dict(time.by_limit),
                seconds_by_part=dict(time.by_part),
            )
            steps.append(step)
        return steps


def estimate(config: EstimateConfig) -> EstimateReport:
    """Estimate every batch size, every number of drafts and every block size.

    Raises:
        UsageError: for an unknown model, a pair that does not fit, or batches that all exceed the
            memory.
    """
    inputs = read_inputs(config)
    pair, plain = inputs.pair, inputs.plain_steps
    block_size = pair.drafter.config.block_size
    by_draft_len = [inputs.dflash_steps(block_size, k) for k in range(1, block_size)]
    drafted = [step for steps in by_draft_len for step in steps]
    ways = [plain, by_draft_len[-1]]
    if config.eagle_tree is not None:
        ways.append(_eagle3_steps(inputs, *config.eagle_tree))
    return EstimateReport(
        schema=SCHEMA,
        version=__version__,
        target=config.target,
        drafter=config.drafter or str(pair.drafter.directory),
        gpu=config.device.name,
        gpus=config.gpus,
        context=config.context,
        assumptions=list_assumptions(config, pair, inputs.roofline, inputs.acceptance_source),
        steps=[step for steps in ways for step in steps],
        curves=[_curve(steps) for steps in ways],
        equal_interactivity=_equal_interactivity(plain, drafted),
        best_block_sizes=_best_block_sizes(inputs),
        left_out=[batch for batch in config.batches if batch not in inputs.batches],
        advice=advise([*drafted, *plain], plain),
    )


def read_inputs(config: EstimateConfig) -> EstimateInputs:
    """Find the models, their formats and acceptance, and the batch sizes that fit."""
    target = find_target(config.target)
    drafter = find_drafter(config.drafter, target=config.target)
    problems = pair_mismatches(target.config, drafter.config)
    if problems:
        raise UsageError(
            f"the drafter {drafter.directory} does not fit the target {target.directory}:"
            f" {'; '.join(problems)}. Give the drafter that was trained for this target."
        )
    pair = ModelPair(target, drafter, formats_of_pair(config, target, drafter))
    roofline = Roofline(config.device, config.gpus, RUNTIMES[config.runtime])
    acceptance, source = _acceptance(config, pair)
    memory = roofline.memory_bytes
    sizes = {batch: pair.memory_bytes(batch, config.context) for batch in config.batches}
    batches = tuple(batch for batch, size in sizes.items() if size <= memory)
    if not batches:
        smallest = config.batches[0]
        raise UsageError(
            f"{config.gpus} x {config.device.name} have {memory / 1e9:.0f} GB, and batch {smallest}"
            f" needs {sizes[smallest] / 1e9:.0f} GB; give more --gpus or another --quant"
        )
    return EstimateInputs(config, pair, roofline, acceptance, source, batches)


def _acceptance(config: EstimateConfig, pair: ModelPair) -> tuple[AcceptanceByPosition, str]:
    draft_len = pair.drafter.config.block_size - 1
    given = config.acceptance_length
    if given is None:
        length, source = _published_acceptance(pair.drafter.directory)
    else:
        try:
            length, source = float(given), "--acceptance-length"
        except ValueError:
            return read_acceptance(Path(given), draft_len), f"as measured in {given}"
    acceptance = AcceptanceByPosition.from_acceptance_length(length, draft_len)
    return acceptance, f"{length} ({source})"


def _published_acceptance(drafter: Path) -> tuple[float, str]:
    listed = None if drafter.is_dir() else pair_of(str(drafter), "drafter")
    if listed is None or listed.drafter.acceptance_length is None:
        raise UsageError(
            f"--acceptance-length is needed: no published one is known for the drafter {drafter}"
        )
    return listed.drafter.acceptance_length, listed.drafter.acceptance_source


def _eagle3_steps(
    inputs: EstimateInputs, tokens: int, depth: int, branches: int, acceptance_length: float
) -> list[StepEstimate]:
    pair, tree = inputs.pair, Eagle3Tree(tokens, depth, branches)
    drafting = tree.costs(pair.target.config, pair.usual_formats()[DRAFTER])
    costs = (*pair.target_pass(tokens + 1, tokens + 1), *drafting)
    return inputs.steps("EAGLE-3", costs, tokens, acceptance_length)


def _curve(steps: Sequence[StepEstimate]) -> Curve:
    return Curve(steps[0].way, tuple(step.point() for step in steps), estimated=True)


def _best_block_sizes(inputs: EstimateInputs) -> dict[str, int]:
    """Return the best block to build with by batch size.

    What smaller blocks accept is taken from the whole block's positions.
    """
    best = {step.batch: (step.tokens_per_second_per_user, 1) for step in inputs.plain_steps}
    for block_size in range(2, inputs.pair.drafter.config.block_size + 1):
        for step in inputs.dflash_steps(block_size, block_size - 1):
            speed = step.tokens_per_second_per_user
            if speed > best[step.batch][0]:
                best[step.batch] = speed, block_size
    return {str(batch): block_size for batch, (_, block_size) in best.items()}


def _equal_interactivity(
    plain: Sequence[CurvePoint], drafted: Sequence[CurvePoint]
) -> list[EqualInteractivity]:
    best, rows = frontier(drafted), []
    for point in frontier(plain):
        user = point.tokens_per_second_per_user
        with_drafts = throughput_at(best, user)
        rows.append(EqualInteractivity(user, point.tokens_per_second_per_gpu, with_drafts))
    return rows
