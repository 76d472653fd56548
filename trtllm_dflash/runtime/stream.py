"""A running generation: tokens and text as they come, then the finished answers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager

from trtllm_dflash.errors import EngineError, as_dflash_error
from trtllm_dflash.runtime.outputs import Chunk, Generation, Timings
from trtllm_dflash.runtime.request import Request, Update
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.text.detokenizer import IncrementalDetokenizer
from trtllm_dflash.runtime.text.tokenizer import Tokenizer, decoder_of


class Stream:
    """Iterator over `Chunk(prompt_index, token_ids, text)`.

    The chunks of one prompt, joined, are its `Generation`. The engine works only while the next
    chunk is asked for, and on one stream at a time. Exhaust a stream or `close` it before the next
    call; leaving a `with` block closes it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        num_prompts: int,
        tokenizer: Tokenizer | None,
        turn: AbstractContextManager[None],
        *,
        width: int,
    ) -> None:
        """Prepare the stream; the first chunk enters `turn`, which holds the session to the end."""
        # The most tokens that a slot has in a decode step: the anchor and its drafts.
        self.width = width
        self._scheduler = scheduler
        self._decode = decoder_of(tokenizer)
        self._texts = [IncrementalDetokenizer(self._decode) for _ in range(num_prompts)]
        self._finished: dict[int, Generation] = {}
        self._chunks = self._run(turn)

    @property
    def timings(self) -> Timings:
        """Return where the time went so far, all prompts together."""
        return self._scheduler.timings

    @property
    def finished(self) -> dict[int, Generation]:
        """Return the answers that are complete so far, by prompt index."""
        return self._finished

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop early; unfinished sequences are dropped."""
        self._chunks.close()

    def generations(self) -> list[Generation]:
        """Run to the end and return all answers in the order of the prompts.

        Raises:
            EngineError: if the stream was closed before.
        """
        for _ in self._chunks:
            pass
        if len(self._finished) < len(self._texts):
            raise EngineError(
                f"this stream was closed with {len(self._finished)} of {len(self._texts)} answers"
                " complete. Take those from its `finished`, or ask again."
            )
        return [self._finished[index] for index in range(len(self._texts))]

    def _run(self, turn: AbstractContextManager[None]) -> Generator[Chunk, None, None]:
        with turn:
            for update in self._scheduler:
                yield self._chunk(update)

    def _chunk(self, update: Update) -> Chunk:
        request = update.request
        if update.error is not None:
            raise update.error
        try:
            text = self._texts[request.index].push(update.token_ids)
            if request.finish_reason is not None:
                text += self._texts[request.index].finish()
                self._finished[request.index] = self._generation(request)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as failure:  # a tokenizer's panic is no Exception
            what = f"the text of answer {request.index} could not be made"
            raise as_dflash_error(what, failure) from failure
        return Chunk(
            prompt_index=request.index,
            token_ids=update.token_ids,
            text=text,
            sample_index=request.sample_index,
            logprobs=request.last_logprobs(len(update.token_ids)),
        )

    def _generation(self, request: Request) -> Generation:
        assert request.finish_reason is not None
        return Generation(
            token_ids=request.output_ids,
            text=self._decode(request.output_ids),
            acceptance_lengths=request.acceptance_lengths,
            finish_reason=request.finish_reason,
            prefill_seconds=request.prefill_seconds,
            decode_seconds=request.decode_seconds,
            seed=request.seed,
            logprobs=None if request.logprobs is None else request.output_logprobs,
            sample_index=request.sample_index,
            prompt_token_ids=request.input_ids.tolist(),
        )
