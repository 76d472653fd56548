"""The estimate: from what the user asks to steps, curves and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from trtllm_dflash import __version__
from trtllm_dflash.builder.config_models import find_drafter, find_target, source_of
from trtllm_dflash.checkpoint.pair_checks import pair_mismatches
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.acceptance import Shares, acceptance_length, find_shares
from trtllm_dflash.estimate.eagle3 import Eagle3Tree
from trtllm_dflash.estimate.formats import pair_as_asked
from trtllm_dflash.estimate.pair import ModelPair
from trtllm_dflash.estimate.report import EqualInteractivity, EstimateReport, StepEstimate
from trtllm_dflash.estimate.roofline import DATA, RUNTIMES, Roofline
from trtllm_dflash.estimate.workload import DRAFTER, KernelCost
from trtllm_dflash.options.estimate import EstimateConfig
from trtllm_dflash.profile.advice import advise
from trtllm_dflash.profile.curve import Curve, CurvePoint, frontier, throughput_at
from trtllm_dflash.profile.result import Advice
from trtllm_dflash.templates import render

# Tokens of a prompt in one step: what `build` takes by default, and servers by theirs.
PROMPT_CHUNKS = {"engine": 512, "serving": 8192}


@dataclass(frozen=True)
class EstimateInputs:
    """What an estimate is computed from; `batches` are those that fit into memory."""

    config: EstimateConfig
    pair: ModelPair
    roofline: Roofline
    shares: Shares
    acceptance_source: str
    batches: tuple[int, ...]

    @cached_property
    def plain_seconds(self) -> dict[int, float]:
        """Return the time of a plain step by batch size."""
        costs, context, seconds = self.pair.plain_step(), self.config.context, {}
        for batch in self.batches:
            time = self.roofline.time(costs, batch=batch, context=context, drafts=False)
            seconds[batch] = time.seconds
        return seconds

    def plain_steps(self) -> list[StepEstimate]:
        """Return the steps of plain decoding by batch size; speedups are over these."""
        return self.steps("plain", self.pair.plain_step(), 0, 1.0)

    def dflash_steps(self, block_size: int, draft_len: int) -> list[StepEstimate]:
        """Return the DFlash steps that verify `draft_len` drafts by batch size."""
        costs = self.pair.dflash_step(block_size, draft_len)
        return self.steps("DFlash", costs, draft_len, acceptance_length(self.shares, draft_len))

    def eagle3_steps(self) -> list[StepEstimate]:
        """Return the steps with the EAGLE-3 drafter that is asked for, none without one."""
        if self.config.eagle_tree is None:
            return []
        tokens, depth, branches, length = self.config.eagle_tree
        format_name = self.pair.usual_formats()[DRAFTER]
        tree = Eagle3Tree(tokens, depth, branches)
        drafting = tree.costs(self.pair.target.config, format_name)
        width = tokens + 1
        costs = (*self.pair.target_pass(width, width, block_size=width), *drafting)
        return self.steps("EAGLE-3", costs, tokens, length)

    def ttft_seconds(self) -> dict[str, float]:
        """Return the time to first token by way: of a prompt of `context` tokens, alone.

        A prompt runs in chunks, each of which sees all before it.
        """
        chunk, total = PROMPT_CHUNKS[self.config.runtime], self.config.context
        seconds = {}
        for way, drafts in (("plain", False), ("DFlash", True)):
            widths = {min(chunk, total), total % chunk} - {0}
            costs = {width: self.pair.prompt_pass(width, drafts=drafts) for width in widths}
            seconds[way] = 0.0
            for start in range(0, total, chunk):
                width = min(chunk, total - start)
                time = self.roofline.time(
                    costs[width], batch=1, context=start + width / 2, drafts=False
                )
                seconds[way] += time.seconds
        return seconds

    def best_steps(
        self, advice: Advice, drafted: Sequence[StepEstimate], plain: Sequence[StepEstimate]
    ) -> list[StepEstimate]:
        """Return each batch size's step with the number of drafts that the advice names."""
        known = {(step.batch, step.draft_len): step for step in (*drafted, *plain)}
        return [known[row.batch, row.draft_len] for row in advice.batches]

    def steps(
        self, way: str, costs: Sequence[KernelCost], draft_len: int, length: float
    ) -> list[StepEstimate]:
        """Return the steps of a way of decoding by batch size, each of which yields `length`."""
        context, steps = self.config.context, []
        for batch in self.batches:
            time = self.roofline.time(costs, batch=batch, context=context, drafts=draft_len > 0)
            point = CurvePoint.of_step(
                batch=batch,
                draft_len=draft_len,
                acceptance_length=length,
                step_seconds=time.seconds,
                gpus=self.roofline.gpus,
                limited_by=time.limited_by,
            )
            step = StepEstimate(
                **vars(point),
                way=way,
                speedup=length * self.plain_seconds[batch] / time.seconds,
                seconds_by_limit=time.by_limit,
                seconds_by_part=time.by_part,
            )
            steps.append(step)
        return steps


