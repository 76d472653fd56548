"""DFlashAdjust in NumPy, token by token, and random uses of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.plugins.library import Library, poisoned
from trtllm_dflash.trt_plugins.params import adjust_plan

PENALTIES, BIASES, BAD_WORDS, MASK = 1, 2, 4, 8
JUNK = 5.0  # what stands in a history where nothing was written; a token of many texts
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """`batch` slots with histories of `length` rows, and steps of `width` tokens.

    A step decides `rows` tokens, from a vocabulary of `vocab`.
    """

    batch: int
    rows: int
    vocab: int
    length: int
    width: int
    is_prompt: bool = False
    adjusts: int | None = None  # None: any, slot by slot
    biases: int = 5
    words: int = 6
    word_tokens: int = 4
    text_tokens: int = 7  # different tokens that texts are made of
    seed: int = 0


CASES = [
    Case(1, 1, 37, 12, 1),
    Case(1, 8, 300, 70, 8, adjusts=15, seed=1),
    Case(3, 8, 100, 64, 8, seed=2),
    Case(4, 3, 8195, 40, 3, seed=3),
    Case(2, 16, 20_000, 333, 16, adjusts=PENALTIES, seed=4),
    Case(5, 4, 33, 90, 4, adjusts=BAD_WORDS, text_tokens=2, seed=5),
    Case(3, 5, 64, 90, 5, adjusts=MASK, seed=6),
    Case(3, 5, 97, 90, 5, adjusts=BIASES, biases=9, seed=7),
    Case(1, 1, 200, 700, 640, is_prompt=True, adjusts=15, seed=8),
    Case(2, 4, 50, 60, 4, adjusts=0, seed=9),
    Case(6, 8, 31, 50, 8, words=12, word_tokens=3, text_tokens=3, seed=10),
    Case(2, 8, 500, 2600, 8, adjusts=PENALTIES | BIASES, text_tokens=400, seed=11),
]


def inputs(case: Case) -> Arrays:
    """Return the operator's inputs by name, with texts in which tokens come again and again."""
    random = np.random.default_rng(case.seed)
    batch, rows, vocab, width = case.batch, case.rows, case.vocab, case.width
    past = random.integers(0, case.length - width + 1, batch)
    past[0] = 0 if case.seed % 3 == 0 else case.length - width
    known = np.full(batch, width if case.is_prompt else width - rows + 1)
    pool = random.choice(vocab, min(vocab, case.text_tokens), replace=False)
    tokens = random.choice(pool, (batch, case.length))
    history = np.full((batch, 1, case.length, 1), JUNK, np.float32)
    for slot, length in enumerate(past):
        history[slot, 0, :length, 0] = tokens[slot, :length]
    ids = np.stack([tokens[slot, p : p + width] for slot, p in enumerate(past)])
    adjusts = random.integers(0, 16, batch) if case.adjusts is None else case.adjusts
    ends = past + known
    return {
        "logits": (random.standard_normal((batch, rows, vocab)) * 4).astype(np.float32),
        "history": history,
        "input_ids": ids.astype(np.int64),
        "num_known": known.astype(np.int32),
        "past_len": past.astype(np.int32),
        "adjusts": np.broadcast_to(adjusts, batch).astype(np.int32),
        "prompt_len": random.integers(0, ends + 1).astype(np.int32),
        "repetition_penalty": random.choice([0.7, 1.0, 1.3], batch).astype(np.float32),
        "frequency_penalty": random.choice([-0.4, 0.0, 0.7], batch).astype(np.float32),
        "presence_penalty": random.choice([-1.1, 0.0, 0.3], batch).astype(np.float32),
        **_biases(case, random, pool),
        "bad_words": _bad_words(case, random, pool),
        "token_mask": random.integers(
            -(2**31), 2**31, (batch, rows, -(-vocab // 32)), dtype=np.int64
        ).astype(np.int32),
    }


def _biases(case: Case, random: np.random.Generator, pool: np.ndarray) -> Arrays:
    """Return biases for tokens of texts and for others; unused entries repeat the first."""
    ids = np.zeros((case.batch, case.biases), np.int32)
    values = np.zeros((case.batch, case.biases), np.float32)
    for slot in range(case.batch):
        some = np.unique([*random.choice(pool, 2), *random.integers(0, case.vocab, 3)])
        used = int(random.integers(1, min(len(some), case.biases) + 1))
        numbers = random.uniform(-9, 9, used)
        ids[slot], values[slot] = some[0], numbers[0]
        ids[slot, :used], values[slot, :used] = some[:used], numbers
    return {"bias_ids": ids, "bias_values": values}


def _bad_words(case: Case, random: np.random.Generator, pool: np.ndarray) -> np.ndarray:
    found = np.full((case.batch, case.words, case.word_tokens), -1, np.int32)
    for row in found.reshape(-1, case.word_tokens):
        count = int(random.integers(0, case.word_tokens + 1))
        row[case.word_tokens - count :] = random.choice(pool, count)
    return found


def adjust(arrays: Arrays) -> Arrays:
    """Return the operator's outputs by name; NaN where a slot asks for nothing."""
    history = arrays["history"].copy()
    adjusted = np.full(arrays["logits"].shape, np.nan, np.float32)
    width = arrays["input_ids"].shape[1]
    for slot, past in enumerate(arrays["past_len"]):
        memory = history[slot, 0, :, 0]
        memory[past : past + width] = arrays["input_ids"][slot]
        bits = int(arrays["adjusts"][slot])
        known = int(arrays["num_known"][slot])
        for row in range(arrays["logits"].shape[1]) if bits else ():
            text = [int(token) for token in memory[: past + known + row]]
            adjusted[slot, row] = _row(arrays, slot, row, text, bits)
    return {"adjusted": adjusted, "history_out": history}


def _row(arrays: Arrays, slot: int, row: int, text: list[int], bits: int) -> np.ndarray:
    """Return the logits of a row that follows a text."""
    x = arrays["logits"][slot, row].copy()
    if bits & BIASES:
        pairs = zip(arrays["bias_ids"][slot], arrays["bias_values"][slot], strict=True)
        for token, value in dict(pairs).items():
            x[token] += value
    if bits & PENALTIES:
        names = ("repetition", "frequency", "presence")
        repetition, frequency, presence = (arrays[f"{n}_penalty"][slot] for n in names)
        answer = text[int(arrays["prompt_len"][slot]) :]
        for token in set(text):
            old = x[token]
            new = old / repetition if old > 0 else old * repetition
            count = np.float32(answer.count(token))
            new = new - frequency * count
            x[token] = new - presence * min(count, np.float32(1))
    if bits & BAD_WORDS:
        for row_of_word in arrays["bad_words"][slot]:
            word = [int(token) for token in row_of_word if token >= 0]
            if word and (len(word) == 1 or text[1 - len(word) :] == word[:-1]):
                x[word[-1]] = -np.inf
    if bits & MASK:
        words = arrays["token_mask"][slot, row].view(np.uint8)
        allowed = np.unpackbits(words, bitorder="little")[: len(x)]
        x[allowed == 0] = -np.inf
    return x


def run(library: Library, arrays: Arrays) -> Arrays:
    """Return what the library's function gives, by the operator's names; NaN where it is silent."""
    logits = arrays["logits"]
    given = arrays | {"adjusted": poisoned(logits.shape, logits.dtype)}
    batch, _, vocab = logits.shape
    space = adjust_plan(batch=batch, vocab=vocab).workspace_bytes
    found = library.call("dflash_adjust", given, tuple(given), ("adjusted", "history"), space)
    return {"adjusted": found["adjusted"], "history_out": found["history"]}
