"""Published figures of DFlash and EAGLE-3, and what the estimate predicts for each."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from trtllm_dflash.builder.config_models import find_drafter, find_target
from trtllm_dflash.catalog.gpus import GPUS, GpuSpec
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.estimate.eagle3 import Eagle3Tree
from trtllm_dflash.estimate.formats import as_asked
from trtllm_dflash.estimate.pair import ModelPair
from trtllm_dflash.estimate.roofline import CONSTANTS, RUNTIMES, Constants, Roofline, Runtime
from trtllm_dflash.estimate.workload import DRAFTER, KernelCost

FOLDER = Path(__file__).parent
ASSUMPTIONS: dict[str, Any] = tomllib.loads((FOLDER / "assumptions.toml").read_text("utf-8"))
SOFTWARE = RUNTIMES | {
    name: Runtime(name, **values) for name, values in ASSUMPTIONS["software"].items()
}
# The host's time for each kernel where it launches them one by one, and for each sequence.
LAUNCHES: dict[str, dict[str, float]] = ASSUMPTIONS["launches"]
HOST_BY_SEQUENCE: dict[str, float] = ASSUMPTIONS["draft_host_per_sequence"]
ALL_GPUS = (*GPUS, *(GpuSpec(**values) for values in ASSUMPTIONS["gpus"]))
MAX_ERROR = 0.2  # what the project aims at


@dataclass(frozen=True)
class PublishedFigure:
    """One published speedup over plain decoding of the same software: a row of figures.csv.

    `status` is "listed", "added later", "held out" or "hybrid". A figure that was added later is
    one of those that the project set itself, and was compared only after all choices. One that was
    held out was looked up after all choices and is not among them. Those of hybrid targets came
    last: what a server does with states was decided with them in view.
    """

    source: str
    drafter: str
    gpu: str
    software: str
    text: str
    sequences: int
    acceptance_length: float
    speedup: float
    plain: float | None  # tokens a second of plain decoding, all sequences together
    block_size: int | None
    tree: Eagle3Tree | None
    is_nvfp4: bool
    reasons: bool
    status: str
    note: str

    @property
    def method(self) -> str:
        """Return "DFlash" or "EAGLE-3"."""
        return "DFlash" if self.tree is None else "EAGLE-3"

    @property
    def device(self) -> GpuSpec:
        """Return the datasheet's figures of the GPU."""
        return next(gpu for gpu in ALL_GPUS if gpu.name == self.gpu)

    @property
    def target(self) -> str:
        """Return the target's name without its owner."""
        pair = pair_of(self.drafter, "drafter")
        assert pair is not None
        return pair.target.repository.rpartition("/")[2]

    def is_covered(self, by: dict[str, str]) -> bool:
        """Tell whether the figure has the values that an explanation covers."""
        wanted = dict(by)
        low, _, high = wanted.pop("sequences", "1..9999").partition("..")
        fits = all(fnmatchcase(getattr(self, name), value) for name, value in wanted.items())
        return fits and int(low) <= self.sequences <= int(high)


def read_figures() -> list[PublishedFigure]:
    """Return the rows of figures.csv."""
    with (FOLDER / "figures.csv").open(encoding="utf-8", newline="") as file:
        return [_read_row(row) for row in csv.DictReader(file)]


def _read_row(row: dict[str, str]) -> PublishedFigure:
    plain = float(row["plain_tokens_per_second"]) if row["plain_tokens_per_second"] else None
    if plain is None:
        speedup = float(row["speedup"])
    else:
        speedup = float(row["drafted_tokens_per_second"]) / plain
    tree = None
    if row["eagle3_tree"]:
        tree = Eagle3Tree(*(int(size) for size in row["eagle3_tree"].split("-")))
    return PublishedFigure(
        source=row["source"],
        drafter=row["drafter"],
        gpu=row["gpu"],
        software=row["software"],
        text=row["text"],
        sequences=int(row["sequences"]),
        acceptance_length=float(row["acceptance_length"]),
        speedup=speedup,
        plain=plain,
        block_size=int(row["block_size"]) if row["block_size"] else None,
        tree=tree,
        is_nvfp4=row["quantization"] == "nvfp4",
        reasons=row["reasoning"] == "yes",
        status=row["status"],
        note=row["note"],
    )


@dataclass(frozen=True)
class Prediction:
    """A published figure and the estimate of it."""

    figure: PublishedFigure
    plain: float  # tokens a second of all sequences, prompts included
    speedup: float
    step_seconds: float
    limited_by: str

    @property
    def error(self) -> float:
        """Return the relative error: +0.1 is a prediction that is 10 % too high."""
        return self.speedup / self.figure.speedup - 1

    @property
    def misses(self) -> bool:
        """Tell whether it is further off than the project aims at."""
        return abs(self.error) > MAX_ERROR


