"""What a request may ask of single tokens' logits: biases, and words that must not come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import (
    check_integer,
    check_real,
    checked_texts,
    shown,
    typed_text,
)
from trtllm_dflash.options.fields import cli_option
from trtllm_dflash.options.logit_adjustments import MAX_BAD_WORDS, MAX_BIAS, MAX_BIASES
from trtllm_dflash.options.row_sampling import RowSampling
from trtllm_dflash.unique_keys import unique_keys

MAX_BAD_WORD_LENGTH = 256  # characters
_MAX_BIAS_CHARACTERS = 64 * MAX_BIASES
_RANGE = f"a number from -{MAX_BIAS:g} to {MAX_BIAS:g}"
_EXPECTED = 'a mapping {token id: bias}, or such an object as JSON: {"15": -100}'


class LogitOptionNames(TypedDict, total=False):
    """The fields of `LogitOptions` for type checkers."""

    logit_bias: str | Mapping[Any, float] | None
    bad_words: str | Iterable[str]


@dataclass(frozen=True, kw_only=True)
class LogitOptions(RowSampling):
    """Biases and bad words. They count along drafts, as penalties do.

    logit_bias  added to the logits of tokens before all else: {token id: -100 to 100}, at most
                1024 tokens; or such an object as JSON. OpenAI's name and limits.
    bad_words   texts that the answer must not have as tokens: with the tokenizer's tokens for each,
                and for it behind a space. One string is one word. At most 64, of 32 tokens.
    """

    logit_bias: str | None = field(
        default=None,
        metadata=cli_option(
            'added to the logits of tokens by id, as {"15": -100}; from -100 to 100',
            metavar="JSON",
            parse=typed_text,
        ),
    )
    bad_words: tuple[str, ...] = field(
        default=(),
        metadata=cli_option(
            "tokens of this text must not come; may be given several times",
            metavar="TEXT",
            parse=typed_text,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_bias is not None:
            found = _checked_biases(self.logit_bias)
            text = json.dumps({str(token): value for token, value in found.items()})
            object.__setattr__(self, "logit_bias", text if found else None)
        words = checked_texts(
            "bad_words", self.bad_words, limit=MAX_BAD_WORDS, max_length=MAX_BAD_WORD_LENGTH
        )
        object.__setattr__(self, "bad_words", words)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Return the tokens that have a bias, and theirs."""
        if self.logit_bias is None:
            return ()
        return tuple(
            (int(token), value) for token, value in json.loads(self.logit_bias).items()
        )


def _checked_biases(given: Any) -> dict[int, float]:
    """Return biases by token id.

    Raises:
        UsageError: for what is no such mapping, is too large, or has wrong ids or biases.
    """
    if isinstance(given, str):
        given = _parsed(given)
    if not isinstance(given, Mapping):
        raise UsageError(f"logit_bias is {shown(given)}, expected {_EXPECTED}.")
    if len(given) > MAX_BIASES:
        raise UsageError(
            f"logit_bias has {len(given)} tokens, and a request may have at most {MAX_BIASES}."
        )
    found = {}
    for key, value in given.items():
        token = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 12 else key
        check_integer("a token of logit_bias", token, low=0)
        name = f"logit_bias of token {int(token)}"
        check_real(name, value, lambda bias: abs(bias) <= MAX_BIAS, _RANGE)
        if int(token) in found:
            raise UsageError(f"logit_bias has token {int(token)} twice.")
        found[int(token)] = float(value)
    return found


def _parsed(text: str) -> Any:
    if len(text) > _MAX_BIAS_CHARACTERS:
        raise UsageError(
            f"logit_bias has {len(text)} characters, and at most {_MAX_BIAS_CHARACTERS} are read."
        )

    def refusal(key: str) -> UsageError:
        return UsageError(f"logit_bias has the token {shown(key)} twice.")

    try:
        return json.loads(text, object_pairs_hook=unique_keys(refusal))
    except (ValueError, RecursionError) as error:
        problem = "too deep" if isinstance(error, RecursionError) else str(error)
        raise UsageError(
            f"logit_bias is not JSON ({problem}), expected {_EXPECTED}."
        ) from error
