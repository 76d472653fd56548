"""A running generation: tokens and text as they come, then the finished answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager

from trtllm_dflash.errors import EngineError, as_dflash_error
from trtllm_dflash.runtime.outputs import Chunk, Generation, Timings
from trtllm_dflash.runtime.request import Request, Update
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.text.answer_text import AnswerText

Turn = AbstractContextManager[None]


class Stream:
    """Iterator over `Chunk(prompt_index, token_ids, text)`.

    The chunks of one answer, joined, are its `Generation`. The engine works only while the next
    chunk is asked for, and on one stream at a time. Exhaust a stream, `close` it or drop it before
    the next call; leaving a `with` block closes it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        requests: Sequence[Request],
        texts: Sequence[AnswerText],
        turn: Turn,
        *,
        width: int,
    ) -> None:
        """Prepare the stream; the first chunk enters `turn`, which holds the session to the end."""
        # The most tokens that a slot has in a decode step: the anchor and its drafts.
        self.width = width
        self._answers = _Answers(scheduler, requests, texts)
        # The generator must not refer to this stream. Dropping the last reference to the stream
        # then closes it at once, and the engine is free.
        self._chunks = _run(self._answers, turn)

    @property
    def timings(self) -> Timings:
        """Return where the time went so far, all prompts together."""
        return self._answers.timings

    @property
    def finished(self) -> dict[int, Generation]:
        """Return the answers that are complete so far.

        They are numbered as `generations` lists them: by prompt index, if `n` is 1.
        """
        return self._answers.finished

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop early; unfinished sequences are dropped.

        Raises:
            EngineError: if another thread is inside a step of it.
        """
        try:
            self._chunks.close()
        except ValueError as error:  # "generator already executing"
            raise EngineError(
                "this stream is generating in another thread. Close it there, or wait for it."
            ) from error
        self._answers.scheduler = None

    def generations(self) -> list[Generation]:
        """Run to the end and return all answers, prompt by prompt.

        Raises:
            EngineError: if the stream was closed before.
        """
        for _ in self._chunks:
            pass
        total = len(self._answers.texts)
        if len(self.finished) < total:
            raise EngineError(
                f"this stream was closed with {len(self.finished)} of {total} answers"
                " complete. Take those from its `finished`, or ask again."
            )
        return [self.finished[number] for number in range(total)]


class _Answers:
    """The answers of a stream on their way."""

    def __init__(
        self, scheduler: Scheduler, requests: Sequence[Request], texts: Sequence[AnswerText]
    ) -> None:
        # None once the stream has ended: it must not keep the session's memory.
        self.scheduler: Scheduler | None = scheduler
        self.timings = scheduler.timings
        self.texts = list(texts)
        self.finished: dict[int, Generation] = {}
        self._number_of = {request: number for number, request in enumerate(requests)}

    def chunk(self, update: Update) -> Chunk:
        """Return what a step has added to an answer."""
        request = update.request
        if update.error is not None:
            raise update.error
        number = self._number_of[request]
        try:
            return self._chunk(update, number)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as failure:  # a tokenizer's panic is no Exception
            what = f"the text of answer {number} could not be made"
            raise as_dflash_error(what, failure) from failure

    def _chunk(self, update: Update, number: int) -> Chunk:
        request, token_ids = update.request, update.token_ids
        text = self.texts[number]
        used, delta = text.push(token_ids)
        if text.stopped:
            assert self.scheduler is not None
            self.scheduler.end_at_stop_word(request, len(token_ids) - len(used))
        if request.finish_reason is not None:
            delta = delta.joined(text.finish())
            self.finished[number] = generation(request, text)
        return Chunk(
            prompt_index=request.index,
            token_ids=used,
            text=delta.text,
            reasoning=delta.reasoning,
            sample_index=request.sample_index,
            logprobs=request.last_logprobs(len(used)),
            tool_calls=delta.tool_calls,
            sources=list(update.sources[: len(used)]),
            token_texts=text.token_texts,
        )


def _run(answers: _Answers, turn: Turn) -> Generator[Chunk, None, None]:
    with turn:
        assert answers.scheduler is not None
        for update in answers.scheduler:
            yield answers.chunk(update)
    answers.scheduler = None


def generation(request: Request, text: AnswerText) -> Generation:
    """Return the answer of a request that has ended."""
    assert request.finish_reason is not None
    return Generation(
        token_ids=request.output_ids,
        text=text.text,
        acceptance_lengths=request.acceptance_lengths,
        finish_reason=request.finish_reason,
        prefill_seconds=request.prefill_seconds,
        decode_seconds=request.decode_seconds,
        reasoning=text.reasoning,
        seed=request.seed,
        logprobs=None if request.logprobs is None else request.output_logprobs,
        sample_index=request.sample_index,
        prompt_token_ids=request.input_ids.tolist(),
        cached_tokens=request.num_cached,
        drafts_by_source=request.drafts_by_source,
        tool_calls=text.tool_calls,
    )
