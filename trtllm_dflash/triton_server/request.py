"""From a request's tensors to the options of `Engine.generate`; wrong ones raise UsageError."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.options.sampling import (
    SamplingOptions,
    SamplingParams,
    unused_without_temperature,
)
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.text.tool_calls import prepare_tools
from trtllm_dflash.triton_server.guidance_inputs import (
    ToolInputs,
    guidance_options,
    tool_inputs,
)
from trtllm_dflash.triton_server.io_table import ALL_INPUTS
from trtllm_dflash.triton_server.parameters import resolve_aliases, unknown_input, values_of
from trtllm_dflash.unique_keys import unique_keys

_AUTO_DRAFT_LEN = -1  # the input is a number
# Inputs that are options of `Engine.generate` under the same name.
_OPTION_NAMES = (
    *(row.name for row in SAMPLING_INPUTS),
    "max_tokens",
    "min_tokens",
    "seed",
    "n",
    "logprobs",
    "skip_special_tokens",
    "stop_words",
    "bad_words",
    "logit_bias",
    "draft",
    "draft_len",
    "drafts",
)


@dataclass(frozen=True)
class GenerationRequest:
    """A request in plain Python.

    text              the prompt; "" for a conversation.
    messages          the conversation, None for a prompt that is taken as it is.
    template_options  of the chat template.
    options           those of `Engine.generate`.
    tools             that the chat has; `with_tools` puts them into messages and options.
    queueing          its priority and its limit of time, which begins now.
    """

    text: str
    messages: Sequence[Any] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    echo: bool = False
    counts_input: bool = False
    counts_output: bool = False
    options: SamplingOptions = field(default_factory=SamplingOptions)
    tools: ToolInputs | None = None
    queueing: Queueing = field(default_factory=Queueing)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, NDArray[Any]],
        eos_token_ids: tuple[int, ...],
        parameters: Mapping[str, Any] | None = None,
    ) -> GenerationRequest:
        """Read the tensors of the table in `io_table.py`, and request parameters of those names.

        Triton has checked the types of tensors. It does not check which of them are there, how
        many values a tensor has, or what texts hold.

        Raises:
            UsageError: for a wrong tensor or an unknown parameter, with its name.
        """
        given = {name: _values(name, tensor) for name, tensor in tensors.items()}
        for name, value in values_of(parameters or {}).items():
            if name in given:
                raise UsageError(f"{name} is both an input and a parameter of this request.")
            given[name] = value
        values = resolve_aliases(given)
        messages = _conversation(values)
        options = _options(values, eos_token_ids)
        echo = not values.get("exclude_input_in_output", True)
        if echo and "messages" in values:
            raise UsageError("exclude_input_in_output: false is for text_input, not messages.")
        return cls(
            text=values.get("text_input", ""),
            messages=messages,
            template_options=_template_options(values),
            stream=values.get("stream", False),
            echo=echo,
            counts_input=values.get("return_num_input_tokens", False),
            counts_output=values.get("return_num_output_tokens", False),
            options=options,
            tools=_tools(values, messages),
            queueing=_queueing(values),
        )

    def with_tools(self, tokenizer: Tokenizer) -> GenerationRequest:
        """Return the request with its tools in the messages, template options and options.

        Raises:
            UsageError: for messages that are none.
            EngineError: if the tokenizer cannot be used.
        """
        if self.tools is None or self.messages is None:
            return self
        use = prepare_tools(
            self.messages,
            self.tools.tools,
            self.tools.choice,
            tokenizer,
            parallel_tool_calls=self.tools.parallel,
        )
        given: Any = {**self.options, **use.sampling_options}
        SamplingParams(**given)  # a forced call and a grammar do not go together
        options: SamplingOptions = given
        return replace(
            self,
            messages=use.messages,
            template_options={**self.template_options, **use.template_options},
            options=options,
            tools=None,
        )

    @property
    def num_samples(self) -> int:
        """Return the answers to this prompt."""
        return self.options.get("n", 1)


def _queueing(values: Mapping[str, Any]) -> Queueing:
    names = ("priority", "timeout_seconds")
    return Queueing(**{name: values[name] for name in names if name in values})


def _conversation(values: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return the messages that a request gives in one way or another, None for a plain prompt."""
    if ("text_input" in values) == ("messages" in values):
        if "messages" in values:
            raise UsageError("give either text_input or messages, not both.")
        raise UsageError("text_input is missing, and so is messages: there is no prompt.")
    for name in ("system", "chat_template_kwargs", "messages"):
        if name in values and values.get("chat") is False:
            raise UsageError(f"{name} is for chats, and this request says chat: false.")
    messages: list[Any] = []
    if "messages" in values:
        messages = _json("messages", values["messages"], list, "a list of messages")
    elif values.get("chat") or "system" in values or "chat_template_kwargs" in values:
        messages = [{"role": "user", "content": values["text_input"]}]
    else:
        return None
    if "system" not in values:
        return messages
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") == "system":
        raise UsageError("system is given, and messages begin with a system message. Drop one.")
    return [{"role": "system", "content": values["system"]}, *messages]


