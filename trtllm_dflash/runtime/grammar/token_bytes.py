"""What each token of a vocabulary writes, as bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from trtllm_dflash.errors import UsageError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_FUSE = '{"type":"Fuse"}'  # spellings are texts as they are
_SPACE = "\u2581"  # SentencePiece writes it for a space


def token_bytes(
    vocabulary: Mapping[str, int], added: Mapping[str, int], decoder: str, vocab_size: int
) -> list[bytes]:
    """Return the bytes of tokens 0 … vocab_size - 1; b"" for ids without a token.

    vocabulary  the ids of tokens by their spellings in the vocabulary.
    added       those of the tokens that are written as they are.
    decoder     the JSON of the tokenizer's decoder, which says how spellings are meant.

    Raises:
        UsageError: for a decoder that is neither byte-level BPE nor SentencePiece with bytes, and
            does more than join texts.
    """
    if "ByteLevel" in decoder:
        bytes_of = _byte_level
    elif "ByteFallback" in decoder and _SPACE in decoder:
        bytes_of = _sentence_piece
    elif decoder == _FUSE:
        bytes_of = _as_written
    else:
        raise UsageError(
            "a grammar needs to know the bytes of each token, and this model's tokenizer tells them"
            " neither by byte-level BPE nor by SentencePiece with byte fallback. Ask without a"
            " grammar."
        )
    found = [b""] * vocab_size
    for text, token in vocabulary.items():
        if 0 <= token < vocab_size:
            found[token] = text.encode() if text in added else bytes_of(text)
    for text, token in added.items():
        if 0 <= token < vocab_size:
            found[token] = text.encode()
    return found


def _byte_level(text: str) -> bytes:
    """Return the bytes of a spelling of byte-level BPE; b"" for what is none."""
    try:
        return bytes(_BYTE_OF[character] for character in text)
    except KeyError:
        return b""


def _as_written(text: str) -> bytes:
    return text.encode()


def _sentence_piece(text: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    if match:
        return bytes([int(match[1], 16)])
    return text.replace(_SPACE, " ").encode()


def _byte_level_table() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE (Radford et al., 2019, GPT-2).

    A byte that prints in Latin-1 stands for itself. The others, in their order, are the characters
    from U+0100 on.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in printing}
    others = [byte for byte in range(256) if byte not in printing]
    for place, byte in enumerate(others):
        table[chr(0x100 + place)] = byte
    return table


_BYTE_OF = _byte_level_table()
