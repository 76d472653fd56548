"""The export for TensorRT-LLM: its configuration, scripts that start it, and a README."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.atomic.output_directory import (
    atomic_directory,
    check_output_dir,
    check_replaceable,
)
from trtllm_dflash.atomic.swap import Written
from trtllm_dflash.engine_dir.manifest import file_digest
from trtllm_dflash.errors import BuildError, EngineError, UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.templates import render
from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR, schema_errors
from trtllm_dflash.trtllm_export.notes import notes_for
from trtllm_dflash.trtllm_export.pair import DFLASH_2, PairFacts, read_pair
from trtllm_dflash.trtllm_export.readme import PORT, export_page
from trtllm_dflash.utf8_path import require_utf8

CONFIG_FILE = "trtllm.yaml"
FACTS_FILE = "export.json"
FILES = (CONFIG_FILE, FACTS_FILE, "serve.sh", "bench.sh", "README.md")
_DEFAULT_SEQ_LEN = 8192
# The drafter's attention: kernels by GPU. VANILLA runs on all.
_ATTENTION = {"sm90": "FA4", "sm100": "TRTLLM", "sm103": "TRTLLM"}


@dataclass(frozen=True)
class HandOver:
    """The files that were written, and what their reader has to know or to fill in."""

    files: tuple[str, ...]
    notes: tuple[str, ...]
    drafter_licence: str


def export(config: TrtllmExportConfig, *, overwrite: bool = False) -> HandOver:
    """Write the directory and return the names of its files.

    Reads configurations, no weights, and fetches nothing. `overwrite` replaces an earlier export,
    and nothing else.

    Raises:
        DFlashError: for a pair or a size that TensorRT-LLM does not take, or a directory that is in
            the way.
    """
    if not check_output_dir(config.output_dir, overwrite=overwrite, what="an export"):
        check_replaceable(config.output_dir, recognize_export, what="an export")
    for option, name in (("--target", config.target), ("--drafter", config.drafter)):
        if name is not None:
            require_utf8(option, Path(name).resolve())
    facts = read_pair(config.target, config.drafter)
    check_split(config, facts)
    arguments = llm_arguments(config, facts)
    wrong = schema_errors(arguments)
    if wrong:
        raise BuildError(
            f"TensorRT-LLM {WRITTEN_FOR} would not take this configuration: {'; '.join(wrong)}"
        )
    record = {
        "written_for": WRITTEN_FOR,
        "oldest": OLDEST,
        "model": facts.target,
        "llm_args": arguments,
    }
    about = f"For TensorRT-LLM {WRITTEN_FOR} (from {OLDEST} on), PyTorch backend."
    files = {
        CONFIG_FILE: f"# {about}\n{to_yaml(arguments)}",
        FACTS_FILE: json.dumps(record, indent=2) + "\n",
        "serve.sh": _script(config, serve_command(config, facts)),
        "bench.sh": _script(config, bench_command(config, facts)),
    }
    notes = notes_for(config, facts, arguments)
    files["README.md"] = export_page(config, facts, arguments, files, notes)
    replaces = recognize_export if overwrite else None
    with atomic_directory(config.output_dir, replaces=replaces) as directory:
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (directory / name).chmod(0o755)
    return HandOver(tuple(files), tuple(notes), facts.drafter_licence)


def recognize_export(directory: Path) -> Written:
    """Return what an export wrote into a directory.

    Raises:
        EngineError: if it is no export.
    """
    missing = [name for name in (FACTS_FILE, CONFIG_FILE) if not (directory / name).is_file()]
    if missing:
        raise EngineError(f"{directory} has no {' and '.join(missing)}")
    return Written(file_digest(directory / FACTS_FILE), frozenset(FILES))


def check_split(config: TrtllmExportConfig, facts: PairFacts) -> None:
    """Check that the models can be split as asked.

    Raises:
        UsageError: for sizes that cannot be, with those that can.
    """
    for words, heads in facts.heads.items():
        if heads % config.gpus:
            able = _divisors(heads, 2 * config.gpus)
            raise UsageError(
                f"--gpus {config.gpus} does not divide the {words.format(heads)}; {able} would"
            )
    if config.expert_parallel and not facts.experts:
        raise UsageError(
            f"--expert-parallel is for mixtures of experts, and {facts.target} has none"
        )
    if config.expert_parallel and facts.experts % config.expert_parallel:
        able = _divisors(math.gcd(config.gpus, facts.experts), config.gpus)
        raise UsageError(
            f"--expert-parallel {config.expert_parallel} does not divide the target's"
            f" {facts.experts} experts; {able} would"
        )


def sequence_length(config: TrtllmExportConfig, facts: PairFacts) -> int:
    """Return the longest sequence: as asked, else the usual one or the target's own if shorter.

    Raises:
        UsageError: for more than the target was trained for.
    """
    limit = facts.context_limit
    if config.max_seq_len is None:
        return _DEFAULT_SEQ_LEN if limit is None else min(_DEFAULT_SEQ_LEN, limit.tokens)
    if limit is not None and config.max_seq_len > limit.tokens:
        raise UsageError(
            f"--max-seq-len {config.max_seq_len} is more than {limit.tokens}, {limit.reason}"
        )
    return config.max_seq_len


def draft_lens(
    config: TrtllmExportConfig, facts: PairFacts
) -> tuple[int, dict[int, int] | None]:
    """Return the most drafts of a step, and the schedule of drafts by batch size if one is given.

    TensorRT-LLM wants the schedule's first row to have the most.

    Raises:
        UsageError: for more drafts than the block has, or where its size is needed and unknown.
    """
    name, longest, schedule = "--draft-len", config.draft_len, None
    if config.draft_len_schedule is not None:
        name = "--draft-len-schedule"
        schedule = dict(DraftLenSchedule.load(config.draft_len_schedule).rows)
        longest = max(schedule.values())
        first = min(schedule)
        if schedule[first] != longest:
            raise UsageError(
                f"{name} {config.draft_len_schedule}: it has {schedule[first]} drafts up to batch"
                f" {first} and {longest} beyond, and TensorRT-LLM wants the most in the first row"
            )
        if longest == 0:
            raise UsageError(
                f"{name} {config.draft_len_schedule}: it drafts nothing at any batch"
            )
    if facts.block_size is None:
        if longest is None:
            raise UsageError(
                f"drafter {facts.drafter}: its block size is not published. Give its directory, or"
                " --draft-len: at most the block_size of its config.json minus 1."
            )
        return longest, schedule
    most = facts.block_size - 1
    if longest is not None and longest > most:
        raise UsageError(
            f"{name} {longest} is more than {most}: a block of {facts.block_size} has the anchor"
            " first"
        )
    return longest or most, schedule


def _divisors(number: int, largest: int) -> str:
    able = [count for count in range(1, min(number, largest) + 1) if number % count == 0]
    return ", ".join(map(str, able))


def llm_arguments(config: TrtllmExportConfig, facts: PairFacts) -> dict[str, Any]:
    """Return TensorRT-LLM's `LLM(...)` arguments but for the model, for the YAML file.

    Raises:
        UsageError: for lengths that cannot be.
    """
    max_seq_len = sequence_length(config, facts)
    arguments: dict[str, Any] = {
        "tensor_parallel_size": config.gpus,
        "pipeline_parallel_size": 1,
        "gpus_per_node": config.gpus_per_node,
        "max_batch_size": config.max_batch_size,
        "max_seq_len": max_seq_len,
        "max_num_tokens": config.max_num_tokens,
        # Without it each prompt above max_num_tokens is refused.
        "enable_chunked_prefill": max_seq_len > config.max_num_tokens,
        # A reused prefix has no context for the drafter, so that drafts after it are bad.
        "kv_cache_config": {
            "enable_block_reuse": False,
            "free_gpu_memory_fraction": 0.8,
            "dtype": "auto",
        },
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": config.max_batch_size},
        "speculative_config": speculative_config(config, facts),
    }
    if config.expert_parallel:
        arguments["moe_expert_parallel_size"] = config.expert_parallel
        arguments["moe_tensor_parallel_size"] = config.gpus // config.expert_parallel
    return arguments


def speculative_config(config: TrtllmExportConfig, facts: PairFacts) -> dict[str, Any]:
    """Return the arguments of DFlashDecodingConfig.

    TensorRT-LLM reads taps and mask from the drafter's config.json where that exists when the
    configuration is checked. Of a hub's name it does not exist then, so both are written.

    Raises:
        UsageError: for numbers of drafts that cannot be, or more than a step holds.
    """
    max_draft_len, schedule = draft_lens(config, facts)
    rows = (schedule or {config.max_batch_size: max_draft_len}).items()
    widest = max(min(batch, config.max_batch_size) * (1 + length) for batch, length in rows)
    if widest > config.max_num_tokens:
        raise UsageError(
            f"--max-num-tokens {config.max_num_tokens} is less than the {widest} tokens that"
            f" {config.max_batch_size} requests verify in one step; give at least {widest}"
        )
    arguments: dict[str, Any] = {
        "decoding_type": "DFlash",
        "max_draft_len": max_draft_len,
        "speculative_model": facts.drafter,
    }
    if facts.target_layer_ids is not None:
        arguments["target_layer_ids"] = list(facts.target_layer_ids)
    if facts.mask_token_id is not None:
        arguments["mask_token_id"] = facts.mask_token_id
    if schedule is not None:
        arguments["draft_len_schedule"] = schedule
    if config.rejection_sampling:
        arguments["use_rejection_sampling"] = True
    return arguments | {"attention_backend": attention_backend(config, facts)}


def attention_backend(config: TrtllmExportConfig, facts: PairFacts) -> str:
    """Return the drafter's attention kernels.

    TensorRT-LLM's own lack the windows without causality of DFlash 2.
    """
    if facts.drafter_variant == DFLASH_2 and _ATTENTION.get(config.arch) == "TRTLLM":
        return "VANILLA"
    return _ATTENTION.get(config.arch, "VANILLA")


def serve_command(config: TrtllmExportConfig, facts: PairFacts) -> list[str]:
    """Return the command of an OpenAI-compatible server."""
    return ["trtllm-serve", facts.target, "--tp_size", str(config.gpus), "--port", str(PORT)]


def bench_command(config: TrtllmExportConfig, facts: PairFacts) -> list[str]:
    """Return the command that measures throughput and acceptance length; the dataset follows."""
    model = ["--model", facts.target]
    if facts.target.startswith("/"):
        model += ["--model_path", facts.target]
    sizes = ["--tp", str(config.gpus), "--concurrency", str(config.max_batch_size)]
    options = ["--backend", "pytorch", *sizes, "--report_json", "report.json"]
    return ["trtllm-bench", *model, "throughput", *options]


def _script(config: TrtllmExportConfig, command: list[str]) -> str:
    """Return a script that runs a command; on several nodes with Slurm, one task for each GPU."""
    return render(
        "trtllm_dflash.trtllm_export",
        "script.sh.j2",
        config=config,
        config_file=CONFIG_FILE,
        command=shlex.join(command),
        is_benchmark="throughput" in command,
    )


def to_yaml(arguments: Mapping[str, Any], indent: str = "") -> str:
    """Format nested objects of plain values as YAML, whose scalars are JSON's."""
    lines = []
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name}:\n{to_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}\n")
    return "".join(lines)
