"""The export for TensorRT-LLM: its configuration, scripts that start it, and a README."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.engine_dir.atomic import atomic_directory, check_output_dir
from trtllm_dflash.errors import BuildError, UsageError
from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.templates import render
from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR, schema_errors
from trtllm_dflash.trtllm_export.pair import PairFacts, read_pair
from trtllm_dflash.trtllm_export.readme import export_page

CONFIG_FILE = "trtllm.yaml"
FACTS_FILE = "export.json"
_PORT = 8000
# The drafter's attention: kernels by GPU. VANILLA runs on all.
_ATTENTION = {"sm90": "FA4", "sm100": "TRTLLM", "sm103": "TRTLLM"}


def export(config: TrtllmExportConfig) -> list[str]:
    """Write the directory and return the names of its files.

    Reads configurations, no weights, and fetches nothing.

    Raises:
        DFlashError: for a pair or a size that TensorRT-LLM does not take, or a directory that is in
            the way.
    """
    check_output_dir(config.output_dir)
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
    files["README.md"] = export_page(config, facts, arguments, files)
    with atomic_directory(config.output_dir) as directory:
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (directory / name).chmod(0o755)
    return list(files)


def check_split(config: TrtllmExportConfig, facts: PairFacts) -> None:
    """Check that the models can be split as asked, and that the block has so many drafts.

    Raises:
        UsageError: for sizes that cannot be, with those that can.
    """
    for role, heads in facts.heads.items():
        if heads % config.gpus:
            able = _divisors(heads, 2 * config.gpus)
            raise UsageError(
                f"--gpus {config.gpus} does not divide the {role}'s {heads} heads; {able} would"
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
    max_draft_len = facts.block_size - 1
    if config.draft_len is not None and config.draft_len > max_draft_len:
        raise UsageError(
            f"--draft-len {config.draft_len} is more than {max_draft_len}: a block of"
            f" {facts.block_size} has the anchor first"
        )


def _divisors(number: int, largest: int) -> str:
    able = [count for count in range(1, min(number, largest) + 1) if number % count == 0]
    return ", ".join(map(str, able))


def llm_arguments(config: TrtllmExportConfig, facts: PairFacts) -> dict[str, Any]:
    """Return TensorRT-LLM's `LLM(...)` arguments but for the model, for the YAML file."""
    arguments: dict[str, Any] = {
        "tensor_parallel_size": config.gpus,
        "pipeline_parallel_size": 1,
        "gpus_per_node": config.gpus_per_node,
        "max_batch_size": config.max_batch_size,
        "max_seq_len": config.max_seq_len,
        "max_num_tokens": config.max_num_tokens,
        # A reused prefix has no context for the drafter, so that drafts after it are bad.
        "kv_cache_config": {
            "enable_block_reuse": False,
            "free_gpu_memory_fraction": 0.8,
            "dtype": "auto",
        },
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": config.max_batch_size},
        "speculative_config": {
            "decoding_type": "DFlash",
            "max_draft_len": config.draft_len or facts.block_size - 1,
            "speculative_model": facts.drafter,
            "attention_backend": attention_backend(config, facts),
        },
    }
    if config.expert_parallel:
        arguments["moe_expert_parallel_size"] = config.expert_parallel
        arguments["moe_tensor_parallel_size"] = config.gpus // config.expert_parallel
    return arguments


def attention_backend(config: TrtllmExportConfig, facts: PairFacts) -> str:
    """Return the drafter's attention kernels.

    TensorRT-LLM's own lack the windows without causality of DFlash 2.
    """
    if facts.drafter_variant == "DFlash 2" and _ATTENTION.get(config.arch) == "TRTLLM":
        return "VANILLA"
    return _ATTENTION.get(config.arch, "VANILLA")


def serve_command(config: TrtllmExportConfig, facts: PairFacts) -> list[str]:
    """Return the command of an OpenAI-compatible server."""
    return ["trtllm-serve", facts.target, "--tp_size", str(config.gpus), "--port", str(_PORT)]


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
