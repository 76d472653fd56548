"""Machine code as nvdisasm prints it: instructions, loops, and the path of a loop's turn."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_FUNCTION = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\* 0x[0-9a-f]{16} \*/")
_SECOND_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_GUARD = re.compile(r"^@!?U?P\w+\s+")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_CONDITION = re.compile(r"^\S+\s+!?U?P\d")
_WHOLE = "HMMA", "IMMA", "QMMA"


@dataclass(frozen=True)
class Instruction:
    """One instruction, and what the compiler tells the scheduler with it.

    `stall` cycles pass before the warp's next. Its result and its reads release scoreboards, 0 to 5
    (7: none); it waits for those in `wait_mask`.
    """

    text: str
    stall: int
    result_board: int
    read_board: int
    wait_mask: int

    @cached_property
    def opcode(self) -> str:
        """Return the whole opcode, as `LDGSTS.E.BYPASS.128`."""
        return _GUARD.sub("", self.text).split()[0]

    @cached_property
    def name(self) -> str:
        """Return the opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> str | None:
        """Return the label of a branch; ptxas also leaves a loop by a call that never returns."""
        found = _TARGET.search(self.text)
        return found[1] if found and self.name in ("BRA", "CALL") else None

    @property
    def is_last(self) -> bool:
        """Return whether a block ends here."""
        return self.target is not None or self.name == "EXIT"

    @property
    def is_conditional(self) -> bool:
        """Return whether the next instruction may follow although this one leaves."""
        return bool(_GUARD.match(self.text) or _CONDITION.match(_GUARD.sub("", self.text)))


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, and the blocks that may follow, by number."""

    instructions: tuple[Instruction, ...]
    next_blocks: tuple[int, ...]


def disassemble(nvdisasm: Path, cubin: Path) -> dict[str, Function]:
    """Return each function of a cubin."""
    command = [str(nvdisasm), "-c", "-hex", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return {name: Function(_blocks(lines)) for name, lines in _functions(done.stdout).items()}


def _functions(text: str) -> dict[str, list[str | Instruction]]:
    """Return labels and instructions of each function, in their order."""
    found: dict[str, list[str | Instruction]] = {}
    lines = text.splitlines()
    items: list[str | Instruction] = []
    for number, line in enumerate(lines):
        if function := _FUNCTION.match(line):
            items = found.setdefault(function[1], [])
        elif label := _LABEL.match(line):
            items.append(label[1])
        elif instruction := _INSTRUCTION.match(line):
            second = _SECOND_WORD.match(lines[number + 1])
            if second is None:
                raise ValueError(f"nvdisasm printed half an instruction: {line.strip()}")
            items.append(_decoded(instruction[2], int(second[1], 16) >> 41))
    return found


def _decoded(text: str, control: int) -> Instruction:
    """Return an instruction with its control bits, which are those of sm_70 and later."""
    return Instruction(
        " ".join(text.split()),
        stall=control & 15,
        result_board=control >> 5 & 7,
        read_board=control >> 8 & 7,
        wait_mask=control >> 11 & 63,
    )


def _blocks(items: Sequence[str | Instruction]) -> list[Block]:
    bodies: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for item in items:
        if isinstance(item, str):
            if bodies[-1]:
                bodies.append([])
            labels[item] = len(bodies) - 1
            continue
        bodies[-1].append(item)
        if item.is_last:
            bodies.append([])
    blocks = []
    for number, body in enumerate(bodies):
        after = [number + 1] if number + 1 < len(bodies) else []
        last = body[-1] if body else None
        if last is not None and last.is_last and not last.is_conditional:
            after = []
        if last is not None and last.target in labels:
            after.append(labels[str(last.target)])
        blocks.append(Block(tuple(body), tuple(after)))
    return blocks


@dataclass(frozen=True)
class Loop:
    """A loop: the block that it begins with, and all of its blocks."""

    head: int
    members: frozenset[int]


class Function:
    """The blocks of a function by number, the first one first, and its loops."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.before: list[list[int]] = [[] for _ in blocks]
        for number, block in enumerate(blocks):
            for after in block.next_blocks:
                self.before[after].append(number)
        self.loops = self._loops()

    def products(self, members: Iterable[int]) -> int:
        """Return how many products on the tensor cores the code of these blocks has."""
        return sum(sum(map(is_product, self.blocks[number].instructions)) for number in members)

    def _loops(self) -> list[Loop]:
        """Return all loops, those of one head as one."""
        dominators = self._dominators()
        members: dict[int, set[int]] = {}
        for number, above in dominators.items():
            for head in set(self.blocks[number].next_blocks) & above:
                found = members.setdefault(head, {head})
                waiting = [number]
                while waiting:
                    one = waiting.pop()
                    if one not in found and one in dominators:
                        found.add(one)
                        waiting += self.before[one]
        return [Loop(head, frozenset(found)) for head, found in members.items()]

    def _dominators(self) -> dict[int, set[int]]:
        """Return for each block that can be reached those that every way to it goes through."""
        reached = {0: None}
        for number in (order := [0]):
            for after in self.blocks[number].next_blocks:
                if after not in reached:
                    reached[after] = None
                    order.append(after)
        found = {number: set(reached) for number in reached}
        found[0] = {0}
        changed = True
        while changed:
            changed = False
            for number in sorted(reached)[1:]:
                ways = [found[other] for other in self.before[number] if other in found]
                now = set.intersection(*ways) | {number}
                changed = changed or now != found[number]
                found[number] = now
        return found


def count(instructions: Iterable[Instruction]) -> Counter[str]:
    """Return how many instructions there are of each name."""
    return Counter(one.name for one in instructions)


def is_product(instruction: Instruction) -> bool:
    """Return whether it is a product on the tensor cores."""
    return instruction.name in _WHOLE
