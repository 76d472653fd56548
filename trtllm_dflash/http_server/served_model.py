"""A model that is served: its engine, the threads that make prompts, its metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

from trtllm_dflash.errors import DFlashError, EngineError
from trtllm_dflash.http_server.answer_stream import AnswerStream
from trtllm_dflash.http_server.openai_errors import ApiError
from trtllm_dflash.http_server.scrape import ModelMetrics
from trtllm_dflash.options.queueing import MAX_WAITING, Queueing
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.intake import Intake
from trtllm_dflash.runtime.outputs import EngineStats
from trtllm_dflash.runtime.text.tool_calls import prepare_tools

Result = TypeVar("Result")
_MAX_NAMED_TOKENS = 1 << 18  # token texts that are kept for log probabilities


@dataclass(frozen=True)
class Wanted:
    """What a request asks of a model: prompts, or one conversation with template options."""

    options: SamplingOptions
    queueing: Queueing
    prompts: Sequence[str | list[int]] = ()
    messages: Sequence[Mapping[str, Any]] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True

    @property
    def num_answers(self) -> int:
        """Return the answers of all prompts together."""
        return max(1, len(self.prompts)) * self.options.get("n", 1)


class ServedModel:
    """One engine behind a name, for any number of HTTP requests."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        metrics: ModelMetrics,
        *,
        max_waiting: int = MAX_WAITING,
        prompt_tokens_per_step: int | None = None,
    ) -> None:
        """Start the engine's thread; `close` ends it."""
        self.name = name
        self.config = engine.config
        self.tokenizer = engine.tokenizer
        self.metrics = metrics
        self.created = int(time.time())
        self._engine = engine
        self._server = engine.serve(
            max_waiting=max_waiting, prompt_tokens_per_step=prompt_tokens_per_step
        )
        self._intake = Intake(max_waiting + engine.config.max_batch_size)
        self._named_tokens: dict[int, str] = {}
        self._closing = False
        self._open = WeakSet[AnswerStream]()
        metrics.watch(lambda: self.stats, lambda: self.is_ready)

    @property
    def is_ready(self) -> bool:
        """Tell whether requests are taken and answered."""
        return self._server.alive and not self._closing

    @property
    def stats(self) -> EngineStats:
        """Return how full the engine is now."""
        return self._server.stats

    @property
    def has_failed(self) -> bool:
        """Tell whether the engine thread had to end."""
        return self._server.failed is not None

    async def open(self, wanted: Wanted) -> AnswerStream:
        """Make prompts in a thread of their own, and put them into the engine's queue.

        Raises:
            DFlashError: for what cannot be a prompt, or a queue that is full.
            ApiError: for a prompt that is too long.
        """
        answers = AnswerStream(wanted.options.get("n", 1), self.metrics)
        self._open.add(answers)
        role = "chat" if wanted.messages is not None else "encode"
        try:
            await self._in_thread(role, lambda: self._submit(wanted, answers))
        except BaseException as error:
            answers.cancel()
            if isinstance(error, DFlashError):
                answers.fail(error)
            elif isinstance(error, ApiError):
                answers.fail(EngineError(error.message))
            raise
        return answers

    async def token_names(self, token_ids: Iterable[int]) -> Mapping[int, str]:
        """Return the text of each token by itself, for log probabilities."""
        named = self._named_tokens
        unknown = set(token_ids) - named.keys()
        if unknown:
            if len(named) + len(unknown) > _MAX_NAMED_TOKENS:
                named.clear()
                unknown = set(token_ids)
            named |= await asyncio.to_thread(self._name_tokens, unknown)
        return named

    def cancel_all(self) -> None:
        """End all answers with what they have."""
        for answers in list(self._open):
            answers.cancel()

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let the others end for a while, and free the engine."""
        self._closing = True
        self._intake.close()
        self._server.close(drain_seconds=drain_seconds)
        self._engine.close()

    def _name_tokens(self, token_ids: Iterable[int]) -> dict[int, str]:
        tokenizer = self.tokenizer
        assert tokenizer is not None
        return {
            token: tokenizer.decode([token], skip_special_tokens=False) for token in token_ids
        }

    def _submit(self, wanted: Wanted, answers: AnswerStream) -> None:
        options: dict[str, Any] = dict(wanted.options)
        if wanted.messages is not None:
            prompt, tool_options = self._encode_chat(wanted)
            prompts = [prompt]
            options |= tool_options
        else:
            prompts = [self._prompt_ids(prompt) for prompt in wanted.prompts]
        sampling = SamplingParams(**options)
        for index, prompt in enumerate(prompts):
            if sampling.seed is not None:  # the seeds that `Engine.generate` derives
                options["seed"] = sampling.seed_of(index, len(prompts))
            handle = self._server.submit(
                prompt, on_event=answers.sender(index), queueing=wanted.queueing, **options
            )
            answers.add(handle)

    def _encode_chat(self, wanted: Wanted) -> tuple[list[int], dict[str, Any]]:
        """Return a conversation's token ids, and the sampling options that its tools need."""
        tokenizer = self.tokenizer
        assert tokenizer is not None
        assert wanted.messages is not None
        use = prepare_tools(
            wanted.messages,
            wanted.tools,
            wanted.tool_choice,
            tokenizer,
            parallel_tool_calls=wanted.parallel_tool_calls,
        )
        options = {**wanted.template_options, **use.template_options}
        ids = tokenizer.encode_chat(use.messages, **options)
        self._check_length(len(ids), "messages")
        return ids, use.sampling_options

    def _prompt_ids(self, prompt: str | list[int]) -> list[int]:
        ids = self._encode(prompt) if isinstance(prompt, str) else prompt
        self._check_length(len(ids), "prompt")
        return ids

    def _encode(self, text: str) -> list[int]:
        tokenizer = self.tokenizer
        assert tokenizer is not None
        most = self.config.max_input_len * tokenizer.longest_token
        if len(text) > most:
            raise ApiError(
                400,
                f"prompt has {len(text)} characters, and one of this model has at most {most}."
                " Shorten it.",
                param="prompt",
                code="context_length_exceeded",
            )
        return tokenizer.encode(text)

    def _check_length(self, length: int, param: str) -> None:
        most = min(self.config.max_input_len, self.config.max_seq_len - 1)
        if length > most:
            raise ApiError(
                400,
                f"{param}: this makes {length} tokens, and a prompt of this model has at most"
                f" {most}. Shorten it.",
                param=param,
                code="context_length_exceeded",
            )

    async def _in_thread(self, role: str, work: Callable[[], Result]) -> Result:
        """Run foreign code in the intake's thread for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def job() -> None:
            result, failure = None, None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - a stranger's code; its client hears of it
                failure = error
            except BaseException as error:  # noqa: BLE001 - such as a tokenizer's panic
                failure = EngineError(f"a prompt could not be made: {type(error).__name__}")
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, failure)

        self._intake.put(role, job)
        return await future
