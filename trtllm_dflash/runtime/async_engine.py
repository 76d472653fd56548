"""Generation for coroutines, on an engine thread that answers many of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_dflash.options.queueing import MAX_WAITING, Queueing
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams
from trtllm_dflash.options.tools import ToolChoice
from trtllm_dflash.runtime.async_stream import AsyncStream, Room
from trtllm_dflash.runtime.conversations import encode_conversations
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.outputs import EngineStats, Generation
from trtllm_dflash.runtime.preprocess import check_stop_words
from trtllm_dflash.runtime.prompt_inputs import Prompt, as_prompts
from trtllm_dflash.runtime.text.chat_messages import Messages

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncEngine:
    """An engine for coroutines, whose requests run together:

        async with AsyncEngine.load(path) as engine:
            async for chunk in engine.stream("Once upon a time", max_tokens=64):
                print(chunk.text, end="")

    Cancelling the task that waits for an answer cancels the request, and so does dropping the
    stream. One event loop may use it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = MAX_WAITING,
        prompt_tokens_per_step: int | None = None,
        on_stats: Callable[[EngineStats], None] = lambda _: None,
    ) -> None:
        """Start an engine thread on `engine`, which is used by nobody else until `close`.

        The options are those of `Engine.serve`. Requests beyond `max_waiting` wait here, in the
        order in which they came.
        """
        self.engine = engine
        self._server = engine.serve(
            max_waiting=max_waiting,
            prompt_tokens_per_step=prompt_tokens_per_step,
            on_stats=on_stats,
        )
        self._room = Room(max_waiting + engine.config.max_batch_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        num_threads: int | None = None,
        draft_lens: Iterable[int] | None = None,
        prefix_cache_mib: int = 0,
        max_waiting: int = MAX_WAITING,
        prompt_tokens_per_step: int | None = None,
    ) -> AsyncEngine:
        """Open an engine directory as `Engine.load` does, and start its engine thread."""
        engine = Engine.load(
            path,
            num_threads=num_threads,
            draft_lens=draft_lens,
            prefix_cache_mib=prefix_cache_mib,
        )
        return cls(
            engine, max_waiting=max_waiting, prompt_tokens_per_step=prompt_tokens_per_step
        )

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | None = None,
        *,
        queueing: Queueing | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Answer all prompts and return what `Engine.generate` would.

        queueing   the priority of its requests, and their limit of time: beyond it there is a
                   DeadlineError, and all of them end.
        """
        stream = self.stream(prompts, sampling_params, queueing=queueing, **options)
        return await stream.generations()

    def stream(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | None = None,
        *,
        queueing: Queueing | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """Return an asynchronous iterator of the chunks of `Engine.stream`.

        `queueing` is that of `generate`. Options are checked at once. Prompts are sent when the
        first chunk is asked for; one that cannot be used raises UsageError then.
        """
        sampling = SamplingParams.of_call(sampling_params, options)
        check_stop_words(sampling, self.engine.tokenizer)
        given = as_prompts(prompts)
        # Not the caller's own values: a generator can be read once.
        checked = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
        submits = []
        for index, prompt in enumerate(given):
            own: dict[str, Any] = dict(checked)
            if sampling.seed is not None:
                own["seed"] = sampling.seed_of(index, len(given))
            submits.append(partial(self._server.submit, prompt, queueing=queueing, **own))
        return AsyncStream(submits, sampling.n, self._room, queueing or Queueing())

    async def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice | None = None,
        queueing: Queueing | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Answer conversations and return what `Engine.chat` would."""
        encode = partial(
            encode_conversations,
            self.engine.tokenizer,
            messages,
            chat_template_kwargs,
            tools,
            tool_choice,
        )
        chat = await asyncio.to_thread(encode)
        sampling = chat.sampling(sampling_params, options)
        return await self.generate(chat.prompts, sampling, queueing=queueing)

    async def close(self, *, drain_seconds: float = 0.0) -> None:
        """End the engine thread, after `drain_seconds` at most, and close the engine."""
        await asyncio.to_thread(self._server.close, drain_seconds=drain_seconds)
        await asyncio.to_thread(self.engine.close)
