"""Where drafts come from: the drafter, the text itself, or the better of both, block by block."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

DraftSource = Literal["dflash", "lookup"]
"""What filled a block."""
TokenSource = Literal["target", "dflash", "lookup"]
"""What a token comes from: the target itself, or a draft that it accepted."""
SOURCES: tuple[DraftSource, ...] = get_args(DraftSource)
# What a request may allow, by its number in the step (and in plugins/kernels/lookup_params.h).
SOURCE_BITS = {"dflash": 1, "lookup": 2, "both": 3}
ALLOWED = tuple(SOURCE_BITS)

DRAFTS_HELP = (
    "where drafts come from: the drafter, a lookup of the last tokens in the text before them, or"
    " block by block the better one"
)
NUM_CLASSES = 5  # of blocks: the drafter's, and four of matches by their length
NO_MATCH = NUM_CLASSES  # the class of a lookup's block where nothing matches: it has no mean
TALLY_SIZE = 1 + NUM_CLASSES
"""Numbers of a slot's tally: the class of its next block, then each class's running mean."""


def source_of_class(block_class: int) -> DraftSource:
    """Return what fills blocks of a class."""
    return "lookup" if block_class else "dflash"


class DraftCount(NamedTuple):
    """Drafts of one source in an answer."""

    verified: int
    accepted: int
