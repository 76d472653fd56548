"""Times on the GPU: CUDA graphs replayed between events, over far more input than the L2 cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def seconds(
    launch: Callable[[T], object], sets: Sequence[T], launches: int = 10, replays: int = 20
) -> float:
    """Return the median time of one `launch`, in seconds.

    Launches cycle through the sets and are captured in a graph, so that no host time counts. A
    graph holds at least `launches` of them, which share the gap between two replays.
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
    """Return the bytes per second that a large copy in device memory reads and writes."""
    src = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    dst = torch.empty_like(src)
    return 2 * src.numel() / seconds(lambda _: dst.copy_(src), [None])


def set_count(set_bytes: int) -> int:
    """Return how many sets of this size are four times the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return -(-4 * cache // set_bytes)
