"""What a pair's twin gives; each answer is computed once a process, since many tests ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.stand_in.traces import Tokens, Trace, trace
from trtllm_dflash.runtime.engine import Engine

Prompts = tuple[tuple[int, ...], ...]


@cache
def twin_of(directory: Path) -> Engine:
    """Load the twin in a directory."""
    return Engine.load(directory, num_threads=1)


def expected_tokens(directory: Path, prompts: Sequence[list[int]], **options: Any) -> Tokens:
    """Return the twin's answers to prompts; `options` are those of `Engine.generate`."""
    return _tokens(directory, _frozen(prompts), tuple(options.items()))


def expected_trace(
    directory: Path, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Trace:
    """Return `traces.trace` of the twin."""
    return _trace(directory, _frozen(prompts), _frozen(answers))


def _frozen(lists: Sequence[list[int]]) -> Prompts:
    return tuple(map(tuple, lists))


def _lists(frozen: Prompts) -> Tokens:
    return [list(one) for one in frozen]


@cache
def _tokens(directory: Path, prompts: Prompts, options: tuple[tuple[str, Any], ...]) -> Tokens:
    answers = twin_of(directory).generate(_lists(prompts), stop_token_ids=[], **dict(options))
    return [answer.token_ids for answer in answers]


@cache
def _trace(directory: Path, prompts: Prompts, answers: Prompts) -> Trace:
    session: Any = twin_of(directory)._session
    next_ids = lambda: session._slots["next_ids"]  # noqa: E731
    return trace(session, next_ids, _lists(prompts), _lists(answers))
