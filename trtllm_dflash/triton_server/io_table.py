"""THE table of the model's inputs and outputs.

config.pbtxt, the checks of requests and an export's README come from it. The names are those of
TensorRT-LLM's and vLLM's Triton models, which Triton's OpenAI frontend and genai-perf send. Where
TensorRT-LLM has another name, it is in the table too: as an alias, or with the values it may have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.options.sampling import (
    MAX_STOP_TOKEN_IDS,
    MAX_STOP_WORD_LENGTH,
    MAX_STOP_WORDS,
)


@dataclass(frozen=True)
class Field:
    """One input or output.

    size       its number of elements, -1 any.
    alias_of   the input that it is another name of.
    only       the values that it may have, since the model has no other; None: any.
    """

    name: str
    dtype: str  # Triton's, without TYPE_
    meaning: str
    size: int = 1
    alias_of: str | None = None
    only: tuple[object, ...] | None = None


_DTYPES = {"float32": "FP32", "int32": "INT32"}

INPUTS = (
    Field("text_input", "STRING", "the prompt; the only input that every request needs"),
    Field(
        "chat",
        "BOOL",
        "text_input is a user's message: put it into the model's chat format (default: false)",
    ),
    Field("max_tokens", "INT32", "new tokens at most (default: 128)"),
    Field("stream", "BOOL", "a response for each step, not one at the end (default: false)"),
    *(
        Field(row.name, _DTYPES[row.dtype], f"{row.help} (default: {row.default:g})")
        for row in SAMPLING_INPUTS
    ),
    Field("seed", "UINT64", "of the sampling; one seed, one answer (default: 0)"),
    Field(
        "stop_words",
        "STRING",
        f"texts that end the answer, and are not part of it; at most {MAX_STOP_WORDS}, of"
        f" {MAX_STOP_WORD_LENGTH} characters",
        size=-1,
    ),
    Field(
        "stop_token_ids",
        "INT32",
        f"tokens that end the answer, besides the model's own; at most {MAX_STOP_TOKEN_IDS} with"
        " them",
        size=-1,
    ),
    Field("ignore_eos", "BOOL", "do not stop at the model's own stop tokens (default: false)"),
    Field("draft", "BOOL", "false: plain decoding, the same tokens (default: true)"),
    Field("draft_len", "INT32", "drafts verified in a step (default: the engine's own)"),
    Field(
        "exclude_input_in_output",
        "BOOL",
        "false: the answer begins with text_input (default: true)",
    ),
    Field("return_num_input_tokens", "BOOL", "send num_input_tokens (default: false)"),
    Field("return_num_output_tokens", "BOOL", "send num_output_tokens (default: false)"),
    Field(
        "frequency_penalty",
        "FP32",
        "only 0, which OpenAI's clients send: there are no penalties",
        only=(0,),
    ),
    Field("presence_penalty", "FP32", "only 0, likewise", only=(0,)),
)
REQUIRED = "text_input"


def _alias(name: str, of: str) -> Field:
    field = next(field for field in INPUTS if field.name == of)
    return Field(name, field.dtype, f"`{of}`", field.size, alias_of=of)


def _only(name: str, dtype: str, *values: object, size: int = 1) -> Field:
    shown = " or ".join(json.dumps(value) for value in values)
    return Field(name, dtype, f"only {shown}", size, only=values)


TENSORRT_LLM_INPUTS = (
    _alias("max_new_tokens", "max_tokens"),
    _alias("streaming", "stream"),
    _alias("random_seed", "seed"),
    _alias("runtime_top_k", "top_k"),
    _alias("runtime_top_p", "top_p"),
    _alias("exclude_input_from_output", "exclude_input_in_output"),
    Field("end_id", "INT32", "only a stop token of the model's own; -1: `ignore_eos`"),
    Field("pad_id", "INT32", "without effect: nothing is padded"),
    _only("beam_width", "INT32", 1),
    _only("bad_words", "STRING", "", size=-1),
    _only("repetition_penalty", "FP32", 1.0),
    _only("length_penalty", "FP32", 0.0, 1.0),
    _only("early_stopping", "BOOL", False),
    _only("return_context_logits", "BOOL", False),
    _only("return_generation_logits", "BOOL", False),
    _only("return_perf_metrics", "BOOL", False),
)
ALL_INPUTS = {field.name: field for field in (*INPUTS, *TENSORRT_LLM_INPUTS)}

OUTPUTS = (
    Field(
        "text_output",
        "STRING",
        "the answer's text; in a stream, what is new of it, always whole characters",
    ),
    Field("num_input_tokens", "INT32", "the prompt's tokens, with every response"),
    Field(
        "num_output_tokens", "INT32", "new tokens of this response; those of a stream add up"
    ),
    Field("finish_reason", "STRING", "last response: stop or length"),
    Field(
        "acceptance_rate",
        "FP32",
        "last response: accepted ÷ verified drafts, 0 where there were none",
    ),
    Field(
        "total_accepted_draft_tokens", "INT32", "last response: drafts that the target accepted"
    ),
    Field("total_draft_tokens", "INT32", "last response: drafts that were verified"),
)
