"""THE table of the model's inputs and outputs.

config.pbtxt, the checks of requests and an export's README come from it. The names are those of
TensorRT-LLM's and vLLM's Triton models, which Triton's OpenAI frontend and genai-perf send. Where
TensorRT-LLM has another name, it is in the table too: as an alias, or with the values it may have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from trtllm_dflash.options.draft_sources import ALLOWED, DRAFTS_HELP
from trtllm_dflash.options.logit_adjustments import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASES,
)
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.options.sampling import (
    MAX_LOGPROBS,
    MAX_N,
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
    Field("text_input", "STRING", "the prompt; every request needs it, or messages"),
    Field(
        "chat",
        "BOOL",
        "text_input is a user's message: put it into the model's chat format (default: false;"
        " true with system or chat_template_kwargs)",
    ),
    Field("system", "STRING", "the system message of the chat"),
    Field(
        "messages",
        "STRING",
        "instead of text_input: a conversation as JSON in a string, a list of objects with role"
        " and content",
    ),
    Field(
        "chat_template_kwargs",
        "STRING",
        "options of the chat template as JSON in a string, such as an object with"
        " enable_thinking; they replace the engine's own, key by key",
    ),
    Field("max_tokens", "INT32", "new tokens at most (default: 128)"),
    Field(
        "min_tokens",
        "INT32",
        "new tokens before stop tokens and stop words can end the answer (default: 0)",
    ),
    Field("stream", "BOOL", "a response for each step, not one at the end (default: false)"),
    *(
        Field(row.name, _DTYPES[row.dtype], f"{row.help} (default: {row.default:g})")
        for row in SAMPLING_INPUTS
    ),
    Field(
        "seed",
        "UINT64",
        "of the sampling; one seed, one answer (default: a fresh one each time)",
    ),
    Field(
        "n",
        "INT32",
        f"answers to the prompt, at most {MAX_N}; each output then has a value for each, and in a"
        " stream sample_index (default: 1)",
    ),
    Field(
        "logprobs",
        "INT32",
        "send logprobs: of the chosen tokens, and of this many of the most likely ones, at most"
        f" {MAX_LOGPROBS} (default: none)",
    ),
    Field(
        "skip_special_tokens",
        "BOOL",
        "false: special tokens are in the text (default: true)",
    ),
    Field(
        "stop_words",
        "STRING",
        f"texts that end the answer, and are not part of it; at most {MAX_STOP_WORDS}, of"
        f" {MAX_STOP_WORD_LENGTH} characters",
        size=-1,
    ),
    Field(
        "bad_words",
        "STRING",
        f"texts whose tokens must not come; at most {MAX_BAD_WORDS}, of {MAX_BAD_WORD_TOKENS}"
        " tokens",
        size=-1,
    ),
    Field(
        "logit_bias",
        "STRING",
        "JSON in a string: an object of token ids and what is added to their logits, from -100 to"
        f" 100; at most {MAX_BIASES}",
    ),
    Field(
        "stop_token_ids",
        "INT32",
        f"tokens that end the answer, besides the model's own; at most {MAX_STOP_TOKEN_IDS} with"
        " them",
        size=-1,
    ),
    Field(
        "response_format",
        "STRING",
        "what the answer is, as JSON: an object whose type is text, json_object, or json_schema"
        " with json_schema, an object with name and schema",
    ),
    Field("guided_json", "STRING", "instead: a JSON schema that the answer follows"),
    Field("guided_regex", "STRING", "instead: a regular expression that the answer matches"),
    Field("guided_choice", "STRING", "instead: texts, of which the answer is one", size=-1),
    Field("guided_grammar", "STRING", "instead: a grammar in the notation of Lark"),
    Field(
        "tools",
        "STRING",
        "functions that the model may call, as JSON: OpenAI's list; for chats. Calls are no part of"
        " the text then, but of tool_calls",
    ),
    Field(
        "tool_choice",
        "STRING",
        "auto, none, required, or JSON that names a tool as OpenAI does (default: auto)",
    ),
    Field(
        "parallel_tool_calls",
        "BOOL",
        "false: an answer that must call tools calls one (default: true)",
    ),
    Field(
        "priority",
        "INT32",
        "the smaller number gets a slot first; equals go in their order (default: 0)",
    ),
    Field(
        "timeout_seconds",
        "FP32",
        "the answer is whole after so many seconds, or an error (default: no limit)",
    ),
    Field("ignore_eos", "BOOL", "do not stop at the model's own stop tokens (default: false)"),
    Field("draft", "BOOL", "false: plain decoding, the same tokens (default: true)"),
    Field(
        "draft_len",
        "INT32",
        "drafts verified in a step; a GPU may take a larger number that is ready. -1: as many as"
        " pay (default: the engine's own, -1 unless a number was given to `build`)",
    ),
    Field("drafts", "STRING", f"{DRAFTS_HELP}: {', '.join(ALLOWED)} (default: both)"),
    Field(
        "exclude_input_in_output",
        "BOOL",
        "false: the answer begins with text_input (default: true)",
    ),
    Field("return_num_input_tokens", "BOOL", "send num_input_tokens (default: false)"),
    Field("return_num_output_tokens", "BOOL", "send num_output_tokens (default: false)"),
)


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
    _alias("min_length", "min_tokens"),
    Field("return_log_probs", "BOOL", "true: `logprobs` 0, those of the chosen tokens alone"),
    Field("end_id", "INT32", "only a stop token of the model's own; -1: `ignore_eos`"),
    Field(
        "guided_decoding_guide_type",
        "STRING",
        "json, json_schema or regex: what guided_decoding_guide is",
    ),
    Field(
        "guided_decoding_guide",
        "STRING",
        "`response_format` json_object, `guided_json` or `guided_regex`, by its type",
    ),
    Field("pad_id", "INT32", "without effect: nothing is padded"),
    _only("beam_width", "INT32", 1),
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
        size=-1,
    ),
    Field(
        "reasoning",
        "STRING",
        "what the model wrote outside its final answer, where its format tells them apart; in a"
        " stream, what is new of it",
        size=-1,
    ),
    Field(
        "tool_calls",
        "STRING",
        "with tools: a JSON list with an object for each call that is whole by now, with name and"
        " arguments, which is JSON in a text",
        size=-1,
    ),
    Field("num_input_tokens", "INT32", "the prompt's tokens, with every response"),
    Field(
        "num_output_tokens",
        "INT32",
        "new tokens of this response; those of a stream add up",
        size=-1,
    ),
    Field(
        "logprobs",
        "STRING",
        "if asked for: a JSON list with an object for each token of this response: token_id,"
        " logprob, and top, a list of pairs",
        size=-1,
    ),
    Field("sample_index", "INT32", "with n above 1: which of the answers this is", size=-1),
    Field("seed", "UINT64", "last response of a sampled answer: the seed used", size=-1),
    Field("finish_reason", "STRING", "last response: stop or length", size=-1),
    Field(
        "acceptance_rate",
        "FP32",
        "last response: accepted ÷ verified drafts, 0 where there were none",
        size=-1,
    ),
    Field(
        "total_accepted_draft_tokens",
        "INT32",
        "last response: drafts that the target accepted",
        size=-1,
    ),
    Field("total_draft_tokens", "INT32", "last response: drafts that were verified", size=-1),
)
