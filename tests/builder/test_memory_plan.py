"""The plan of an engine's memory: its arithmetic, and real engines beside it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import HIDDEN
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.delta_memory import DeltaMemory
from trtllm_dflash.builder.dry_run import DryRun, preview_build
from trtllm_dflash.builder.host_costs import HostCosts
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.builder.scratch_limit import scratch_refusal
from trtllm_dflash.catalog.gpus import GPUS, GpuSpec, gpus_of
from trtllm_dflash.catalog.pairs import PAIRS, pair_of
from trtllm_dflash.errors import BuildError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.trt_plugins.attention_plans import attention_workspace

PAIRS_THAT_BUILD = (
    "Qwen3-4B",
    "Qwen3-8B",
    "Llama-3.1-8B-Instruct",
    "gpt-oss-20b",
    "Qwen3.6-27B",
    "Qwen3-Coder-Next",
)
LONG = {"max_position_embeddings": 32768}
EXAMPLE_PAIR = DEMO.parent / "examples" / "demo_pair" / "drafter"


@cache
def dry_run(name: str, arch: str, *, drafter: bool = True, **options: Any) -> DryRun:
    """Return the dry run of a pair of the catalog, from its published sizes."""
    pair = pair_of(name)
    assert pair is not None
    other = pair.drafter.repository if drafter else None
    return preview_build(BuildConfig(name, Path("no-engine"), other, arch=arch, **options))


def plan(name: str, arch: str = "sm120", **options: Any) -> MemoryPlan:
    """Return the memory plan of a pair of the catalog."""
    return dry_run(name, arch, **options).plan


@pytest.mark.parametrize("trials", [6, pytest.param(120, marks=pytest.mark.slow)])
def test_fits_and_at_most_are_one_rule(trials: int) -> None:
    """For random pairs, cards, lengths and batches, "fits" is "at most that batch or more"."""
    chosen = random.Random(trials)
    for _ in range(trials):
        gpu = chosen.choice(GPUS)
        has_drafter = chosen.random() < 0.7
        found = dry_run(chosen.choice(PAIRS_THAT_BUILD), gpu.arch, drafter=has_drafter)
        tokens = chosen.choice([chosen.randrange(600, 40000), 2048, 8192])
        asked = found.plan.with_length(tokens)
        most = asked.most_slots(gpu.memory_bytes)
        batches = {1, 2, most - 1, most, most + 1, chosen.randrange(1, 3 * most + 3)}
        for batch in sorted(batch for batch in batches if batch > 0):
            fits = asked.with_slots(batch).fits(gpu.memory_bytes)
            assert fits == (batch <= most), (gpu.name, tokens, batch, most)
        shown = replace(found, models=asked.with_slots(batch).models)
        fit = next(fit for fit in shown.fits() if fit.gpu == gpu)
        assert (fit.as_asked, fit.slots.get(tokens, 0)) == (fits, most)


def test_longer_sequences_never_fit_more() -> None:
    fits = dry_run("Qwen3-8B", "sm120").fits()
    assert [fit.gpu for fit in fits] == list(gpus_of("sm120"))
    for fit in fits:
        counts = list(fit.slots.values())
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("vocab", "rows"), [(64, 0), (65, 1)])
def test_an_odd_tied_head_is_converted_with_a_row_more(
    vocab: int, rows: int, make_target: Callable[..., Path], tmp_path: Path
) -> None:
    """And stored once, as any other."""
    target = str(make_target("qwen3", tied=True, vocab_size=vocab, dtype="BF16"))
    table = vocab * HIDDEN * 2
    on_cpu = preview_build(BuildConfig(target, tmp_path / "e")).plan
    made = preview_build(BuildConfig(target, tmp_path / "e", arch="sm120", plugins=False)).plan
    assert made.weight_bytes == on_cpu.weight_bytes // 2 + rows * HIDDEN * 2
    assert HostCosts(made).converted_bytes == rows * (table + HIDDEN * 2)


def test_scores_count_where_no_kernel_avoids_them() -> None:
    ours, compilers = plan("Qwen3-8B"), plan("Qwen3-8B", plugins=False)
    scores = 512 * 32 * 32832 * 4
    assert compilers.with_length(32768).step_bytes() > scores
    assert ours.with_length(32768).step_bytes() < scores / 8
    on_cpu = plan("Qwen3-8B", "cpu").with_length(32768)
    assert on_cpu.step_bytes() > 4 * scores
    attention = attention_workspace(
        batch=1, rows=512, q_heads=32, kv_heads=8, head_dim=128, cache_len=32832, window=0
    )
    assert ours.with_length(32768).step_bytes() > attention


def test_one_slot_has_half_the_code_of_two() -> None:
    """Its one profile serves prompts and decoding; TensorRT, which times tactics, has two."""
    one = plan("Qwen3-8B")
    code = one.engine_parts()["kernels"]
    assert one.with_slots(2).engine_parts()["kernels"] == 2 * code
    on_b200 = plan("Qwen3-8B", "sm100")
    assert on_b200.with_slots(2).engine_bytes == on_b200.engine_bytes


def test_steps_beyond_the_compilers_pool_are_refused() -> None:
    big = plan("Llama-3.1-8B-Instruct", plugins=False, max_batch_size=64, max_seq_len=131072)
    text = scratch_refusal(big)
    assert text is not None
    assert "TensorRT-RTX compiles steps of up to 68.7 GB; leave --no-plugins out, or" in text
    assert (
        text
        in dry_run(
            "Llama-3.1-8B-Instruct",
            "sm120",
            plugins=False,
            max_batch_size=64,
            max_seq_len=131072,
        ).obstacles
    )
    assert scratch_refusal(plan("Llama-3.1-8B-Instruct", max_seq_len=131072)) is None
    assert scratch_refusal(plan("Llama-3.1-8B-Instruct", "sm100", plugins=False)) is None


def test_such_steps_are_refused_before_the_build(
    make_target: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("trtllm_dflash.builder.scratch_limit._POOL_BYTES", 1000)
    target = str(make_target("llama"))
    config = BuildConfig(target, tmp_path / "e", arch="sm120", plugins=False)
    with pytest.raises(BuildError, match=r"compiles steps of up to 1\.0 kB"):
        build_engine(config)
    assert list(tmp_path.iterdir()) == []


def test_a_step_too_large_to_compile_is_told_in_words() -> None:
    pytest.importorskip("tensorrt_rtx")
    from trtllm_dflash.builder.trt import memory_advice

    errors = ["[x.cpp::f::1] Error Code 2: OutOfMemory (Requested size was 68990094848 bytes.)"]
    assert "lower --max-batch-size, --max-seq-len or --max-num-tokens" in memory_advice(errors)
    assert memory_advice(["another"]) == memory_advice([]) == ""


def test_shared_memory_is_not_planned_whole() -> None:
    (spark,) = gpus_of("sm121")
    assert spark.memory_bytes == int(0.9 * 128e9)
    others: list[GpuSpec] = [gpu for gpu in GPUS if gpu != spark]
    assert all(gpu.memory_bytes == int(gpu.memory_gb * 1e9) for gpu in others)


def test_every_pair_that_builds_is_planned() -> None:
    for pair in PAIRS:
        if pair.name in PAIRS_THAT_BUILD:
            parts = plan(pair.name).engine_parts()
            assert set(parts) == {"weights", "positions", "kernels"}


def _check(config: BuildConfig, directory: Path) -> None:
    """Compare a plan with the engine: weights and tables within 3 %, the rest more roughly."""
    made = preview_build(replace(config, output_dir=directory / "not-there")).plan
    parts = made.engine_parts()
    kernels = parts.pop("kernels", 0)
    exact = sum(parts.values())
    if config.arch == "cpu":
        real = (directory / "rank0.safetensors").stat().st_size
        assert abs(real - exact) < 0.03 * exact
        return
    real = (directory / "rank0.engine").stat().st_size
    assert exact < real < 1.03 * exact + 1.25 * kernels
    log = (directory / "build.log").read_text()
    steps = max(map(int, re.findall(r"Total Activation Memory: (\d+)", log)))
    assert steps <= made.step_bytes() < 2 * steps


@pytest.mark.demo("sm120")
@pytest.mark.parametrize("arch", ["cpu", "sm120"])
def test_the_plan_is_near_the_demo_engines(arch: str) -> None:
    config = BuildConfig(
        str(DEMO / "target"),
        DEMO,
        str(EXAMPLE_PAIR),
        arch=arch,
        draft_vocab=str(EXAMPLE_PAIR / "draft_vocab.json"),
        max_batch_size=4,
    )
    _check(config, DEMO / arch)


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("options", "sizes", "drafts"),
    [
        ({"vocab_size": 4001, "tied": True}, {"max_seq_len": 1024}, False),
        ({"vocab_size": 4000, "tied": True}, {"max_seq_len": 1024, "plugins": False}, False),
        ({}, {"max_seq_len": 2048, "max_batch_size": 4}, True),
        ({}, {"max_seq_len": 2048, "max_batch_size": 16, "plugins": False}, True),
        # The scores are nearly all of the scratch, and must not be kept twice.
        ({"config": LONG}, {"max_seq_len": 32768, "plugins": False}, False),
        ({"config": LONG}, {"max_seq_len": 32768, "plugins": False}, True),
    ],
)
def test_the_plan_is_near_real_engines(
    options: dict[str, Any],
    sizes: dict[str, Any],
    drafts: bool,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = make_target("qwen3", dtype="BF16", head_dim=64, **options)
    drafter = make_drafter(target, dtype="BF16", head_dim=64) if drafts else None
    config = BuildConfig(
        str(target), tmp_path / "e", str(drafter) if drafter else None, arch="sm120", **sizes
    )
    build_engine(config)
    _check(config, config.output_dir)


@pytest.mark.slow
@pytest.mark.parametrize("plugins", [True, False])
def test_the_plan_is_near_real_hybrid_engines(plugins: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    sizes = {"layers": 5, "key_dim": 128, "value_dim": 128, "head_dim": 64}
    target = tiny_hybrid(tmp_path / "target", "qwen3_5", dtype="BF16", sizes=sizes)
    config = BuildConfig(
        str(target),
        tmp_path / "e",
        arch="sm120",
        plugins=plugins,
        max_seq_len=1024,
        max_batch_size=4,
    )
    build_engine(config)
    _check(config, config.output_dir)


def test_scratch_of_gated_delta_nets() -> None:
    """By the compiler's own kernels each layer has its own, by ours all share one."""
    small, large = (replace(_delta(), num_layers=count) for count in (8, 48))
    sizes: dict[str, Any] = {"slots": 2, "rows": 16}
    assert large.kernel_scratch(**sizes) == small.kernel_scratch(**sizes)
    on_gpu = [made.body_scratch(**sizes, layers_share=False) for made in (small, large)]
    on_cpu = [made.body_scratch(**sizes, layers_share=True) for made in (small, large)]
    assert on_cpu[0] == on_cpu[1] < on_gpu[0]
    state = 48 * 128 * 128 * 4
    assert on_gpu[1] - on_gpu[0] > 2 * 40 * state
    ours, compilers = plan("Qwen3.6-27B"), plan("Qwen3.6-27B", plugins=False)
    assert compilers.step_bytes() - ours.step_bytes() > 48 * state
    assert compilers.engine_parts()["kernels"] > 2 * ours.engine_parts()["kernels"]


