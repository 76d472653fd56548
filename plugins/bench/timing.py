"""Times on the GPU: graphs replayed between events, over input sets that together are far larger
than the L2 cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def seconds(
    launch: Callable[[T], object], sets: Sequence[T], launches: int = 10, replays: int = 20
) -> float:
    """Median time of one `launch`, which goes round the sets; captured in a graph, so that no host
    time counts.

    A graph holds at least that many launches, which share the gap between two replays.
    """
    rounds = -(-launches // len(sets))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launch(sets[0])  # what is set up at the first use
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in list(sets) * rounds:
            launch(one)
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times) / (len(sets) * rounds)


def copy_bandwidth() -> float:
    """Bytes a second that a large copy inside the device's memory reads and writes."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda _: target.copy_(source), [None])


def set_count(set_bytes: int) -> int:
    """How many sets of this size it takes to be four times the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return -(-4 * cache // set_bytes)
