"""From words that must not come to the sequences of tokens that spell them."""

from __future__ import annotations

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.logit_adjustments import MAX_BAD_WORD_TOKENS
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

BadWords = tuple[tuple[int, ...], ...]


def bad_word_tokens(sampling: SamplingParams, tokenizer: Tokenizer | None) -> BadWords:
    """Return the sequences of tokens that a call's bad words forbid.

    Each word counts as it stands, and with a space before it, as in vLLM; white space only as it
    stands. A sequence that ends with another one is left out: the shorter one forbids it.

    Raises:
        UsageError: for a word of too many tokens.
    """
    if tokenizer is None:
        return ()  # refused elsewhere, if there are words
    found: dict[tuple[int, ...], None] = {}  # in order
    for word in sampling.bad_words:
        texts = (word, f" {word.lstrip()}") if word.strip() else (word,)
        spellings = [_spelled(text, word, tokenizer) for text in texts]
        for tokens in spellings:
            others = [other for other in spellings if other != tokens]
            if tokens and not any(other and tokens[-len(other) :] == other for other in others):
                found[tokens] = None
    return tuple(found)


def _spelled(text: str, word: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    tokens = tuple(tokenizer.encode(text, special_tokens=False))
    if len(tokens) > MAX_BAD_WORD_TOKENS:
        raise UsageError(
            f"bad_words holds {word[:40]!r}, which has {len(tokens)} tokens, and one may have at"
            f" most {MAX_BAD_WORD_TOKENS}."
        )
    return tokens
