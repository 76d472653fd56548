"""The results of a profile.

These classes declare the JSON: field names are its keys, annotations their types and descriptions.
`schema.py` checks and describes it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from trtllm_dflash.profile.curve import Curve

SCHEMA = 4
METHODS = ("kernels", "differences")  # of step breakdowns
# Implementations of systems; PLAIN is also the plain engine's name.
PLAIN = "plain"
DFLASH = "dflash"
REFERENCE = "reference"
HUGGING_FACE = "huggingface"


@dataclass(frozen=True)
class TimeSummary:
    """Some seconds: their mean, percentiles and extremes."""

    mean: Annotated[float, "arithmetic mean"]
    p50: Annotated[float, "median"]
    p90: Annotated[float, "90th percentile"]
    p99: Annotated[float, "99th percentile"]
    min: Annotated[float, "smallest"]
    max: Annotated[float, "largest"]


@dataclass(frozen=True)
class SourceStats:
    """The drafts of one source."""

    source: Annotated[str, "dflash, the drafter; lookup, the text itself"]
    verified: Annotated[int, "drafts that were verified"]
    accepted: Annotated[int, "those that were accepted and kept"]


@dataclass(frozen=True)
class AcceptanceStats:
    """How many draft tokens were accepted."""

    acceptance_length: Annotated[
        float,
        "[AL], τ: tokens that a step yields for a sequence, bonus included; 1 without drafts",
    ]
    draft_acceptance_rate: Annotated[
        float | None,
        "[DAR]: accepted drafts over drafts; null without drafts, or where their number varies by"
        " step",
    ]
    steps: Annotated[int, "steps of sequences: a step of n sequences counts n times"]
    histogram: Annotated[list[int], "entry i: steps that yielded i tokens; entry 0 is 0"]
    by_position: Annotated[
        list[float],
        "entry i: share of the steps in which draft i + 1 of the block was accepted; the last step"
        " of each answer, which a stop token or the limit may have cut, does not count here nor in"
        " draft_acceptance_rate",
    ]
    by_source: Annotated[
        list[SourceStats], "by what drafted; empty without drafts, and of other packages"
    ]


@dataclass(frozen=True)
class CategoryResult:
    """The results of one system on the prompts of one category."""

    category: Annotated[str, "the prompts' category"]
    prompts: Annotated[int, "answers"]
    tokens: Annotated[int, "tokens of the decode steps"]
    tokens_per_second_per_user: Annotated[
        float, "tokens over decode_seconds, summed over the answers"
    ]
    acceptance: Annotated[AcceptanceStats, "of these prompts"]


@dataclass(frozen=True)
class PromptResult:
    """The results of one system on one prompt."""

    index: Annotated[int, "the prompt's place, from 0"]
    category: Annotated[str, "its category"]
    prompt_tokens: Annotated[int, "its length"]
    tokens: Annotated[int, "all new tokens"]
    acceptance_length: Annotated[float, "its τ"]
    ttft_seconds: Annotated[float, "TTFT"]
    decode_seconds: Annotated[float, "time of the decode steps in which it took part"]
    same_tokens: Annotated[bool, "whether they are those of the plain engine"]


@dataclass(frozen=True)
class SystemResult:
    """The results of one system at one batch size."""

    system: Annotated[str, "name in tables and plots"]
    implementation: Annotated[str, "dflash, plain, reference or huggingface"]
    batch: Annotated[int, "sequences that generate together"]
    draft_len: Annotated[int, "drafts verified in a step, at most"]
    drafts: Annotated[
        str | None,
        "dflash, lookup or both: what may draft; null without drafts, or other packages",
    ]
    auto: Annotated[bool, "whether steps verify as many drafts as pay, draft_len at most"]
    ttft_seconds: Annotated[TimeSummary, "TTFT, time to first token, by answer"]
    tpot_seconds: Annotated[
        TimeSummary, "TPOT, time per output token after the first, by answer"
    ]
    step_seconds: Annotated[TimeSummary, "decode steps in which the whole batch took part"]
    full_steps: Annotated[int, "how many these are"]
    tokens_per_second_per_user: Annotated[float, "in these steps, of one sequence"]
    tokens_per_second: Annotated[float, "in these steps, of all sequences"]
    tokens_per_second_with_prefill: Annotated[
        float, "all new tokens over all time, with prefill and while the batch fills and drains"
    ]
    acceptance: Annotated[AcceptanceStats, "of all prompts"]
    by_category: Annotated[list[CategoryResult], "by the prompts' category, in their order"]
    by_prompt: Annotated[list[PromptResult], "by prompt"]
    same_tokens: Annotated[int, "answers that are token for token those of the plain engine"]
    tokens_sha256: Annotated[
        str, "of all answers' tokens: equal where seed, prompts and options are"
    ]


@dataclass(frozen=True)
class LayerTime:
    """The time of one part of the graph in a step."""

    part: Annotated[str, "verify, accept or draft"]
    layer: Annotated[str, "its name in the graph: target/layers.0, drafter/fc, …"]
    seconds: Annotated[float, "of a step"]


@dataclass(frozen=True)
class StepBreakdown:
    """The time of a decode step by part."""

    system: Annotated[str, "as in results"]
    batch: Annotated[int, "as in results"]
    draft_len: Annotated[int, "as in results"]
    method: Annotated[
        str,
        "kernels: the fastest of a few extra steps, divided in proportion to the kernel times that"
        " ONNX Runtime traced in the same step of another session; differences: step times of"
        " results subtracted from each other",
    ]
    step_seconds: Annotated[float, "the whole step"]
    verify_seconds: Annotated[float, "the target's layers and head"]
    accept_seconds: Annotated[float | None, "acceptance; null: part of draft_seconds"]
    draft_seconds: Annotated[float, "KV injection and the drafter's block"]
    host_seconds: Annotated[
        float | None, "outside of ONNX Runtime; null: spread over the others"
    ]
    layers: Annotated[list[LayerTime], "by layer; empty where only differences are known"]


@dataclass(frozen=True)
class BatchAdvice:
    """The best draft_len at one batch size."""

    batch: Annotated[int, "sequences that generate together"]
    draft_len: Annotated[
        int, "the number of drafts that gives most tokens a second in the DFlash engine"
    ]
    block_size: Annotated[int, "the same with the anchor: the width of the verifying step"]
    tokens_per_second_per_user: Annotated[float, "with that many"]
    speedup: Annotated[float, "over the plain engine"]


@dataclass(frozen=True)
class Advice:
    """The recommended draft_len for each batch size."""

    batches: Annotated[list[BatchAdvice], "by batch size"]
    stops_paying_at: Annotated[
        int | None,
        "the batch size from which on the plain engine is faster than any number of drafts; null:"
        " none tried",
    ]
    draft_len_schedule: Annotated[
        dict[str, int], "what run --draft-len-schedule takes: batch size to drafts"
    ]


@dataclass(frozen=True)
class Profile:
    """Everything that one run measured."""

    schema: Annotated[int, f"version of this form: {SCHEMA}"]
    created: Annotated[str, "when it ended, UTC"]
    argv: Annotated[list[str], "the command line"]
    commit: Annotated[
        str | None,
        "git commit of the package's checkout, with + where files differ; null: none",
    ]
    versions: Annotated[dict[str, str], "of Python and the packages that took part"]
    machine: Annotated[
        dict[str, Any],
        "processor, gpus, cores, threads, memory, system, load average at the start",
    ]
    engine: Annotated[
        dict[str, Any], "the DFlash engine: directory, arch, sizes, and what its manifest says"
    ]
    plain: Annotated[dict[str, Any], "the plain engine, likewise"]
    settings: Annotated[dict[str, Any], "batch sizes, lengths, sampling"]
    prompts: Annotated[
        dict[str, Any], "name, sha256 of the token ids, number by category, tokens"
    ]
    clock: Annotated[dict[str, str], "what each time covers"]
    results: Annotated[list[SystemResult], "systems by batch size"]
    curves: Annotated[list[Curve], "the same as curves of throughput against interactivity"]
    step_breakdowns: Annotated[list[StepBreakdown], "where the time of a step goes"]
    advice: Annotated[Advice, "which numbers of drafts pay"]

    def to_json(self) -> dict[str, Any]:
        """Return everything in plain types."""
        return asdict(self)