def test_a_row_more_than_a_chunk_takes_another() -> None:
    made = replace(_delta(), block_size=1)
    one, full, more = (made.body_scratch(1, rows, layers_share=True) for rows in (1, 32, 33))
    assert one == full < more


def _delta() -> DeltaMemory:
    made = DeltaMemory.of(plan("Qwen3.6-27B").models.target.config, 16)
    assert made is not None
    return made


def test_states_do_not_grow_with_the_sequence() -> None:
    """Qwen3.6-27B: 64 KB a token of keys and values, and 169 MB a slot that no length changes."""
    plans = [plan("Qwen3.6-27B").with_length(tokens) for tokens in (2048, 32768)]
    assert [made.cache_bytes_per_token()["target"] for made in plans] == [1 << 16] * 2
    short, long = (made.models.slot_memory for made in plans)
    assert short.fixed_bytes == long.fixed_bytes
    assert round(short.fixed_bytes / 1e6) == 169
    for made in plans:
        rows = made.models.resolved.cache_len
        target = made.models.cache_bytes_by_role()["target"]
        assert target == rows * (1 << 16) + short.fixed_bytes
        more = made.with_slots(3).total_bytes() - made.with_slots(2).total_bytes()
        assert more > target


@pytest.mark.parametrize(
    ("slots", "copies"), [(1, 0), (3, 0), (4, 1), (7, 2), (16, 7), (17, 7)]
)
def test_states_beside_the_slots_are_planned(slots: int, copies: int) -> None:
    """Qwen3.6-27B with 16 slots: 1.2 GB, as much as seven slots' states.

    Its windows are not aligned, so that a prompt in another slot than the first needs copies.
    """
    made = plan("Qwen3.6-27B").with_slots(slots)
    memory = made.models.slot_memory
    parts = made.engine_bytes + made.step_bytes() + slots * made.slot_bytes
    spare = copies * memory.fixed_bytes + (memory.window_bytes if slots > 1 else 0)
    assert made.total_bytes() - parts == spare
    no_states = plan("Qwen3-8B").with_slots(slots)
    parts = no_states.engine_bytes + no_states.step_bytes() + slots * no_states.slot_bytes
    assert no_states.total_bytes() == parts
    on_cpu = plan("Qwen3.6-27B", "cpu").with_slots(slots)  # whose steps are never padded
    assert on_cpu.total_bytes() == (
        on_cpu.engine_bytes + on_cpu.step_bytes() + slots * on_cpu.slot_bytes
    )
    said = dict(dry_run("Qwen3.6-27B", "sm120", max_batch_size=slots)._memory_rows())["states"]
    assert ("of copies beside the slots" in said) == bool(spare)


