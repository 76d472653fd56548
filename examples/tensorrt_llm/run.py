"""Answers a prompt with an export for TensorRT-LLM, and prints the figures that `dflash-trt run`
prints.

python run.py EXPORT [PROMPT]

EXPORT is a directory of `dflash-trt export-trtllm`. On several nodes: `srun … trtllm-llmapi-launch
python run.py …`, as in EXPORT/serve.sh.
"""

from __future__ import annotations

import json
import time
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from trtllm_dflash.cli.run_summary import print_summary
from trtllm_dflash.runtime.outputs import Generation, Timings

TASK = "Write a Python function that returns the sum of the even numbers in a list"
PROMPT = f"{TASK}, and explain it."


def missing(written_for: str, oldest: str) -> str | None:
    """Return what is missing here and how to get it; None if nothing is."""
    if find_spec("tensorrt_llm") is None:
        return (
            "tensorrt_llm is not installed here. It is no part of dflash-trt, and comes with"
            f" NVIDIA's container\nnvcr.io/nvidia/tensorrt-llm/release ({oldest} or newer; this"
            f" export was written for {written_for}).\nIn it, run pip install . in the dflash-trt"
            " repository,\nthen this command again.\nWithout it, one GPU is enough for many pairs:"
            " dflash-trt build, dflash-trt run."
        )
    import tensorrt_llm.llmapi

    if not hasattr(tensorrt_llm.llmapi, "DFlashDecodingConfig"):
        version = metadata.version("tensorrt_llm")
        return (
            f"tensorrt_llm {version} has no DFlash; it came with 1.3, and this export needs"
            f" {oldest} or newer."
        )
    return None


def answer(llm: Any, prompt: str, max_tokens: int) -> tuple[Generation, Timings]:
    """Return one greedy answer, timed as it streams.

    TensorRT-LLM hands over the tokens of each step as they come.
    """
    from tensorrt_llm import SamplingParams

    begun, times, counts, last = time.perf_counter(), [], [0], None
    for last in llm.generate_async(
        prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0), streaming=True
    ):
        times.append(time.perf_counter())
        counts.append(len(last.outputs[0].token_ids))
    output = last.outputs[0]
    gained = [after - before for before, after in pairwise(counts)]
    first, steps = gained[0], [count for count in gained[1:] if count]
    prefill_seconds, decode_seconds = times[0] - begun, times[-1] - times[0]
    generation = Generation(
        token_ids=list(output.token_ids),
        text=output.text,
        acceptance_lengths=steps,
        finish_reason="length" if output.finish_reason == "length" else "stop",
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
    )
    timings = Timings(
        prompt_tokens=len(last.prompt_token_ids),
        prefill_seconds=prefill_seconds,
        generated_tokens=len(output.token_ids) - first,
        decode_steps=len(steps),
        decode_seconds=decode_seconds,
    )
    return generation, timings


@click.command()
@click.argument("export", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompt", default=PROMPT)
@click.option("--max-tokens", default=256, show_default=True, help="longest answer")
@click.option("--no-draft", is_flag=True, help="without the drafter: the baseline")
def main(export: Path, prompt: str, max_tokens: int, no_draft: bool) -> None:
    """Answer PROMPT with the pair of EXPORT through TensorRT-LLM's Python API."""
    facts = json.loads((export / "export.json").read_text(encoding="utf-8"))
    reason = missing(facts["written_for"], facts["oldest"])
    if reason is not None:
        raise click.ClickException(reason)
    from tensorrt_llm import LLM

    arguments = facts["llm_args"]
    speculation = arguments["speculative_config"]
    if "draft_len_schedule" in speculation:  # JSON has no integers as keys
        rows = speculation["draft_len_schedule"].items()
        speculation["draft_len_schedule"] = {int(batch): length for batch, length in rows}
    if no_draft:
        arguments.pop("speculative_config")
    width = 1 if no_draft else 1 + arguments["speculative_config"]["max_draft_len"]
    with LLM(model=facts["model"], **arguments) as llm:
        chat = llm.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        answer(llm, chat, 8)  # the first answer also warms up
        generation, timings = answer(llm, chat, max_tokens)
    click.echo(generation.text)
    print_summary([generation], timings, width=width)


if __name__ == "__main__":
    main()