def read_inputs(config: EstimateConfig) -> EstimateInputs:
    """Find the models, their formats and acceptance, and the batch sizes that fit.

    Raises:
        UsageError: for models that do not fit each other, and for options that do not fit them.
        ConfigError: for a model whose configuration is not supported.
    """
    target = find_target(config.target)
    drafter = find_drafter(config.drafter, target=config.target)
    problems = pair_mismatches(target.config, drafter.config)
    if problems:
        raise UsageError(
            f"the drafter {drafter.directory} does not fit the target {target.directory}:"
            f" {'; '.join(problems)}. Give the drafter that was trained for this target."
        )
    limit = target.config.context_limit
    if config.context > limit.tokens:
        raise UsageError(
            f"--context {config.context} is more than {limit.tokens}, {limit.reason}"
        )
    pair = pair_as_asked(config, target, drafter)
    roofline = Roofline(config.device, config.gpus, RUNTIMES[config.runtime])
    draft_len = drafter.config.block_size - 1
    shares, source = find_shares(config.acceptance_length, drafter.directory, draft_len)
    memory = roofline.memory_bytes
    sizes = {batch: pair.memory_bytes(batch, config.context) for batch in config.batches}
    batches = tuple(batch for batch, size in sizes.items() if size <= memory)
    if not batches:
        smallest = config.batches[0]
        raise UsageError(
            f"{config.gpus} x {config.device.name} have {memory / 1e9:.0f} GB, and batch {smallest}"
            f" needs {sizes[smallest] / 1e9:.0f} GB; give more --gpus or another --quant"
        )
    return EstimateInputs(config, pair, roofline, shares, source, batches)


def estimate(config: EstimateConfig) -> EstimateReport:
    """Estimate every batch size, every number of drafts and every block size.

    Raises:
        UsageError, ConfigError: see `read_inputs`.
    """
    inputs = read_inputs(config)
    plain, block_size = inputs.plain_steps(), inputs.pair.drafter.config.block_size
    drafted: list[StepEstimate] = []
    for draft_len in range(1, block_size):
        drafted += inputs.dflash_steps(block_size, draft_len)
    whole_block = drafted[-len(plain) :]
    ways = [steps for steps in (plain, whole_block, inputs.eagle3_steps()) if steps]
    advice = advise([*drafted, *plain], plain)
    return EstimateReport(
        schema=3,
        version=__version__,
        target=config.target,
        drafter=config.drafter or str(inputs.pair.drafter.directory),
        gpu=config.device.name,
        gpus=config.gpus,
        context=config.context,
        assumptions=_assumptions(inputs),
        ttft_seconds=inputs.ttft_seconds(),
        prompt_chunk=PROMPT_CHUNKS[config.runtime],
        steps=[step for steps in ways for step in steps],
        best_steps=inputs.best_steps(advice, drafted, plain),
        curves=[_curve(steps) for steps in ways],
        equal_interactivity=_equal_interactivity(plain, drafted, config.gpus),
        best_block_sizes=_best_block_sizes(inputs),
        left_out=[batch for batch in config.batches if batch not in inputs.batches],
        advice=advice,
    )


def _assumptions(inputs: EstimateInputs) -> list[str]:
    """Return a line for each assumption, with its value and reason."""
    pair = inputs.pair
    text = render(
        "trtllm_dflash.estimate",
        "assumptions.j2",
        inputs=inputs,
        config=inputs.config,
        target=pair.target.config,
        sources=[source_of(pair.target), source_of(pair.drafter)],
        counts=pair.format_counts(),
        formats=pair.usual_formats(),
        constants=DATA["constants"].values(),
    )
    return text.splitlines()


def _curve(steps: Sequence[StepEstimate]) -> Curve:
    return Curve(steps[0].way, tuple(step.point() for step in steps), estimated=True)


def _best_block_sizes(inputs: EstimateInputs) -> dict[str, int]:
    """Return the best block to build with by batch size; 1 stands for no drafter.

    What smaller blocks accept is taken from the whole block's positions.
    """
    sizes = {str(batch): 1 for batch in inputs.batches}
    speedups = dict.fromkeys(sizes, 1.0)
    for block_size in range(2, inputs.pair.drafter.config.block_size + 1):
        for step in inputs.dflash_steps(block_size, block_size - 1):
            batch = str(step.batch)
            if step.speedup > speedups[batch]:
                sizes[batch], speedups[batch] = block_size, step.speedup
    return sizes


def _equal_interactivity(
    plain: Sequence[CurvePoint], drafted: Sequence[CurvePoint], gpus: int
) -> list[EqualInteractivity]:
    best, rows = frontier(drafted), []
    for point in frontier(plain):
        user = point.tokens_per_second_per_user
        plain_per_gpu = point.tokens_per_second_per_gpu
        dflash_per_gpu = throughput_at(best, user)
        row = EqualInteractivity(
            tokens_per_second_per_user=user,
            plain_batch=point.batch,
            # A GPU of the largest batch may give each of its users more than is asked for.
            dflash_batch=min(gpus * dflash_per_gpu / user, float(best[0].batch)),
            plain_per_gpu=plain_per_gpu,
            dflash_per_gpu=dflash_per_gpu,
            ratio=None if point.batch == 1 else dflash_per_gpu / plain_per_gpu,
        )
        rows.append(row)
    return rows
