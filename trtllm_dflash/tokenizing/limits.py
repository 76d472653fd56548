"""What a tokenizer process may use. Ordinary tokenizers stay far below each limit."""

from __future__ import annotations

from dataclasses import dataclass

# Largest sizes of the files that make a tokenizer; the largest published ones have 35 MB.
MAX_TOKENIZER_BYTES = 256 << 20
MAX_TEXT_FILE_BYTES = 32 << 20
# Characters of a prompt, or of a rendered chat.
MAX_CHARACTERS = 32 << 20
# Bytes of a message; a token id takes up to 8, and a character up to 12.
MAX_MESSAGE_BYTES = 12 * MAX_CHARACTERS + (1 << 20)
_WALL_FACTOR = 10  # a machine may be so much busier than this process
# Address space of a process beyond what it begins with.
MEMORY_BYTES = 3 << 30


@dataclass(frozen=True)
class CallLimits:
    """The limits of one call, or of reading the files.

    `seconds` are of processor time. Beyond them the kernel ends the process.
    """

    seconds: float

    @property
    def wall_seconds(self) -> float:
        """Return after how long a process is given up that uses no processor time."""
        return _WALL_FACTOR * self.seconds + 20


LOADING = CallLimits(seconds=30)
RENDERING = CallLimits(seconds=5)


def encoding_limits(num_characters: int) -> CallLimits:
    """Return the limits of encoding a text: a twentieth of an ordinary tokenizer's speed."""
    return CallLimits(seconds=5 + num_characters / 50_000)


def decoding_limits(num_tokens: int) -> CallLimits:
    """Return the limits of decoding tokens."""
    return CallLimits(seconds=2 + num_tokens / 50_000)
