"""A running generation: tokens and text as they come, then the finished answers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager

from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.outputs import Chunk, Generation, Timings
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.sequence import ActiveSequence, Update
from trtllm_dflash.runtime.text.tokenizer import IncrementalDetokenizer, Tokenizer, decoder_of


class Stream:
    """Iterator over `Chunk(index, token_ids, text)`; the chunks of one prompt, joined, are its
    `Generation`.

    The engine works only while the stream is asked for its next chunk, and on one stream at a time:
    exhaust it or `close` it (also by leaving a `with` block) before the next call.
    """

    def __init__(
        self,
        loop: Scheduler,
        num_prompts: int,
        tokenizer: Tokenizer | None,
        turn: AbstractContextManager[None],
        *,
        width: int,
    ) -> None:
        """`turn` is entered when the first chunk is asked for, and left at the end: it holds the
        session meanwhile.
        """
        # the most tokens that a slot can have in a generation step: the anchor and its drafts
        self.width = width
        self._loop = loop
        self._decode = decoder_of(tokenizer)
        self._texts = [IncrementalDetokenizer(self._decode) for _ in range(num_prompts)]
        self._finished: dict[int, Generation] = {}
        self._chunks = self._run(turn)

    @property
    def timings(self) -> Timings:
        """Where the time went so far, all prompts together."""
        return self._loop.timings

    @property
    def finished(self) -> dict[int, Generation]:
        """The answers that are complete so far, by prompt index."""
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
        """Run to the end and return all answers in the order of the prompts; EngineError if it was
        closed before.
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
            for update in self._loop:
                yield self._chunk(update)

    def _chunk(self, update: Update) -> Chunk:
        sequence = update.sequence
        index = sequence.request.index
        text = self._texts[index].push(update.token_ids)
        if sequence.finish_reason is not None:
            text += self._texts[index].finish()
            self._finished[index] = self._generation(sequence)
        return Chunk(index, update.token_ids, text)

    def _generation(self, sequence: ActiveSequence) -> Generation:
        assert sequence.finish_reason is not None
        return Generation(
            token_ids=sequence.token_ids,
            text=self._decode(sequence.token_ids),
            acceptance_lengths=sequence.acceptance_lengths,
            finish_reason=sequence.finish_reason,
            prefill_seconds=sequence.prefill_seconds,
            decode_seconds=sequence.decode_seconds,
        )