def predict_all(
    figures: Sequence[PublishedFigure] | None = None,
    *,
    constants: Constants = CONSTANTS,
    answers: float = 1.0,
    copies_states: bool = True,
) -> list[Prediction]:
    """Predict every figure; `answers` makes all assumed answers longer or shorter.

    Without `copies_states` no software copies recurrent states.
    """
    chosen = read_figures() if figures is None else figures
    found = []
    for figure in chosen:
        step = roofline_of(figure.device, figure.software, constants, batch=figure.sequences)
        if not copies_states:
            step = replace(step, runtime=replace(step.runtime, copies_states=False))
        found.append(_predict(figure, step, answers))
    return found


@cache
def stored_pair(drafter: str, *, is_nvfp4: bool = False) -> ModelPair:
    """Return a published pair as its checkpoints are stored, or with NVFP4 linears."""
    listed = pair_of(drafter, "drafter")
    assert listed is not None
    asked = "nvfp4" if is_nvfp4 else "none"
    target = as_asked(find_target(listed.target.repository), "--quant", asked)
    return ModelPair(target, as_asked(find_drafter(drafter), "--drafter-quant", asked))


def roofline_of(
    gpu: GpuSpec,
    software: str,
    constants: Constants = CONSTANTS,
    *,
    batch: int = 1,
    is_prompt: bool = False,
) -> Roofline:
    """Return the roofline of steps of `batch` sequences, or of a prompt, under some software.

    A prompt is no CUDA graph under a server, and under eager software a step is none either.
    """
    runtime = SOFTWARE[software]
    by_sequence = HOST_BY_SEQUENCE.get(software, 0.0)
    runtime = replace(runtime, draft_host=runtime.draft_host + batch * by_sequence)
    launch = LAUNCHES["prompts" if is_prompt else "steps"].get(software, 0.0)
    constants = replace(constants, kernel=max(constants.kernel, launch))
    return Roofline(gpu, runtime=runtime, constants=constants)


def _predict(figure: PublishedFigure, step: Roofline, answers: float) -> Prediction:
    pair = stored_pair(figure.drafter, is_nvfp4=figure.is_nvfp4)
    text, batch = ASSUMPTIONS["texts"][figure.text], figure.sequences
    prefill = roofline_of(figure.device, figure.software, step.constants, is_prompt=True)
    extra = ASSUMPTIONS["reasoning"]["tokens"] * figure.reasons
    answer, length = answers * (text["answer"] + extra), text["prompt"]
    context = length + answer / 2
    one_token, whole_prompt = _target_pass(pair, 1), _target_pass(pair, length)
    plain = step.time(one_token, batch=batch, context=context, drafts=False)
    draft = step.time(_draft_step(figure, pair), batch=batch, context=context, drafts=True)
    prompt = prefill.time(whole_prompt, batch=1, context=length / 2, drafts=False)
    # While a sequence's answer is written, each of the others ends once and is followed by a
    # prompt, for which all wait.
    waiting = batch * prompt.seconds
    without = answer * plain.seconds + waiting
    drafted = answer / figure.acceptance_length * draft.seconds + waiting
    tokens_per_second = batch * answer / without
    return Prediction(
        figure, tokens_per_second, without / drafted, draft.seconds, draft.limited_by
    )


@cache
def _target_pass(pair: ModelPair, width: int) -> tuple[KernelCost, ...]:
    return pair.target_pass(width, 1)


@cache
def _draft_step(figure: PublishedFigure, pair: ModelPair) -> tuple[KernelCost, ...]:
    if figure.tree is None:
        block_size = figure.block_size or pair.drafter.config.block_size
        return pair.dflash_step(block_size, block_size - 1)
    width = figure.tree.tokens + 1
    drafting = figure.tree.costs(pair.target.config, pair.usual_formats()[DRAFTER])
    return (*pair.target_pass(width, width), *drafting)


def median_error(predictions: Sequence[Prediction]) -> float:
    """Return the median of the absolute errors."""
    return median(abs(each.error) for each in predictions)


def listed(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions that the aim is about."""
    return [each for each in predictions if each.figure.status in ("listed", "added later")]


def held_out(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions of figures that were looked up after every choice was made."""
    return [each for each in predictions if each.figure.status == "held out"]


def hybrids(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions of targets with linear attention."""
    return [each for each in predictions if each.figure.status == "hybrid"]


def explanations() -> list[dict[str, Any]]:
    """Return what is said of the figures that the estimate misses."""
    found: list[dict[str, Any]] = ASSUMPTIONS["explanations"]
    return found


def unexplained(
    predictions: Sequence[Prediction], reasons: Sequence[dict[str, Any]]
) -> list[Prediction]:
    """Return the missed figures that no explanation covers."""
    found = []
    for each in predictions:
        is_covered = any(each.figure.is_covered(one["covers"]) for one in reasons)
        if each.misses and not is_covered:
            found.append(each)
    return found
