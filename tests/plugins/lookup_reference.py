"""DFlashLookup in plain Python, token by token, and random uses of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.plugins.library import Library, poisoned

PRIORS = (208, 256, 384, 640, 1024)
LONGEST = 6  # longer matches count as this long
JUNK = 7.0  # what stands in a history where nothing was written; a token of many texts
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """`batch` slots with histories of `rows` rows, and steps of `width` tokens."""

    batch: int
    rows: int
    width: int
    drafts: int
    vocab: int
    is_prompt: bool = False
    sources: int | None = None  # None: any, slot by slot
    seed: int = 0


def inputs(case: Case) -> Arrays:
    """Return the operator's inputs by name, with histories in which tokens come again and again."""
    random = np.random.default_rng(case.seed)
    batch, width = case.batch, case.width
    history = np.full((batch, 1, case.rows, 1), JUNK, np.float32)
    past = random.integers(0, case.rows - width, batch)
    past[0] = 0 if case.seed % 3 == 0 else case.rows - width - 1
    known = np.full(batch, width) if case.is_prompt else random.integers(1, width + 1, batch)
    accepted = [random.integers(0, width - count + 1) for count in known]
    tokens = random.integers(0, case.vocab, (batch, case.rows))
    for slot, length in enumerate(past):
        history[slot, 0, :length, 0] = tokens[slot, :length]
    ids = np.stack([tokens[slot, p : p + width] for slot, p in enumerate(past)])
    for slot, length in enumerate(past):
        history[slot, 0, length : length + width, 0] = ids[slot]
    means = random.integers(0, 8 * 256, (batch, len(PRIORS)))
    classes = random.integers(0, len(PRIORS) + 1, (batch, 1))
    sources = random.integers(1, 4, batch) if case.sources is None else case.sources
    return {
        "history": history,
        "input_ids": ids.astype(np.int64),
        "num_known": known.astype(np.int32),
        "past_len": past.astype(np.int32),
        "next_len": (past + known + accepted).astype(np.int32),
        "bonus": random.integers(0, case.vocab, (batch, 1)),
        "drafts": random.integers(0, case.vocab, (batch, case.drafts)),
        "tally": np.concatenate([classes, means - PRIORS], axis=1).astype(np.int32),
        "draft_sources": np.broadcast_to(sources, batch).astype(np.int32),
    }


CASES = [
    Case(1, 12, 1, 1, 2),
    Case(2, 70, 5, 4, 2, seed=1),
    Case(3, 64, 8, 7, 3, seed=2),
    Case(4, 333, 8, 7, 40, seed=3),
    Case(5, 700, 8, 15, 6, sources=3, seed=4),
    Case(3, 1500, 3, 7, 9, sources=2, seed=5),
    Case(2, 90, 8, 7, 3, sources=1, seed=6),
    Case(1, 640, 600, 7, 5, is_prompt=True, seed=7),
    Case(2, 130, 40, 3, 4, is_prompt=True, seed=8),
    Case(6, 40, 8, 7, 1, seed=9),
    Case(2, 5000, 8, 7, 12, seed=10),
]

LONG = Case(8, 40_960, 16, 15, 900, seed=11)


def run(library: Library, arrays: Arrays) -> Arrays:
    """Return what the library's function gives, by the operator's names."""
    outputs = ("next_drafts", "next_tally")
    shapes = {f"next_{name}": arrays[name] for name in ("drafts", "tally")}
    given = arrays | {name: poisoned(x.shape, x.dtype) for name, x in shapes.items()}
    return library.call("dflash_lookup", given, tuple(given), outputs, 0)


def lookup(arrays: Arrays) -> Arrays:
    """Return the operator's outputs by name."""
    drafts = arrays["drafts"].copy()
    tallies = arrays["tally"].copy()
    for slot, next_len in enumerate(arrays["next_len"]):
        past = int(arrays["past_len"][slot])
        known = int(arrays["num_known"][slot])
        ids = arrays["input_ids"][slot]
        text = [int(token) for token in arrays["history"][slot, 0, :next_len, 0]]
        text.append(int(arrays["bonus"][slot, 0]))
        length, found = what_followed(text, drafts.shape[1])
        tally = tallies[slot]
        if len(ids) > known:
            count(tally, int(next_len) - past - known)
        source = int(arrays["draft_sources"][slot])
        block_class = 1 + sum(length >= least for least in (3, 4, 6))
        means = tally[1:] + PRIORS
        pays = length >= 2 and means[block_class] >= means[0]
        tally[0] = 0
        if source == 2 or (source == 3 and pays):
            tally[0] = block_class if length >= 2 else 5
            drafts[slot] = found
    return {"next_drafts": drafts, "next_tally": tallies}


def what_followed(text: Sequence[int], count: int) -> tuple[int, list[int]]:
    """Return the longest match of the last tokens, and `count` tokens that go on as behind it."""
    best, at = 0, len(text) - 2
    for last in range(len(text) - 1):
        length = 0
        while length < min(LONGEST, last + 1) and text[last - length] == text[-1 - length]:
            length += 1
        if length and length >= best:
            best, at = length, last
    grown = list(text)
    for step in range(count):
        grown.append(grown[at + 1 + step])
    return best, grown[len(text) :]


def count(tally: np.ndarray, accepted: int) -> None:
    """Count a block in the mean of its class, in place; without a match it has none."""
    if tally[0] == 5:
        return
    place = 1 + tally[0]
    mean = int(tally[place]) + PRIORS[tally[0]]
    tally[place] = (7 * mean + 256 * accepted + 4) // 8 - PRIORS[tally[0]]
