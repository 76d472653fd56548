"""DFlashSelect in float64, and the arrays of its tests."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from tests.plugins.library import BFLOAT16, Library, LibraryError, poisoned

INPUTS = ("logits", "hidden", "anchor_row", "predecessor", "successor")
Arrays = dict[str, np.ndarray]


class SelectOptions(ctypes.Structure):
    """DFlashSelectOptions of dflash.h."""

    _fields_ = (("top_k", ctypes.c_int32),)


class SelectPlan(ctypes.Structure):
    """DFlashSelectPlan of dflash.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("chunks", "chunk_elements")),
        *((name, ctypes.c_int32) for name in ("shared_bytes", "reserved")),
        ("workspace_bytes", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Case:
    """`rows` rows a slot. Small whole numbers tie often, and every sum of them is exact."""

    batch: int
    rows: int
    vocab: int
    rank: int
    top_k: int
    whole: bool = True
    seed: int = 0


def inputs(case: Case) -> Arrays:
    """Return the operator's inputs by name."""
    random = np.random.default_rng(case.seed)
    shapes = {
        "logits": (case.batch, case.rows, case.vocab),
        "hidden": (case.batch, case.rows, case.rank),
        "anchor_row": (case.batch, case.rank),
        "predecessor": (case.vocab, case.rank),
        "successor": (case.vocab, case.rank),
    }
    if case.whole:
        made = {name: random.integers(-2, 3, shape) for name, shape in shapes.items()}
        made["logits"] = random.integers(-9, 10, shapes["logits"])
    else:
        made = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    return {
        name: array.astype(np.float32 if name == "logits" else BFLOAT16)
        for name, array in made.items()
    }


def select(arrays: Arrays, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places [B, N] and by how much each choice beats the second best, both float64."""
    logits, hidden, anchor, predecessor, successor = (
        arrays[name].astype(np.float64) for name in INPUTS
    )
    logits = np.where(np.isnan(logits), -np.inf, logits)
    batch, rows, _ = logits.shape
    places, leads = np.zeros((batch, rows), np.int64), np.zeros((batch, rows))
    for slot in range(batch):
        before = anchor[slot]
        for row in range(rows):
            order = np.argsort(-logits[slot, row], kind="stable")
            candidates = order[:top_k]
            with np.errstate(invalid="ignore"):
                pairs = successor[candidates] @ (before * hidden[slot, row])
                scores = logits[slot, row, candidates] + pairs
            scores = np.where(np.isnan(scores), -np.inf, scores)
            best = int(np.argmax(scores))
            others = np.delete(scores, best)
            behind = logits[slot, row, order[top_k : top_k + 1]]
            with np.errstate(invalid="ignore"):
                leads[slot, row] = min(
                    scores[best] - others.max(initial=-np.inf),
                    logits[slot, row, candidates[-1]] - behind.max(initial=-np.inf),
                )
            places[slot, row] = candidates[best]
            before = predecessor[candidates[best]]
    return places, leads


def run(library: Library, arrays: Arrays, top_k: int) -> np.ndarray:
    """Return the places that the library selects."""
    batch, rows, vocab = arrays["logits"].shape
    plan = SelectPlan()
    sizes = map(ctypes.c_int32, (batch, rows, vocab, top_k))
    status = library.c.dflash_select_plan(*sizes, ctypes.byref(plan))
    if status:
        raise LibraryError(status, library.c.dflash_last_error().decode())
    places = poisoned([batch, rows], np.int64)
    found = library.call(
        "dflash_select",
        {**arrays, "places": places},
        (*INPUTS, "places"),
        ("places",),
        plan.workspace_bytes,
        SelectOptions(top_k),
    )
    return found["places"]


def assert_selected(case: Case, arrays: Arrays, places: np.ndarray) -> None:
    """Check places against float64's, which are certain where sums are exact or leads are clear."""
    expected, leads = select(arrays, case.top_k)
    assert case.whole or leads.min() > 1e-5, "choose another seed"
    np.testing.assert_array_equal(places, expected)
