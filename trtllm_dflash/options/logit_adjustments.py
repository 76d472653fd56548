"""What a request may ask of the logits before its tokens are chosen: kinds, sizes and limits."""

from __future__ import annotations

MAX_BIASES = 1024  # tokens that a request may give a bias
MAX_BIAS = 100.0  # of OpenAI's interface
MAX_BAD_WORDS = 64
MAX_BAD_WORD_TOKENS = 32
# Each word is forbidden as it stands, and with a space before it.
MAX_BAD_SEQUENCES = 2 * MAX_BAD_WORDS
NO_TOKEN = -1  # what fills a sequence from its left, and stands in a sequence of none

# Bits of the input `adjusts`: what a slot asks for in a step.
PENALTIES, BIASES, BAD_WORDS, MASK = 1, 2, 4, 8
WORD_BITS = 32  # tokens of an element of a token mask


def mask_words(vocab_size: int) -> int:
    """Return the int32 of a token mask's row."""
    return -(-vocab_size // WORD_BITS)
