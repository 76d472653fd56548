"""Other people's decoding on the same prompts: the reference package `dflash`, and Hugging Face's
own `generate`.

Both run on torch, in float32 on the CPU, one prompt at a time, with as many threads as the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.systems import Answer, InputIds, System, sequentially

LOOKUP_DRAFTS = 10  # candidates of a prompt lookup: what transformers' guide uses


def load_external_systems(
    names: Collection[str],
    target: Path,
    drafter: Path | None,
    *,
    block_size: int,
    stops: Sequence[int],
    num_threads: int,
) -> list[System]:
    """The systems of "reference" and "hf", as far as named, on one model in memory; `drafter` is for
    the reference.
    """
    torch, model = _torch_model(target, num_threads)
    systems = []
    if "reference" in names and drafter is not None:
        answer = _reference(torch, model, drafter, block_size, stops)
        systems.append(
            System(
                "reference",
                "reference",
                block_size - 1,
                sequentially(answer, block_size),
                batches=(1,),
            )
        )
    if "hf" in names:
        plain = _generate(torch, model, stops)
        lookup = _generate(torch, model, stops, prompt_lookup_num_tokens=LOOKUP_DRAFTS)
        systems += [
            System("hf", "huggingface", 0, sequentially(plain, 1), batches=(1,)),
            System(
                "hf lookup",
                "huggingface",
                LOOKUP_DRAFTS,
                sequentially(lookup, 1 + LOOKUP_DRAFTS),
                batches=(1,),
                fixed_draft_len=False,
            ),
        ]
    return systems


def _reference(
    torch: Any, model: Any, drafter: Path, block_size: int, stops: Sequence[int]
) -> Callable[[InputIds, int], Answer]:
    """The reference package's loop with blocks of `block_size`."""
    reference = _import("dflash.model", "dflash", "pip install --no-deps dflash==0.1.0")
    reference._cuda_time = perf_counter  # its clock waits for a GPU
    draft = reference.DFlashDraftModel.from_pretrained(drafter, dtype=torch.float32).eval()

    def answer(prompt: InputIds, max_tokens: int) -> Answer:
        ids = torch.tensor([list(prompt)])
        stats = reference.dflash_generate(
            draft, model, ids, max_tokens, list(stops), block_size=block_size, return_stats=True
        )
        tokens = stats.output_ids[0, len(prompt) :].tolist()
        seconds = stats.time_per_output_token * stats.num_output_tokens
        return Answer(
            tokens, list(stats.acceptance_lengths), float(stats.time_to_first_token), seconds
        )

    return answer


def _generate(
    torch: Any, model: Any, stops: Sequence[int], **options: Any
) -> Callable[[InputIds, int], Answer]:
    def answer(prompt: InputIds, max_tokens: int) -> Answer:
        ids, clock = torch.tensor([list(prompt)]), _StepClock()
        settings = {
            "do_sample": False,
            "max_new_tokens": max_tokens,
            "eos_token_id": list(stops) or None,
        }
        start = perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=clock,
                pad_token_id=0,
                **settings,
                **options,
            )
        tokens = out[0, len(prompt) :].tolist()
        first, *later = clock.counts
        # A lookup may bring several tokens with the prompt's own pass: they came in no generation
        # step, and count in none.
        lengths = _fitted(later, len(tokens) - first)
        return Answer(tokens, lengths, clock.times[0] - start, clock.times[-1] - clock.times[0])

    return answer


class _StepClock:
    """A streamer for `generate` that notes how many tokens came when; the first call, with the
    prompt, is not one.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the tokens of a step."""
        if self._prompt_seen:
            self.counts.append(int(value.numel()))
            self.times.append(perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is left to do."""


def _fitted(lengths: Sequence[int], total: int) -> list[int]:
    """Tokens by step, cut so that they are `total` in all: a last step may have gone beyond the
    limit.
    """
    fitted, left = [], total
    for length in lengths:
        fitted.append(min(int(length), left))
        left -= fitted[-1]
    while fitted and fitted[-1] == 0:
        fitted.pop()
    return fitted


def _torch_model(target: Path, num_threads: int) -> tuple[Any, Any]:
    torch = _import("torch", "torch", "pip install torch")
    transformers = _import("transformers", "transformers", "pip install transformers")
    torch.set_num_threads(num_threads)
    transformers.utils.logging.disable_progress_bar()  # ours is the one
    model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    model.generation_config = (
        transformers.GenerationConfig()
    )  # greedy, without the checkpoint's penalties
    return torch, model


def _import(module: str, package: str, install: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise EngineError(
            f"--against needs the Python package {package}, which cannot be imported ({error}):"
            f" {install}"
        ) from error
