"""The README of an export: its files, how to start it, and what to expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.templates import render
from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR
from trtllm_dflash.trtllm_export.pair import SUPPORTED_VARIANTS, PairFacts


def export_page(
    config: TrtllmExportConfig,
    facts: PairFacts,
    arguments: Mapping[str, Any],
    files: Mapping[str, str],
) -> str:
    """Return the README in Markdown."""
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
        is_uncertain=facts.drafter_variant not in (None, *SUPPORTED_VARIANTS),
        serve=_last_command(files["serve.sh"]),
        bench=_last_command(files["bench.sh"]),
    )


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