def test_fp8_caches_halve_keys_and_values_alone() -> None:
    found = dry_run("Qwen3.6-27B", "sm120").plan
    fp8 = preview_build(
        replace(found.models.config, kv_cache_dtype="fp8"), quant="nvfp4"
    ).models
    assert fp8.slot_memory.fixed_bytes == found.models.slot_memory.fixed_bytes
    assert fp8.cache_bytes_by_role()["target"] - fp8.slot_memory.fixed_bytes == (
        fp8.resolved.cache_len * 32768
    )
    assert fp8.kv_scales is not None
    assert list(fp8.kv_scales) == list(range(3, 64, 4))


def test_a_dry_run_says_the_traffic_of_states() -> None:
    sections = dict(dry_run("Qwen3.6-27B", "sm121").sections())
    memory = dict(sections["memory"])
    assert memory["states"] == (
        "151.0 MB a slot at any length, and 17.9 MB of windows; a step reads and writes 337.7 MB"
        " of both"
    )
    built = dict(sections["would build"])
    assert built["states"] == "48 of 64 layers keep a state of 48 x 128 x 128 numbers"
    assert "168.9 MB of it states and their windows" in built["caches"]
    assert "states" not in dict(dict(dry_run("Qwen3-8B", "sm121").sections())["memory"])
