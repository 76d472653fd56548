"""What a tokenizer process may use. Ordinary tokenizers stay far below each limit."""

from __future__ import annotations

from dataclasses import dataclass

# Largest file that makes a tokenizer; the largest published ones have 35 MB.
MAX_FILE_BYTES = 256_000_000
# Characters of a prompt, or of a rendered chat.
MAX_CHARACTERS = 32 << 20
# Bytes of a message; a token id takes up to 8, and a character up to 12.
MAX_MESSAGE_BYTES = 12 * MAX_CHARACTERS + (1 << 20)
_WALL_FACTOR = 10  # a machine may be so much busier than this process
# Address space of a process beyond what it begins with.
MEMORY_BYTES = 2 << 30


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
TRIAL = CallLimits(seconds=15)
VOCABULARY = CallLimits(seconds=15)  # writing down all tokens


def rendering_limits(num_characters: int) -> CallLimits:
    """Return the limits of rendering messages of so many characters."""
    return CallLimits(seconds=3 + num_characters / 200_000)


def encoding_limits(num_characters: int) -> CallLimits:
    """Return the limits of encoding a text: a twentieth of an ordinary tokenizer's speed."""
    return CallLimits(seconds=5 + num_characters / 50_000)


def decoding_limits(num_tokens: int) -> CallLimits:
    """Return the limits of decoding tokens."""
    return CallLimits(seconds=2 + num_tokens / 50_000)
