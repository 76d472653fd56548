"""Byte tokens such as <0xE6>, in which Llama 2 and Gemma write what their vocabularies lack.

Their decoders spoil a whole run of byte tokens if it is not UTF-8: each byte becomes U+FFFD. So
runs are mended before they are decoded. Only what is no character becomes U+FFFD then, as in
`bytes.decode(errors="replace")`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_tokens_of(vocabulary: Mapping[str, int], decoder: str) -> dict[int, int]:
    """Return the byte of each byte token by id; {} for decoders that do not know them.

    `vocabulary` has the ids of all tokens, added ones as well; `decoder` is the JSON of the
    tokenizer's decoder.
    """
    if "ByteFallback" not in decoder:
        return {}
    found = {}
    for text, token in vocabulary.items():
        match = _BYTE_TOKEN.fullmatch(text)
        if match:
            found[token] = int(match[1], 16)
    return found


class ByteRuns:
    """Mends runs of byte tokens."""

    def __init__(self, byte_tokens: Mapping[int, int], num_ids: int) -> None:
        """Take the bytes by token id, and the number of ids; larger ids show nothing."""
        self._byte_of = byte_tokens
        self._token_of = {byte: token for token, byte in byte_tokens.items()}
        self._num_ids = num_ids

    def mend(self, token_ids: Iterable[int], hidden: Container[int] = ()) -> list[int]:
        """Return the tokens with every run of byte tokens made valid UTF-8.

        Tokens that are `hidden` or no ids of this tokenizer do not end a run, and are left out.
        """
        if not self._byte_of:
            return list(token_ids)
        mended: list[int] = []
        run: list[int] = []
        for token in token_ids:
            if token in hidden or token >= self._num_ids:
                continue
            if token in self._byte_of:
                run.append(token)
                continue
            mended += self._valid(run)
            mended.append(token)
            run = []
        return mended + self._valid(run)

    def _valid(self, run: list[int]) -> list[int]:
        data = bytes(self._byte_of[token] for token in run)
        valid = data.decode(errors="replace").encode()
        if valid == data or not self._token_of.keys() >= set(valid):
            return run
        return [self._token_of[byte] for byte in valid]
