"""Writes what TensorRT-LLM needs to serve a pair with its own DFlash: configuration, commands, a
page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.engine_dir.atomic import atomic_directory, check_output_dir
from trtllm_dflash.errors import BuildError, UsageError
from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR, faults
from trtllm_dflash.trtllm_export.pair import PairFacts, read_pair
from trtllm_dflash.trtllm_export.readme import page

CONFIG_FILE, FACTS_FILE = "trtllm.yaml", "export.json"
_PORT = 8000
# The drafter's attention: kernels by GPU. VANILLA runs on all.
_ATTENTION = {"sm90": "FA4", "sm100": "TRTLLM", "sm103": "TRTLLM"}


def export(config: TrtllmExportConfig) -> list[str]:
    """Write the directory; returns the names of its files. Reads configurations, no weights, and
    fetches nothing.

    Raises: DFlashError: for a pair or a size that TensorRT-LLM does not take, or a directory that
    is in the way.
    """
    check_output_dir(config.output_dir)
    facts = read_pair(config.target, config.drafter)
    check_split(config, facts)
    arguments = llm_arguments(config, facts)
    wrong = faults(arguments)
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
    files = {
        CONFIG_FILE: (
            f"# For TensorRT-LLM {WRITTEN_FOR} (from {OLDEST} on), PyTorch"
            f" backend.\n{to_yaml(arguments)}"
        ),
        FACTS_FILE: json.dumps(record, indent=2) + "\n",
        "serve.sh": _script(config, serve_command(config, facts)),
        "bench.sh": _script(config, bench_command(config, facts)),
    }
    files["README.md"] = page(config, facts, arguments, files)
    with atomic_directory(config.output_dir) as directory:
        for name, text in files.items():
            (directory / name).write_text(text)
            if name.endswith(".sh"):
                (directory / name).chmod(0o755)
    return list(files)


def check_split(config: TrtllmExportConfig, facts: PairFacts) -> None:
    """Check that the models can be split as asked, and that the block has so many drafts.

    Raises:
        UsageError: saying what could be.
    """
    for role, heads in facts.heads.items():
        if heads % config.gpus:
            able = [
                count
                for count in range(1, heads + 1)
                if heads % count == 0 and count <= 2 * config.gpus
            ]
            raise UsageError(
                f"--gpus {config.gpus} does not divide the {role}'s {heads} heads;"
                f" {', '.join(map(str, able))} would"
            )
    if config.expert_parallel and not facts.experts:
        raise UsageError(
            f"--expert-parallel is for mixtures of experts, and {facts.target} has none"
        )
    if config.expert_parallel and facts.experts % config.expert_parallel:
        able = [
            count
            for count in range(1, config.gpus + 1)
            if not (config.gpus % count or facts.experts % count)
        ]
        raise UsageError(
            f"--expert-parallel {config.expert_parallel} does not divide the target's"
            f" {facts.experts} experts; {', '.join(map(str, able))} would"
        )
    most = facts.block_size - 1
    if config.draft_len is not None and config.draft_len > most:
        raise UsageError(
            f"--draft-len {config.draft_len} is more than {most}: a block of {facts.block_size} has"
            " the anchor first"
        )


def llm_arguments(config: TrtllmExportConfig, facts: PairFacts) -> dict[str, Any]:
    """TensorRT-LLM's `LLM(...)` arguments but for the model: the content of the YAML file."""
    arguments: dict[str, Any] = {
        "tensor_parallel_size": config.gpus,
        "pipeline_parallel_size": 1,
        "gpus_per_node": config.gpus_per_node,
        "max_batch_size": config.max_batch_size,
        "max_seq_len": config.max_seq_len,
        "max_num_tokens": config.max_num_tokens,
        # A prefix that is found in the cache brings no context for the drafter, and what follows is
        # drafted badly.
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
    """The drafter's attention kernels; DFlash 2's windows without causality are not in
    TensorRT-LLM's own.
    """
    if facts.drafter_variant == "DFlash 2" and _ATTENTION.get(config.arch) == "TRTLLM":
        return "VANILLA"
    return _ATTENTION.get(config.arch, "VANILLA")


def serve_command(config: TrtllmExportConfig, facts: PairFacts) -> list[str]:
    """An OpenAI-compatible server."""
    return ["trtllm-serve", facts.target, "--tp_size", str(config.gpus), "--port", str(_PORT)]


def bench_command(config: TrtllmExportConfig, facts: PairFacts) -> list[str]:
    """Throughput, with the acceptance length in its report; the dataset follows."""
    where = ["--model_path", facts.target] if facts.target.startswith("/") else []
    sizes = [
        "--tp",
        str(config.gpus),
        "--concurrency",
        str(config.max_batch_size),
        "--report_json",
        "report.json",
    ]
    return [
        "trtllm-bench",
        "--model",
        facts.target,
        *where,
        "throughput",
        "--backend",
        "pytorch",
        *sizes,
    ]


def _script(config: TrtllmExportConfig, command: list[str]) -> str:
    """The command as a script; on several nodes each GPU is a task of Slurm's, and one of them is
    in charge.
    """
    line = f'{shlex.join(command)} --config "$here/{CONFIG_FILE}" "$@"'
    usage = "# More options can follow"
    if "throughput" in command:
        usage = (
            '# Usage: ./bench.sh --dataset FILE; its lines are {"task_id": 0, "prompt": "...",'
            ' "output_tokens": 256}'
        )
    if config.nodes > 1:
        sizes = (
            f"--nodes {config.nodes} --ntasks {config.gpus} --ntasks-per-node"
            f" {config.gpus_per_node}"
        )
        line = (
            f"srun {sizes} --gres=gpu:{config.gpus_per_node} --mpi=pmix \\\n   "
            f" trtllm-llmapi-launch {line}"
        )
        usage += (
            ". In an allocation of Slurm's; this folder and the models must be at the same place on"
            " every node"
        )
    return f'#!/bin/sh\n{usage}.\nset -eu\nhere=$(cd "$(dirname "$0")" && pwd)\nexec {line}\n'


def to_yaml(arguments: Mapping[str, Any], indent: str = "") -> str:
    """Nested objects of plain values as YAML, whose scalars are JSON's."""
    lines = []
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name}:\n{to_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}\n")
    return "".join(lines)
