"""From the body of a request to what is asked of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.http_server.openai_errors import ApiError
from trtllm_dflash.http_server.served_model import ServedModel, Wanted
from trtllm_dflash.http_server.wire import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    MessageBody,
)
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.generation_defaults import completed
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams

OPENAI_TEMPERATURE = 1.0
COMPLETION_TOKENS = 16  # of /v1/completions without max_tokens, as OpenAI has it
_HARMONY = "gpt_oss"
# Fields that are options of SamplingParams under the same name.
_SAME_NAMES = (
    *("temperature", "top_p", "top_k", "min_p", "n", "min_tokens", "ignore_eos"),
    *("skip_special_tokens", "draft", "draft_len", "drafts"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "bad_words"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)


class Defaults:
    """What counts for requests that do not say.

    temperature         None: the model's own, or OpenAI's 1
    follows_checkpoint  whether the model's generation_config.json counts
    """

    def __init__(
        self,
        *,
        temperature: float | None,
        timeout_seconds: float | None,
        follows_checkpoint: bool = True,
    ) -> None:
        self.temperature = temperature
        self.timeout_seconds = timeout_seconds
        self.follows_checkpoint = follows_checkpoint

    def of(self, config: EngineConfig) -> dict[str, Any]:
        """Return the sampling options of a model's requests that give none."""
        own = config.generation_defaults if self.follows_checkpoint else {}
        options = {"temperature": OPENAI_TEMPERATURE, **own}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        return options


def chat_call(body: ChatBody, model: ServedModel, defaults: Defaults) -> Wanted:
    """Return what a chat request asks for.

    Raises:
        ApiError: for what this model cannot do.
        UsageError: for options that contradict each other.
    """
    if model.tokenizer is None or not model.tokenizer.has_chat_template:
        raise ApiError(
            400,
            "this model has no chat format; send its prompt to /v1/completions.",
            param="messages",
        )
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(
            400,
            "give either max_tokens or max_completion_tokens, not both: they are one.",
            param="max_tokens",
        )
    limit = body.max_completion_tokens or body.max_tokens or model.config.max_seq_len
    options = _options(body, model, defaults, limit)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    if body.logprobs:
        _check_logprobs(model)
        options["logprobs"] = body.top_logprobs or 0
    if body.response_format is not None:
        options["response_format"] = body.response_format
    _check(options)
    return Wanted(
        options=options,
        queueing=_queueing(body, defaults),
        messages=[_message(message, model) for message in body.messages],
        template_options=_template_options(body, model),
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )


def completion_call(body: CompletionBody, model: ServedModel, defaults: Defaults) -> Wanted:
    """Return what a completion request asks for; it raises what `chat_call` does."""
    options = _options(body, model, defaults, body.max_tokens or COMPLETION_TOKENS)
    if body.best_of not in (None, body.n or 1):
        raise ApiError(
            400, f"best_of is {body.best_of}: only n itself is supported.", param="best_of"
        )
    if body.logprobs is not None:
        _check_logprobs(model)
        options["logprobs"] = body.logprobs
    _check(options)
    prompts: Any = body.prompt
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)) or not prompts:
        prompts = [prompts]
    if model.tokenizer is None:
        raise ApiError(400, "this model has no tokenizer, and answers are text.")
    if body.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError(400, "echo is for prompts that are text.", param="echo")
    wanted = Wanted(options=options, queueing=_queueing(body, defaults), prompts=prompts)
    _check_count(wanted)
    return wanted


def _check_count(wanted: Wanted) -> None:
    most = 128
    if wanted.num_answers > most:
        raise ApiError(
            400,
            f"prompt and n ask for {wanted.num_answers} answers, and one request may have {most}.",
            param="n",
        )


def _options(
    body: GenerationBody, model: ServedModel, defaults: Defaults, limit: int
) -> SamplingOptions:
    values = {name: getattr(body, name) for name in _SAME_NAMES}
    given = {name: value for name, value in values.items() if value is not None}
    options = {"max_tokens": limit, **completed(defaults.of(model.config), given)}
    if body.logit_bias:
        options["logit_bias"] = _biases(body.logit_bias)
    if body.seed is not None:
        options["seed"] = body.seed % 2**64
    if body.stop is not None:
        options["stop_words"] = [body.stop] if isinstance(body.stop, str) else body.stop
    if body.stop_token_ids:
        own = () if body.ignore_eos else model.config.eos_token_ids
        options["stop_token_ids"] = (*own, *body.stop_token_ids)
    if body.dflash is not None and body.dflash.tokens and body.stream:
        options["token_texts"] = True
    found: SamplingOptions = options  # type: ignore[assignment]
    return found


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    """Return biases by token id; JSON has only texts as keys."""
    for token in given:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise ApiError(
                400,
                f"logit_bias has the key {shown(token)}, expected a token id.",
                param="logit_bias",
            )
    return {int(token): bias for token, bias in given.items()}


def _check(options: SamplingOptions) -> None:
    """Raise UsageError before foreign code makes a prompt."""
    given: Any = options
    SamplingParams(**given)


def _check_logprobs(model: ServedModel) -> None:
    if not model.config.has_logits:
        raise ApiError(
            400,
            "logprobs needs the engine's logits, and this one was built without them"
            " (--gather-generation-logits).",
            param="logprobs",
        )


def _queueing(body: GenerationBody, defaults: Defaults) -> Queueing:
    limits = [body.timeout_seconds, defaults.timeout_seconds]
    given = [limit for limit in limits if limit is not None]
    return Queueing(priority=body.priority or 0, timeout_seconds=min(given, default=None))


def _message(message: MessageBody, model: ServedModel) -> dict[str, Any]:
    """Return a message as chat templates read it: without fields that are null."""
    found = message.model_dump(exclude_none=True, exclude={"annotations"})
    if message.content is None and "content" in message.model_fields_set:
        found["content"] = None
    if found["role"] == "developer" and model.config.model_type != _HARMONY:
        found["role"] = "system"  # what OpenAI calls it today
    if found.get("tool_calls"):
        found["tool_calls"] = [_tool_call(call) for call in found["tool_calls"]]
    return found


def _tool_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call with its arguments as an object, which templates write as JSON."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _template_options(body: ChatBody, model: ServedModel) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if effort is None:
        return options
    if model.config.model_type == _HARMONY:
        if effort not in ("low", "medium", "high"):
            raise ApiError(
                400,
                f"reasoning_effort is '{effort}', and this model has low, medium and high.",
                param="reasoning_effort",
            )
        return {"reasoning_effort": effort, **options}
    return {"enable_thinking": effort != "none", **options}
