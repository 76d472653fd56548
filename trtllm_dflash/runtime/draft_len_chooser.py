"""`draft_len="auto"`: as many drafts in a step as pay, by what is accepted and what steps cost.

A decode step of w tokens a sequence gives each of them its bonus and the drafts that are accepted:

    1 + sum over i = 1 … w-1 of p_1 · … · p_i

where p_i is how often draft i is accepted once those before it are. It is counted for each sequence
and each source of drafts. A sequence that has had few blocks takes over what all have together.
The step's time is measured for each batch size and width. The width with the most tokens a second
is chosen. One that has never run is tried, and now and then another than the best one, since times
change with the length of the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.draft_acceptance import Acceptance
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.sessions.base import Session

CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # widths, of those that a block has
_TIME_SHARE = 0.2  # of the newest measurement in a width's time
_TRY_EVERY = 50  # steps of one batch size between two trials of another width


@dataclass
class _Times:
    """Seconds of steps of one batch size, by width."""

    seconds: dict[int, float] = field(default_factory=dict)
    last_run: dict[int, int] = field(default_factory=dict)  # the step's number
    num_steps: int = 0


def candidate_widths(config: EngineConfig, session: Session) -> list[int]:
    """Return the widths to choose from, as the session runs them; the engine's own is the first."""
    own = session.step_width(1 + config.draft_len)
    widths = [session.step_width(width) for width in CANDIDATES if width <= config.block_size]
    return list(dict.fromkeys([own, *widths]))


class DraftLenChooser:
    """Chooses the widths of an engine's decode steps; it learns as long as the engine is loaded."""

    def __init__(self, block_size: int, widths: Sequence[int]) -> None:
        """Take the block and the widths that steps may have, the first of which begins."""
        self.overall = Acceptance(block_size)
        self._block_size = block_size
        self._widths = tuple(widths)
        self._times: dict[int, _Times] = defaultdict(_Times)

    def width_for(self, requests: Sequence[Request]) -> int:
        """Return the width of the next step of these sequences: the largest that one asks for."""
        batch = len(requests)
        asked = [r.widths.width_for(batch) for r in requests if not r.widths.is_auto]
        open_ones = [request for request in requests if request.widths.is_auto]
        if open_ones:
            asked.append(self._choose(batch, open_ones))
        return max(asked)

    def _choose(self, batch: int, requests: Sequence[Request]) -> int:
        """Return the width for those that leave it open."""
        times = self._times[batch]
        times.num_steps += 1
        untried = [width for width in self._widths if width not in times.last_run]
        if untried:
            width = untried[0]
        elif times.num_steps % _TRY_EVERY == 0:
            width = min(times.last_run, key=lambda width: times.last_run[width])
        else:
            width = self._best(times, requests)
        times.last_run[width] = times.num_steps
        return width

    def note_time(self, batch: int, width: int, seconds: float) -> None:
        """Take in what a step took."""
        known = self._times[batch].seconds
        if width not in known:
            known[width] = seconds
        else:
            known[width] += _TIME_SHARE * (seconds - known[width])

    def _best(self, times: _Times, requests: Sequence[Request]) -> int:
        """Return the width with the most tokens a second, of those whose time is known."""
        gains = [self._expected_tokens(request) for request in requests]
        known = {width: seconds for width, seconds in times.seconds.items() if seconds > 0}
        if not known:
            return self._widths[0]

        def tokens_a_second(width: int) -> float:
            return sum(tokens[width - 1] for tokens in gains) / known[width]

        return max(known, key=tokens_a_second)

    def _expected_tokens(self, request: Request) -> list[float]:
        if request.acceptance is None:
            request.acceptance = Acceptance(self._block_size, self.overall)
        return request.acceptance.expected_tokens(request.next_source)
