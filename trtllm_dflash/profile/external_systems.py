"""External systems on the same prompts: the reference package `dflash`, and `generate`.

`generate` is that of Hugging Face transformers. Both run on torch, in float32 on the CPU, one
prompt at a time, with as many threads as the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.reference_models import reference_class
from trtllm_dflash.profile.result import HUGGING_FACE, REFERENCE
from trtllm_dflash.profile.systems import Answer, InputIds, System, sequentially

LOOKUP_DRAFTS = 10  # candidates of a prompt lookup, as in transformers' guide
_REFERENCE_PACKAGE = ("dflash.model", "dflash", "pip install --no-deps dflash==0.1.0")
_Respond = Callable[[InputIds, int], Answer]


def require_packages(names: Collection[str]) -> None:
    """Import the packages of "reference" and "hf", as far as named.

    Raises:
        EngineError: for one that cannot be imported, with what to install.
    """
    _import("torch", "torch", "pip install torch")
    _import("transformers", "transformers", "pip install transformers")
    if REFERENCE in names:
        _import(*_REFERENCE_PACKAGE)


def load_external_systems(
    names: Collection[str],
    target: Path,
    drafter: Path | None,
    *,
    block_size: int,
    stop_token_ids: Sequence[int],
    num_threads: int,
) -> list[System]:
    """Load the systems of "reference" and "hf", as far as named, on one target in memory.

    `drafter` is for the reference. Of a target with recurrent states `generate` runs alone:
    transformers does not take drafts back there, so it has no prompt lookup for it.

    Raises:
        EngineError: for a Python package that cannot be imported.
    """
    torch, model = _load_target(target, num_threads)
    systems = []

    def add(name: str, implementation: str, draft_len: int, respond: _Respond) -> None:
        run = sequentially(respond, 1 + draft_len)
        systems.append(System(name, implementation, draft_len, run, batches=(1,)))

    if REFERENCE in names and drafter is not None:
        name = reference_class(target, drafter)
        respond = _reference(torch, model, (name, drafter), block_size, stop_token_ids)
        add(REFERENCE, REFERENCE, block_size - 1, respond)
    if "hf" in names:
        add("hf", HUGGING_FACE, 0, _generate(torch, model, stop_token_ids))
    if "hf" in names and not model._is_stateful:
        lookup = _generate(torch, model, stop_token_ids, prompt_lookup_num_tokens=LOOKUP_DRAFTS)
        systems.append(
            System(
                "hf lookup",
                HUGGING_FACE,
                LOOKUP_DRAFTS,
                sequentially(lookup, 1 + LOOKUP_DRAFTS),
                batches=(1,),
                fixed_draft_len=False,
            )
        )
    return systems


def _reference(
    torch: Any,
    model: Any,
    drafter: tuple[str, Path],
    block_size: int,
    stop_token_ids: Sequence[int],
) -> _Respond:
    """Return the reference package's decoding loop with blocks of `block_size`.

    `drafter` is the name of its class and its folder.
    """
    reference = _import(*_REFERENCE_PACKAGE)
    reference._cuda_time = perf_counter  # its own clock synchronizes a GPU
    name, directory = drafter
    draft_model = (
        getattr(reference, name).from_pretrained(directory, dtype=torch.float32).eval()
    )

    def respond(prompt: InputIds, max_tokens: int) -> Answer:
        input_ids = torch.tensor([list(prompt)])
        stats = reference.dflash_generate(
            draft_model,
            model,
            input_ids,
            max_tokens,
            list(stop_token_ids),
            block_size=block_size,
            return_stats=True,
        )
        token_ids = stats.output_ids[0, len(prompt) :].tolist()
        first_token_seconds = float(stats.time_to_first_token)
        decode_seconds = stats.time_per_output_token * stats.num_output_tokens
        lengths = list(stats.acceptance_lengths)
        return Answer(token_ids, lengths, first_token_seconds, decode_seconds)

    return respond


def _generate(
    torch: Any, model: Any, stop_token_ids: Sequence[int], **options: Any
) -> _Respond:
    """Return Hugging Face's `generate`, greedily, with further `options`."""

    def respond(prompt: InputIds, max_tokens: int) -> Answer:
        input_ids = torch.tensor([list(prompt)])
        clock = _StepClock()
        start = perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=list(stop_token_ids) or None,
                pad_token_id=0,
                streamer=clock,
                **options,
            )
        token_ids = out[0, len(prompt) :].tolist()
        # A lookup may yield several tokens in the prompt's own pass. They came in no decode step,
        # and count in none.
        first_count, *later_counts = clock.counts
        lengths = _cut_to_total(later_counts, len(token_ids) - first_count)
        decode_seconds = clock.times[-1] - clock.times[0]
        return Answer(token_ids, lengths, clock.times[0] - start, decode_seconds)

    return respond


class _StepClock:
    """A streamer for `generate` that notes the number and time of tokens by step.

    The first call, with the prompt, is not a step.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Note the tokens of a step."""
        if self._prompt_seen:
            self.counts.append(int(value.numel()))
            self.times.append(perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing at the end of an answer."""


def _cut_to_total(lengths: Sequence[int], total: int) -> list[int]:
    """Cut tokens by step to `total` in all: the last step may have gone beyond the limit."""
    cut = []
    left = total
    for length in lengths:
        if left == 0:
            break
        cut.append(min(int(length), left))
        left -= cut[-1]
    return cut


def _load_target(target: Path, num_threads: int) -> tuple[Any, Any]:
    """Return torch and the target as a transformers model."""
    torch = _import("torch", "torch", "pip install torch")
    transformers = _import("transformers", "transformers", "pip install transformers")
    torch.set_num_threads(num_threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float32
    ).eval()
    # Greedy, without the checkpoint's penalties.
    model.generation_config = transformers.GenerationConfig()
    return torch, model


def _import(module: str, package: str, install: str) -> Any:
    """Import a module, or raise EngineError with what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise EngineError(
            f"--against needs the Python package {package}, which cannot be imported ({error}):"
            f" {install}"
        ) from error
