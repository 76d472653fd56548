"""How long the parts of a load take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class LoadTimes:
    """Seconds of each part, in the order in which they were begun."""

    def __init__(self) -> None:
        """Begin with none."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of a `with` block to a part."""
        begin = perf_counter()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += perf_counter() - begin

    def __str__(self) -> str:
        """Return one line of all parts, each in seconds."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
