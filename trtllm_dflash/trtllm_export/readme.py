"""The README of an export: its files, how to start it, and what to expect."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.templates import render
from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR
from trtllm_dflash.trtllm_export.pair import PairFacts

PORT = 8000
IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{WRITTEN_FOR}"


def export_page(
    config: TrtllmExportConfig,
    facts: PairFacts,
    arguments: Mapping[str, Any],
    files: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """Return the README in Markdown; `notes` are its warnings."""
    return render(
        "trtllm_dflash.trtllm_export",
        "readme.md.j2",
        title=Path(facts.target).name,
        config=config,
        facts=facts,
        written_for=WRITTEN_FOR,
        oldest=OLDEST,
        speculation=arguments["speculative_config"],
        split=_describe_split(config, facts),
        taps=speculation_ids(arguments["speculative_config"]),
        notes=notes,
        gpus=count(config.gpus, "GPU"),
        container=_container(facts),
        serve=_last_command(files["serve.sh"]),
        bench=_last_command(files["bench.sh"]),
    )


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 GPU, 8 GPUs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def speculation_ids(speculation: Mapping[str, Any]) -> str:
    """Return taps and mask in words."""
    taps = ", ".join(map(str, speculation.get("target_layer_ids", ()))) or "not published"
    return (
        f"target layers {taps}; mask token {speculation.get('mask_token_id', 'not published')}"
    )


def _container(facts: PairFacts) -> str:
    """Return the command of NVIDIA's container, in which the server is reachable from outside."""
    folders = [model for model in (facts.target, facts.drafter) if model.startswith("/")]
    mounts = [f"-v {shlex.quote(f'{folder}:{folder}:ro')}" for folder in folders]
    if len(folders) < 2:
        mounts.append('-v "$HOME/.cache/huggingface":/huggingface -e HF_HOME=/huggingface')
    return f"""docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \\
  -p {PORT}:{PORT} -v "$PWD":/export:ro {" ".join(mounts)} \\
  {IMAGE} /export/serve.sh --host 0.0.0.0"""


def _describe_split(config: TrtllmExportConfig, facts: PairFacts) -> str:
    if not facts.experts:
        return "every layer is split among all"
    if config.expert_parallel:
        each = config.gpus // config.expert_parallel
        groups = f"{facts.experts} experts in {config.expert_parallel} groups"
        return f"{groups}, each split among {each}"
    return (
        f"every one of {facts.experts} experts is split among all (`--expert-parallel` would keep"
        " them whole)"
    )


def _last_command(script: str) -> str:
    """Return the last command of a script on one line."""
    return script.split("\nexec ")[1].replace(" \\\n    ", " ").strip()
