"""How fast a multiprocessor can issue the turns of a loop: one of its four schedulers, simulated.

It is a bound and no forecast. Memory answers at once, copies into shared memory cost their issue
and their bandwidth, and barriers cost nothing. Latencies and rates are assumptions, listed here.
Nothing of it has been compared with a GPU.
"""

from __future__ import annotations

from collections import defaultdict

from sass import Instruction, is_product
from turn import Trace

_LATENCY = defaultdict(
    lambda: 30,
    {"LDSM": 34, "LDS": 30, "STS": 20, "SHFL": 24, "MUFU": 22, "S2R": 20, "S2UR": 20}
    | {"LDC": 30, "LDCU": 30, "R2UR": 12, "LDGSTS": 10, "LDG": 600, "STG": 10, "F2FP": 6}
    | {"BAR": 12, "VOTE": 12, "I2F": 20, "F2I": 20},
)
"""Cycles to the result of what a scoreboard is for; other latencies the compiler states itself."""

_READ_CYCLES = 14  # until operands may be overwritten
_OWN_CYCLES = {
    "MUFU": 8,
    "SHFL": 2,
    "LDG": 4,
    "STG": 4,
    "I2F": 8,
    "F2I": 8,
    "LDC": 2,
    "F2FP": 2,
}
"""Cycles that a scheduler's own unit is busy; F2FP converts, half as fast as others compute."""

_SHARED_CYCLES = 4  # of a scheduler's share of shared memory for 128 bytes: it is one for four
_BURST_CYCLES = 2  # where the other three happen to want less at that moment
_SHARED_BYTES = {"LDSM": 512, "LDGSTS": 512}
_QUEUE = 8  # instructions that may wait for shared memory before a warp has to


def _shared_units(one: Instruction) -> int:
    """Return how many times 128 bytes an instruction of a warp moves to or from shared memory."""
    if one.name in ("LDS", "STS"):
        size = 512 if ".128" in one.opcode else 256 if ".64" in one.opcode else 128
    else:
        size = _SHARED_BYTES.get(one.name, 0)
    return size // 128


class _Warp:
    def __init__(self) -> None:
        self.done = 0
        self.ready = 0.0
        self.boards = [0.0] * 6


def cycles_a_turn(turn: Trace, warps: int, product_cycles: int, turns: int = 6) -> float:
    """Return the cycles in which `warps` warps of one scheduler do a turn each.

    It is never less than what shared memory takes for them.
    """
    floor = warps * _SHARED_CYCLES * sum(map(_shared_units, turn))
    plan = [
        (one, _OWN_CYCLES.get(one.name, 0), _BURST_CYCLES * _shared_units(one), is_product(one))
        for one in turn
    ]
    everyone = [_Warp() for _ in range(warps)]
    free: dict[str, float] = defaultdict(float)
    now = 0.0
    last = everyone[0]
    while True:
        open_warps = [warp for warp in everyone if warp.done < turns * len(plan)]
        if not open_warps:
            return max(floor, now / turns)
        issued = None
        for warp in sorted(open_warps, key=lambda warp: warp is not last):
            one, own, shared, product = plan[warp.done % len(plan)]
            if not _may_issue(warp, one, now):
                continue
            unit = "products" if product else one.name
            if free[unit] > now and (own or product):
                continue
            if shared and free["shared"] > now + _QUEUE * shared:
                continue
            begin = max(now, free["shared"]) if shared else now
            if shared:
                free["shared"] = begin + shared
            if own or product:
                free[unit] = now + (product_cycles if product else own)
            _issue(warp, one, now, begin)
            issued = warp
            break
        last = issued or last
        now = now + 1 if issued else _next_event(open_warps, free, now)


def _may_issue(warp: _Warp, one: Instruction, now: float) -> bool:
    if warp.ready > now:
        return False
    return not any(
        one.wait_mask >> board & 1 and warp.boards[board] > now for board in range(6)
    )


def _issue(warp: _Warp, one: Instruction, now: float, begin: float) -> None:
    latency = _LATENCY[one.name]
    if one.result_board < 6:
        warp.boards[one.result_board] = max(warp.boards[one.result_board], begin + latency)
    if one.read_board < 6:
        held = begin + min(latency, _READ_CYCLES)
        warp.boards[one.read_board] = max(warp.boards[one.read_board], held)
    warp.ready = now + max(1, one.stall)
    warp.done += 1


def _next_event(warps: list[_Warp], free: dict[str, float], now: float) -> float:
    """Return the next cycle in which something may have changed: no instruction could issue."""
    times = [warp.ready for warp in warps]
    times += [board for warp in warps for board in warp.boards]
    times += list(free.values())
    return min((time for time in times if time > now), default=now + 1) if times else now + 1