def _tools(values: Mapping[str, Any], messages: Sequence[Any] | None) -> ToolInputs | None:
    tools = None
    if "tools" in values:
        tools = _json("tools", values["tools"], list, "a list of tools")
        if messages is None:
            raise UsageError("tools is for chats: send messages, or chat: true.")
    return tool_inputs(values, tools)


def _template_options(values: Mapping[str, Any]) -> Mapping[str, Any]:
    name = "chat_template_kwargs"
    if name not in values:
        return {}
    options: Mapping[str, Any] = _json(name, values[name], dict, "an object")
    return options


def _json(name: str, text: str, wanted: type, expected: str) -> Any:
    """Parse an input that is JSON.

    Raises:
        UsageError: for a text that is none, or something else than `wanted`.
    """

    def refusal(key: str) -> UsageError:
        return UsageError(f"{name}: the key {shown(key)} stands in it twice.")

    try:
        value = json.loads(text, object_pairs_hook=unique_keys(refusal))
    except RecursionError:
        raise UsageError(f"{name}: the JSON is nested too deeply.") from None
    except ValueError as error:
        raise UsageError(f"{name} is not JSON ({error}), expected {expected}.") from None
    if not isinstance(value, wanted):
        raise UsageError(f"{name} is {text[:60]}, expected {expected} in JSON.")
    return value


def _options(values: Mapping[str, Any], eos_token_ids: tuple[int, ...]) -> SamplingOptions:
    if values.get("draft", True) is False and "draft_len" in values:
        raise UsageError("give either draft: false or draft_len, not both.")
    options = SamplingOptions()
    for name in _OPTION_NAMES:
        if name in values:
            options[name] = values[name]  # type: ignore[literal-required]
    options.update(guidance_options(values))  # type: ignore[typeddict-item]
    if options.get("bad_words") == [""]:  # TensorRT-LLM's clients send it for none
        del options["bad_words"]
    if options.get("draft_len") == _AUTO_DRAFT_LEN:
        options["draft_len"] = AUTO
    if values.get("return_log_probs"):
        options.setdefault("logprobs", 0)
    ignores_eos = values.get("ignore_eos") or values.get("end_id") == -1
    if "end_id" in values and values["end_id"] not in (-1, *eos_token_ids):
        own_tokens = ", ".join(map(str, eos_token_ids)) or "none"
        raise UsageError(
            f"end_id is {values['end_id']}, and this model's own stop tokens are {own_tokens}. Send"
            " stop_token_ids for more of them, and ignore_eos to leave its own out."
        )
    if ignores_eos or values.get("stop_token_ids"):
        own = () if ignores_eos else eos_token_ids
        options["stop_token_ids"] = (*own, *values.get("stop_token_ids", ()))
    given: Any = options
    SamplingParams(**given)  # before foreign code makes a prompt of the text
    _check_effect(options)
    if "seed" in options:
        options.setdefault("temperature", SamplingParams.temperature)
    return options


def _check_effect(options: SamplingOptions) -> None:
    """Raise UsageError for options that do nothing in greedy decoding, which is the default.

    A seed alone promises an answer that can be repeated, and a greedy one can.
    """
    unused = [name for name in unused_without_temperature(options) if name != "seed"]
    if unused:
        verb = "has" if len(unused) == 1 else "have"
        raise UsageError(
            f"{' and '.join(unused)} {verb} no effect without temperature: send it as well, 0 for"
            " the likeliest tokens."
        )


def _values(name: str, tensor: NDArray[Any]) -> Any:
    """Return the tensor's one value, or all of them if the table allows any number."""
    if name not in ALL_INPUTS:
        raise UsageError(unknown_input(name))
    values = [
        _text(name, value) if isinstance(value, bytes) else value
        for value in np.ravel(tensor).tolist()
    ]
    if ALL_INPUTS[name].size == -1:
        return values
    if len(values) != 1:
        raise UsageError(f"{name} has {len(values)} values, expected one.")
    return values[0]


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte {error.start} begins no character."
        ) from error
