"""The README of an export: what is in it, how the target must lie, how to start it, what to
expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR
from trtllm_dflash.trtllm_export.pair import TAKEN, PairFacts

_LAYOUT = """\
TensorRT-LLM reads the target as a Hugging Face directory; a quantized one as ModelOpt writes it, which is also what
`dflash-trt quantize` writes:

| file | holds |
|---|---|
| `config.json` | the architecture; may repeat the quantization |
| `hf_quant_config.json` | `quant_algo` (FP8, NVFP4), `kv_cache_quant_algo`, `group_size`, `exclude_modules` |
| `*.safetensors` | of a quantized linear X: `X.weight`, `X.weight_scale`, `X.input_scale`; NVFP4: `X.weight_scale_2` |
| tokenizer files | as the original has them |

The drafter stays as it was trained; quantizing it costs acceptance first."""


def page(
    config: TrtllmExportConfig,
    facts: PairFacts,
    arguments: Mapping[str, Any],
    files: Mapping[str, str],
) -> str:
    """The text, in Markdown."""
    drafts = arguments["speculative_config"]["max_draft_len"]
    place = (
        "on one machine"
        if config.nodes == 1
        else f"on {config.nodes} machines with {config.gpus_per_node} each"
    )
    return (
        "\n\n".join(
            [
                f"# {Path(facts.target).name} with DFlash on {config.gpus} GPUs",
                (
                    f"For TensorRT-LLM {WRITTEN_FOR}, PyTorch backend; its fields exist from"
                    f" {OLDEST} on. Written by `dflash-trt export-trtllm` and not run here: nobody"
                    " has measured this pair with these files."
                ),
                _bullets(
                    {
                        "target": (
                            f"`{facts.target}`, {facts.architecture}; quantization:"
                            f" {facts.quantization}"
                        ),
                        "drafter": (
                            f"`{facts.drafter}`, blocks of {facts.block_size}; a step verifies"
                            f" {drafts} drafts"
                        ),
                        "GPUs": f"{config.gpus} {place}; {_split(config, facts)}",
                        "attention of the drafter": (
                            f"`{arguments['speculative_config']['attention_backend']}`"
                        ),
                    }
                ),
                *_records_and_returns(facts),
                (
                    "## Start\n\n```bash\n./serve.sh                          #"
                    " http://localhost:8000/v1/chat/completions\n./bench.sh --dataset prompts.jsonl"
                    "   # tokens a second, and the acceptance length\n```"
                ),
                (
                    "Each"
                    f" runs:\n\n```bash\n{_command(files['serve.sh'])}\n{_command(files['bench.sh'])}\n```"
                ),
                (
                    "`examples/tensorrt_llm/run.py` of dflash-trt answers a prompt through"
                    " TensorRT-LLM's Python API with the same configuration and prints the figures"
                    " of `dflash-trt run`."
                ),
                f"## The target's files\n\n{_LAYOUT}",
                (
                    "## What to expect\n\n- Speculation pays at small batches. Compare with the"
                    " same server without `speculative_config`.\n- The first step after a prompt"
                    " verifies placeholders: its drafts are never accepted.\n- Block reuse is off:"
                    " a prefix found in the cache has no context for the drafter.\n- The drafter's"
                    " context takes memory beside the KV cache: `free_gpu_memory_fraction` is"
                    " 0.8.\n- The bench's report has τ as acceptance length in `decoding_stats`:"
                    " tokens a step, with the bonus."
                ),
            ]
        )
        + "\n"
    )


def _split(config: TrtllmExportConfig, facts: PairFacts) -> str:
    if not facts.experts:
        return "every layer is split among all"
    if config.expert_parallel:
        each = config.gpus // config.expert_parallel
        return (
            f"{facts.experts} experts in {config.expert_parallel} groups, each split among {each}"
        )
    return (
        f"every one of {facts.experts} experts is split among all (`--expert-parallel` would keep"
        " them whole)"
    )


def _records_and_returns(facts: PairFacts) -> list[str]:
    if facts.drafter_variant is None or facts.drafter_variant in TAKEN:
        return []
    return [
        f"**Uncertain**: this drafter is of the variant '{facts.drafter_variant}', and TensorRT-LLM's pages"
        " do not say that its DFlash takes it. If it loads, compare τ with the drafter's model"
        " card before anything else."
    ]


def _bullets(rows: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in rows.items())


def _command(script: str) -> str:
    """The last command of a script, on one line."""
    return script.split("\nexec ")[1].replace(" \\\n    ", " ").strip()
