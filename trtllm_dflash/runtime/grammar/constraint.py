"""One request's grammar: what its next tokens may be, along the path of its drafts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.errors import DFlashError, EngineError, UsageError

Int32 = NDArray[np.int32]
WORD_BITS = 32


class ConstrainedStep(NamedTuple):
    """What a slot's next step may decide.

    allowed  [len(drafts) + 1, ceil(V / 32)] int32; bit t % 32 of word t // 32 in row r: token t may
             follow the first r drafts.
    drafts   those that the grammar allows, each behind those before it.
    is_cut   what follows them cannot be accepted, however wide the step is.
    """

    allowed: Int32
    drafts: list[int]
    is_cut: bool


class Constraint:
    """Follows an answer through its grammar.

    The answer ends, as "stop", where the grammar allows nothing more, or at a stop token where it
    may end. No stop token that is no text is allowed elsewhere, nor among the first `min_tokens`
    tokens, unless nothing else is. Without stop tokens the answer goes on as long as the grammar
    can.

    What is allowed depends on the committed tokens alone, so drafts cannot change an answer.
    """

    def __init__(
        self,
        matcher: Any,
        vocab_size: int,
        end_tokens: Iterable[int],
        *,
        min_tokens: int = 0,
        forces: bool = True,
    ) -> None:
        """Take a fresh matcher of llguidance, whose token `vocab_size` ends a grammar.

        end_tokens  stop tokens of this answer that are no text.
        min_tokens  the answer has so many before one of them ends it.
        forces      tokens that the grammar forces become drafts.
        """
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // WORD_BITS)
        self._min_tokens = min_tokens
        self._forces = forces
        self._num_tokens = 0
        self._end_bits = np.zeros(self._words, np.int32)
        for token in end_tokens:
            if 0 <= token < vocab_size:
                self._end_bits[token // WORD_BITS] |= _bit(token)
        self._failure: DFlashError | None = None
        self.has_ended = False

    def next_step(
        self, drafts: Sequence[int], max_drafts: int, max_forced: int = 0
    ) -> ConstrainedStep:
        """Return what the next step may decide, for a step of at most `max_drafts` drafts.

        drafts      what the drafter proposes, by place. A forced token replaces the one in its
                    place, and the first that is forbidden cuts the path.
        max_forced  the path may be so long as long as its tokens are forced.

        A grammar that is beyond its limits here fails at the next `commit`.
        """
        try:
            with _guarded():
                return self._next_step(drafts, max_drafts, max(max_drafts, max_forced))
        except (UsageError, EngineError) as error:
            self._failure = error
            return ConstrainedStep(self._anything()[None], [], is_cut=True)

    def commit(self, token_ids: Sequence[int]) -> int:
        """Take tokens that a step has decided, and return how many the answer has of them.

        Raises:
            UsageError: if the grammar is beyond its limits.
            EngineError: if llguidance fails.
        """
        if self._failure is not None:
            raise self._failure
        with _guarded():
            for place, token in enumerate(token_ids):
                self._num_tokens += 1
                if _has(self._end_bits, token) and not self._matcher.validate_tokens([token]):
                    self.has_ended = True  # the grammar itself knows nothing of such a token
                    return place + 1
                if not self._matcher.consume_token(token):
                    self._raise_error(f"token {token} was not allowed")
                if self._nothing_follows():
                    self.has_ended = True
                    return place + 1
        return len(token_ids)

    def _next_step(
        self, drafts: Sequence[int], max_drafts: int, max_forced: int
    ) -> ConstrainedStep:
        rows = [self._allowed(0)]
        path: list[int] = []
        forced: deque[int] = deque()
        is_cut = False
        while len(path) < max_forced and not is_cut:
            if self._forces and not forced:
                forced.extend(self._matcher.compute_ff_tokens())
            if forced and not _has(rows[-1], forced[0]):
                forced.clear()  # it is only a guess how the tokenizer writes a forced text
            if len(path) >= max_drafts and not forced:
                break
            token = forced.popleft() if forced else _at(drafts, len(path))
            if token is None:
                break
            if not _has(rows[-1], token) or _has(self._end_bits, token):
                is_cut = True
                break
            if not self._matcher.consume_token(token):
                self._raise_error("it refuses what it allowed")
            path.append(token)
            is_cut = self._nothing_follows()
            rows.append(self._anything() if is_cut else self._allowed(len(path)))
        if path and not self._matcher.rollback(len(path)):
            self._raise_error("it does not go back")
        return ConstrainedStep(np.stack(rows), path, is_cut)

    def _allowed(self, num_drafts: int) -> Int32:
        """Return the tokens that may follow, [words], behind so many drafts."""
        allowed, may_end = self._grammar_mask()
        if may_end:
            is_early = self._num_tokens + num_drafts < self._min_tokens
            if not is_early or not allowed.any():
                allowed |= self._end_bits
        if not allowed.any():
            raise UsageError("the grammar allows no token here, and the answer cannot go on.")
        return allowed

    def _nothing_follows(self) -> bool:
        """Tell whether the grammar has come to its end, and allows nothing more."""
        if self._matcher.is_stopped():
            self._raise_error(None)
            return True
        if not self._matcher.is_accepting():
            return False
        allowed, may_end = self._grammar_mask()
        return may_end and not allowed.any()

    def _grammar_mask(self) -> tuple[Int32, bool]:
        """Return the tokens that the grammar allows, [words], and whether it may end."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        self._raise_error(None)
        may_end = _has(mask, self._vocab_size)
        allowed = mask[: self._words].copy()
        if self._vocab_size % WORD_BITS:
            allowed[-1] &= ~_bit(self._vocab_size)
        return allowed, may_end

    def _anything(self) -> Int32:
        return np.full(self._words, -1, np.int32)

    def _raise_error(self, problem: str | None) -> None:
        """Raise what the matcher says is wrong; with a `problem` there is always something."""
        if self._matcher.is_error():
            raise UsageError(
                "the grammar cannot be followed any further:"
                f" {short_reason(self._matcher.get_error())}. Make it simpler."
            )
        if problem is not None:
            raise EngineError(f"llguidance does not follow this answer: {problem}.")


@contextmanager
def _guarded() -> Iterator[None]:
    """Make an EngineError of what foreign code raises, panics included."""
    try:
        yield
    except (UsageError, EngineError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic is no Exception
        raise EngineError(
            f"llguidance failed: {type(error).__name__}: {short_reason(str(error))}"
        ) from error


def short_reason(text: str) -> str:
    """Return a message of llguidance in one line of at most 300 characters, without a stop."""
    line = " ".join(text.split()) or "no reason given"
    return line[:300].rstrip(". ")


def _at(tokens: Sequence[int], place: int) -> int | None:
    return int(tokens[place]) if place < len(tokens) else None


def _bit(token: int) -> np.int32:
    return np.uint32(1 << (token % WORD_BITS)).astype(np.int32)


def _has(mask: Int32, token: int) -> bool:
    if not 0 <= token < len(mask) * WORD_BITS:
        return False
    return bool(mask[token // WORD_BITS] & _bit(token))
