"""Times: by hand where that is possible, and what must hold whatever the constants are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.estimate.prediction import roofline_of, stored_pair
from tests.estimate.test_workload import quantized_pair
from trtllm_dflash.catalog.gpus import GPUS, GpuSpec
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.roofline import (
    COMPUTE,
    HEAD,
    HOST,
    LAUNCHES,
    RUNTIMES,
    WEIGHTS,
    Constants,
    Roofline,
    expected_active,
)
from trtllm_dflash.estimate.workload import KernelCost

ENGINE, SERVING = RUNTIMES["engine"], RUNTIMES["serving"]
BY_NAME = {gpu.name: gpu for gpu in GPUS}
IDEAL = Constants(
    bandwidth_fraction=1.0, compute_fraction=1.0, kernel=0.0, sum_latency=0.0, link_fraction=1.0
)
ROUND = GpuSpec(
    "round",
    "sm100",
    100,
    1000,
    100,
    200,
    400,
    "made up: 10^12 bytes and 10^14 operations a second",
)


def seconds(
    costs: tuple[KernelCost, ...],
    roofline: Roofline,
    batch: int = 1,
    context: float = 0,
    *,
    drafts: bool = False,
) -> float:
    return roofline.time(costs, batch=batch, context=context, drafts=drafts).seconds


@pytest.mark.parametrize(("count", "top_k", "tokens"), [(4, 2, 2), (5, 2, 3), (6, 1, 3)])
def test_expected_active_is_the_mean_over_choices(count: int, top_k: int, tokens: int) -> None:
    from itertools import combinations

    choices = list(combinations(range(count), top_k))
    every = [len(set().union(*chosen)) for chosen in product(choices, repeat=tokens)]
    assert expected_active(count, top_k, tokens) == pytest.approx(
        sum(every) / len(every), rel=1e-12
    )


def test_roofline_of_plain_decoding_reads_weights() -> None:
    """Qwen3-8B reads 15.136 GB for a token: 15.1 ms at 10^12 bytes a second."""
    time = Roofline(ROUND, constants=IDEAL).time(
        stored_pair("Qwen3-8B-DFlash-b16").plain_step(), batch=1, context=0, drafts=False
    )
    assert time.seconds == pytest.approx(15.136e-3, rel=2e-3)
    assert time.limited_by == WEIGHTS
    assert time.by_limit[HEAD] == pytest.approx(2 * 151936 * 4096 / 1e12, rel=2e-3)
    assert time.by_limit[LAUNCHES] == time.by_limit[HOST] == 0


def test_roofline_takes_the_longer_of_reading_and_computing() -> None:
    nvfp4 = FORMATS["nvfp4"]
    cost = KernelCost("target", "linear", 4, weight_bytes=2e9, row_flops=1e9)
    roofline = Roofline(ROUND, constants=IDEAL)
    assert seconds((cost,), roofline) == 2e-3
    wide = roofline.time([cost], batch=1000, context=0, drafts=False)
    assert (wide.seconds, wide.limited_by) == (4000 * 1e9 / 1e14, COMPUTE)
    assert seconds((replace(cost, format=nvfp4),), roofline, 1000) == 4000 * 1e9 / 4e14


def test_roofline_of_attention_reads_its_window() -> None:
    full = KernelCost("target", "attention", 1, position_bytes=1e6)
    roofline = Roofline(ROUND, constants=IDEAL)
    assert seconds((full,), roofline, 3, 500) == 3 * 500 * 1e6 / 1e12
    assert seconds((replace(full, window=128),), roofline, 3, 500) == 3 * 128 * 1e6 / 1e12
    assert seconds((replace(full, window=128),), roofline, 3, 100) == 3 * 100 * 1e6 / 1e12


def test_a_server_copies_states_where_it_verifies() -> None:
    """A read, 4 writes, and the copy of one: 7 times the state; the window stays as it is."""
    state = KernelCost("target", "linear attention", 4, state_bytes=9e9, window_bytes=1e9)
    quiet = replace(SERVING, plain_host=0.0, draft_host=0.0)
    engine, server = (Roofline(ROUND, 1, runtime, IDEAL) for runtime in (ENGINE, quiet))
    once = 3 * 2 * 9e9 / 1e12
    assert seconds((state,), engine, 3, drafts=True) == once
    assert seconds((state,), server, 3) == once
    copied = 3 * (7 * 8e9 + 2 * 1e9) / 1e12
    assert seconds((state,), server, 3, drafts=True) == pytest.approx(copied)


def test_roofline_adds_host_and_kernels() -> None:
    costs = (KernelCost("target", "elementwise", 1, kernels=5),)
    constants = replace(IDEAL, kernel=3e-6)
    assert seconds(costs, Roofline(ROUND, constants=constants)) == pytest.approx(15e-6)
    for runtime, drafts, host in (
        (ENGINE, True, 0),
        (SERVING, False, 0.5e-3),
        (SERVING, True, 1.5e-3),
    ):
        assert seconds(
            costs, Roofline(ROUND, 1, runtime, constants), drafts=drafts
        ) == pytest.approx(15e-6 + host)
    one, many = (
        roofline_of(ROUND, "serving, no overlap", constants, batch=batch) for batch in (1, 32)
    )
    assert seconds(costs, many, 32, drafts=True) - seconds(
        costs, one, drafts=True
    ) == pytest.approx(31 * 0.147e-3)
    prompt = roofline_of(ROUND, "serving", constants, is_prompt=True)
    time = prompt.time(costs, batch=1, context=0, drafts=False)
    assert time.by_limit[LAUNCHES] == pytest.approx(5 * 10e-6)
    eager = roofline_of(ROUND, "eager", constants)
    assert seconds(costs, eager) == pytest.approx(5 * 2.5 * 8e-6)


@settings(max_examples=40)  # the first of each drafter builds its graph
@given(
    st.sampled_from(
        ["Qwen3-4B-DFlash-b16", "gpt-oss-20b-DFlash", "Qwen3-Coder-30B-A3B-DFlash"]
    ),
    st.floats(100, 10000),
    st.floats(1.01, 4),
    st.integers(1, 512),
    st.integers(0, 100_000),
)
def test_roofline_is_monotonic_and_parts_add_up(
    drafter: str, bandwidth: float, factor: float, batch: int, context: int
) -> None:
    """More bandwidth or compute never makes a step longer, more sequences or positions never
    shorter.
    """
    costs = stored_pair(drafter).dflash_step(8, 7)
    base = replace(ROUND, bandwidth_gbs=bandwidth)
    time = Roofline(base).time(costs, batch=batch, context=context, drafts=True)
    assert sum(time.by_limit.values()) == pytest.approx(sum(time.by_part.values()))
    faster = (
        replace(base, bandwidth_gbs=bandwidth * factor),
        replace(base, bf16_tflops=100 * factor),
    )
    assert all(seconds(costs, Roofline(gpu), batch, context) <= time.seconds for gpu in faster)
    assert seconds(costs, Roofline(base), batch + 1, context) >= time.seconds
    assert seconds(costs, Roofline(base), batch, context + 1) >= time.seconds


def test_roofline_of_plain_decoding_has_limits() -> None:
    """A larger batch gives more tokens in all and fewer to each; reading its keys bounds a token's
    time.
    """
    costs, roofline = stored_pair("Qwen3-8B-DFlash-b16").plain_step(), Roofline(BY_NAME["B200"])
    times = [seconds(costs, roofline, batch, 1024) for batch in (1, 8, 64, 512, 4096)]
    rates = [batch / time for batch, time in zip((1, 8, 64, 512, 4096), times, strict=True)]
    assert times == sorted(times)
    assert rates == sorted(rates)
    assert rates[-1] < 7700e9 / (144 * 1024 * 1024)


def test_roofline_of_several_gpus_adds_sums() -> None:
    costs = stored_pair("gpt-oss-120b-DFlash").plain_step()
    one, eight = (Roofline(BY_NAME["B300"], gpus, constants=IDEAL) for gpus in (1, 8))
    summed = [cost for cost in costs if cost.reduced_bytes]
    assert len(summed) == 2 * 36
    moved = 2 * 7 / 8 * 64 * sum(cost.reduced_bytes for cost in summed)
    expected = seconds(costs, one, 64, 500) / 8 + moved / 900e9
    assert seconds(costs, eight, 64, 500) == pytest.approx(expected)
    slow = Roofline(BY_NAME["B300"], 8, constants=replace(IDEAL, sum_latency=1e-5))
    assert seconds(costs, slow, 64, 500) == pytest.approx(expected + 72e-5)


def test_roofline_refuses_what_a_gpu_cannot_do() -> None:
    with pytest.raises(UsageError, match="RTX 5090 has no NVLink"):
        Roofline(BY_NAME["RTX 5090"], 2)
    costs = quantized_pair("Qwen3-4B-DFlash-b16", "nvfp4").plain_step()
    with pytest.raises(UsageError, match="H200 does not multiply fp4, which nvfp4 needs"):
        seconds(costs, Roofline(BY_NAME["H200"]))
