"""The main loop of a kernel, and the way that a usual turn of it takes through its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from sass import Function, Instruction, Loop, is_product

Trace = tuple[Instruction, ...]
_Does = tuple[int, ...]  # products, and each kind of access


@dataclass(frozen=True)
class Accesses:
    """What a turn moves: by instructions `name` of 16 bytes a lane, `vectors` of them.

    None: as many as one pass over the code has.
    """

    name: str
    vectors: int | None = None

    def count(self, trace: Trace) -> int:
        """Return how many of them there are."""
        return sum(one.name == self.name and ".128" in one.opcode for one in trace)


@dataclass(frozen=True)
class _Way:
    """Instructions one after the other, and what they do."""

    trace: Trace
    does: _Does

    def then(self, other: _Way) -> _Way:
        """Return this way, and the other behind it."""
        does = (mine + theirs for mine, theirs in zip(self.does, other.does, strict=True))
        return _Way(self.trace + other.trace, tuple(does))


def main_loop(function: Function) -> Loop | None:
    """Return the smallest loop that has all products of the loop with the most, if any has one."""
    most = max((function.products(loop.members) for loop in function.loops), default=0)
    found = [loop for loop in function.loops if function.products(loop.members) == most]
    return min(found, key=lambda loop: len(loop.members)) if most else None


def usual_turn(function: Function, accesses: Sequence[Accesses]) -> Trace | None:
    """Return the instructions of one warp in a usual turn of the main loop, in their order.

    A usual turn does all products and all accesses. Among the ways that do so it is the shortest:
    masks of hidden keys and other rare parts are passed by. Loops within run as often as is asked,
    each turn along the longest way that moves most: addresses are computed, not skipped. None
    without products.

    Raises:
        ValueError: if no way through the loop moves as much.
    """
    loop = main_loop(function)
    if loop is None:
        return None
    ways = _Turn(function, loop, accesses).ways()
    for place, wanted in enumerate([None, *(one.vectors for one in accesses)]):
        possible = sorted({does[place] for does in ways})
        chosen = possible[-1] if wanted is None else wanted
        if chosen not in possible:
            name = accesses[place - 1].name
            raise ValueError(
                f"no turn of the main loop has {chosen} {name} of 16 bytes, only {possible}"
            )
        ways = {does: way for does, way in ways.items() if does[place] == chosen}
    (way,) = ways.values()
    return way.trace


class _Turn:
    """All ways through one turn of a loop."""

    def __init__(self, function: Function, loop: Loop, accesses: Sequence[Accesses]) -> None:
        self._function = function
        self._loop = loop
        self._accesses = accesses
        inner = [
            other
            for other in function.loops
            if other.members < loop.members and other.head != loop.head
        ]
        self._inner: dict[int, Loop] = {}  # the outermost loop within, by its blocks
        for other in sorted(inner, key=lambda other: len(other.members)):
            self._inner |= dict.fromkeys(other.members, other)

    def ways(self) -> dict[_Does, _Way]:
        """Return the shortest way for each number of products and of accesses."""
        head = self._loop.head
        ends: dict[_Does, _Way] = {}
        best: dict[int, dict[_Does, _Way]] = {head: {self._does(()): self._way(())}}
        for number in self._order():
            parts = self._parts(number)
            for after in self._exits(number):
                into = ends if after == head else best.setdefault(self._entry(after), {})
                for way, part in product(list(best[number].values()), parts):
                    self._keep_shorter(into, way.then(part))
        return ends

    def _way(self, trace: Trace) -> _Way:
        return _Way(trace, self._does(trace))

    def _does(self, trace: Trace) -> _Does:
        return sum(map(is_product, trace)), *(one.count(trace) for one in self._accesses)

    def _parts(self, number: int) -> list[_Way]:
        """Return what may run at a block: its instructions, or turns of the loop that it heads."""
        inner = self._inner.get(number)
        if inner is None:
            return [self._way(self._function.blocks[number].instructions)]
        turn = self._longest(inner)
        most = 1
        for one in self._accesses:
            if one.vectors and one.count(turn):
                most = max(most, one.vectors // one.count(turn))
        return [self._way(turn * turns) for turns in range(1, most + 1)]

    def _exits(self, number: int) -> set[int]:
        """Return the blocks behind a block, or behind the loop that it heads."""
        inner = self._inner.get(number)
        members = {number} if inner is None else inner.members
        found = {after for one in members for after in self._function.blocks[one].next_blocks}
        own = members - {self._loop.head}
        return {after for after in found if after in self._loop.members and after not in own}

    def _entry(self, number: int) -> int:
        return self._inner[number].head if number in self._inner else number

    def _order(self) -> list[int]:
        """Return the blocks of a turn, each behind all that lead to it; loops within as one."""
        done: list[int] = []
        seen = {self._loop.head}

        def visit(number: int) -> None:
            for after in map(self._entry, self._exits(number)):
                if after not in seen:
                    seen.add(after)
                    visit(after)
            done.append(number)

        visit(self._loop.head)
        return done[::-1]

    def _keep_shorter(self, into: dict[_Does, _Way], way: _Way) -> None:
        for one, vectors in zip(self._accesses, way.does[1:], strict=True):
            if one.vectors is not None and vectors > one.vectors:
                return
        old = into.get(way.does)
        if old is None or len(way.trace) < len(old.trace):
            into[way.does] = way

    def _longest(self, loop: Loop) -> Trace:
        """Return the way through one turn of a loop that moves most and then is the longest.

        Of several accesses the first decides. Loops within it run once.
        """
        found: dict[int, Trace] = {}

        def longest(number: int) -> Trace:
            if number not in found:
                found[number] = ()  # where the way comes round, it ends
                block = self._function.blocks[number]
                rests = [longest(after) for after in block.next_blocks if after in loop.members]
                best = max(
                    rests, key=lambda rest: (self._does(rest)[1:], len(rest)), default=()
                )
                found[number] = block.instructions + best
            return found[number]

        return longest(loop.head)
