"""The widths that decode steps of a GPU session have: its rows of each slot.

As with batch sizes (`batch_ladder`), steps are made ready for few widths, and a step of another
width is run as the next larger one. It verifies more drafts than were asked for. That changes no
token, and a sequence may end in fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterable


class WidthLadder:
    """The widths for which decode steps are made ready when a session opens."""

    def __init__(
        self, block_size: int, draft_len: int, draft_lens: Iterable[int] | None = None
    ) -> None:
        """Make those of an engine with this block and default number of drafts.

        `draft_lens` are the numbers of drafts that requests will ask for. None: they may ask for
        any. The widths are then the default one, the whole block, and powers of two: no step has
        twice the rows that were asked for.
        """
        if draft_lens is not None:
            widths = {1 + number for number in draft_lens}
        else:
            powers = {1 << exponent for exponent in range(block_size.bit_length())}
            widths = {power for power in powers if power < block_size}
            widths |= {1 + draft_len, block_size}
        self.rungs = tuple(sorted(widths))

    def rung(self, width: int) -> int:
        """Return the width as which a step of `width` rows is run.

        One wider than all that are ready is run as it is.
        """
        return next((rung for rung in self.rungs if rung >= width), width)
