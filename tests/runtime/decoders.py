"""Decoders of each family of tokenizers, and what they should give for any token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trtllm_dflash.runtime.text.byte_fallback import ByteRuns, byte_tokens_of

Decode = Callable[[Sequence[int]], str]

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "▁hello", "▁a", "b", "é", "日", "##ing", "un", ".", "\ufffd"]
SPECIALS = ["<s>", "</s>"]


@dataclass(frozen=True)
class Family:
    """A decoder with its vocabulary: `decode` as the runtime does it, `expected` by its rule."""

    num_ids: int
    decode: Decode
    expected: Decode


def _tokenizer(tokens: Sequence[str], decoder: Any) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def _by_the_library(tokens: Sequence[str], decoder: Any) -> Family:
    """Return a family whose decoder does right with any tokens."""
    tokenizer = _tokenizer(tokens, decoder)
    return Family(len(tokens) + len(SPECIALS), tokenizer.decode, tokenizer.decode)


def _byte_fallback(strip: bool) -> Family:
    tokens = [*BYTE_TOKENS, *WORDS]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer = _tokenizer(tokens, decoders.Sequence(steps))
    vocab = tokenizer.get_vocab()
    described = tokenizer.decoder.__getstate__().decode()
    runs = ByteRuns(byte_tokens_of(vocab, described), len(vocab))
    hidden = {vocab[text] for text in SPECIALS}

    def decode(token_ids: Sequence[int]) -> str:
        return tokenizer.decode(runs.mend(token_ids, hidden))

    def expected(token_ids: Sequence[int]) -> str:
        data = b""
        for token in token_ids:
            if token < 256:
                data += bytes([token])
            elif token < len(tokens):
                # What is no UTF-8 up to here stays so: the next token begins a character.
                data = data.decode(errors="replace").encode()
                data += tokens[token].replace("▁", " ").encode()
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if strip else text

    return Family(len(vocab), decode, expected)


def families() -> dict[str, Family]:
    """Return a family of each type by its name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {
        "llama": _byte_fallback(strip=True),
        "gemma": _byte_fallback(strip=False),
        "byte-level": _by_the_library(alphabet, decoders.ByteLevel()),
        "metaspace": _by_the_library(WORDS, decoders.Metaspace()),
        "wordpiece": _by_the_library(WORDS, decoders.WordPiece(cleanup=True)),
        "no decoder": _by_the_library(WORDS, None),
    }
