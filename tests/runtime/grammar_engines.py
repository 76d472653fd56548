"""Engines of the fake session that have text, and take grammars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import TOKEN_MASK, IoTensor
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

SPECIAL = (*tiny.SPECIAL, "<think>", "</think>")
THINK, END_THINK = 260, 261
VOCAB_SIZE = 256 + len(SPECIAL) + 1  # one id that no token has


def write_thinker(directory: Path) -> Path:
    """Write a tokenizer whose tokens are bytes, and the special ones of SPECIAL."""
    return tiny.write_byte_level(directory, special=SPECIAL)


def grammar_config(*, block_size: int = 6, vocab_size: int = VOCAB_SIZE) -> EngineConfig:
    """Return the config of an engine whose steps take masks."""
    config = fake_config(
        block_size=block_size,
        vocab_size=vocab_size,
        max_batch_size=4,
        max_seq_len=400,
        max_num_tokens=9,
    )
    return replace(
        config,
        eos_token_ids=(tiny.EOS,),
        io=(*config.io, IoTensor(TOKEN_MASK, "input", "", (), "")),
    )


def grammar_engine(
    tokenizer: Tokenizer, *, accuracy: float = 0.7, lookahead: int = 0, block_size: int = 6
) -> Engine:
    """Return an engine of the fake session with text."""
    config = grammar_config(block_size=block_size)
    return Engine(
        config, FakeSession(config, accuracy=accuracy, lookahead=lookahead), tokenizer
    )
