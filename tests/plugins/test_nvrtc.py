"""The kernels compile without a GPU, without spills and within the shared memory of each arch; and
what cannot be.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from tests.fixtures.chosen import chosen
from tests.plugins.cubins import (
    ATTENTION_KEYS,
    DELTA_KEY,
    FP8_KEYS,
    HEAD_DIMS,
    KEYS,
    LINEAR_KEY,
    MOE_KEYS,
    compiled,
    compiling,
    most_spills,
    sources,
    wait_for_compilers,
)
from tests.plugins.library import PLUGINS
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import GATED_DELTA_KERNEL, KernelVariant
from trtllm_dflash.hardware import kernel_compiler
from trtllm_dflash.hardware.kernel_compiler import PACKAGES, uncompilable_reason
from trtllm_dflash.trt_plugins import attention_plans, nvrtc, params
from trtllm_dflash.trt_plugins import kernel_sources as kernel_files
from trtllm_dflash.trt_plugins.kernel_sources import kernel_sources, source_digest
from trtllm_dflash.trt_plugins.launch_config import OPERATIONS
from trtllm_dflash.trt_plugins.nvrtc import (
    compile_in_subprocess,
    compile_kernel,
)

pytestmark = pytest.mark.slow

# Bytes of shared memory that a CTA may have (CUDA programming guide, compute capabilities).
SHARED_BYTES = {
    "sm80": 163 << 10,
    "sm86": 99 << 10,
    "sm89": 99 << 10,
    "sm90": 227 << 10,
    "sm100": 227 << 10,
    "sm103": 227 << 10,
    "sm120": 99 << 10,
    "sm121": 99 << 10,
}
COMPILED = [
    *product((*KEYS, *MOE_KEYS), ("sm80", "sm90", "sm100", "sm120")),
    *product(FP8_KEYS, ("sm89", "sm90", "sm100", "sm120")),  # sm89 is the first that has FP8
    *product([DELTA_KEY], ("sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120", "sm121")),
    *product([LINEAR_KEY], ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "sm121")),
    (MOE_KEYS[3], "sm89"),
]
ATTENTION = ATTENTION_KEYS[1]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def all_under_way(request: pytest.FixtureRequest) -> None:
    for key, arch in chosen(request, "key", "arch"):
        compiling(key, arch)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import what the bounds know of launches."""
    monkeypatch.syspath_prepend(str(PLUGINS / "bench"))
    return importlib.import_module("launches")


@pytest.mark.sample(20)
@pytest.mark.parametrize(("key", "arch"), COMPILED, ids=str)
def test_few_spills_and_no_more_shared_memory_than_there_is(
    key: KernelVariant, arch: str, all_under_way: None, launches: ModuleType
) -> None:
    cubin = compiled(key, arch)
    assert cubin.code.startswith(b"\x7fELF")
    found = cubin.reports()
    assert set(found) == set(OPERATIONS[key.source].kernels(key))
    for name, report in found.items():
        assert report.registers <= 255
        assert report.spilled_bytes <= most_spills(name), name
        launch = launches.launch_size(name)
        shared_bytes = report.static_shared_bytes + launch.shared_bytes
        assert shared_bytes <= SHARED_BYTES[arch]
        if tile := re.fullmatch(r"dflash_attention_d(\d+)_r(\d+)(?:_fp8)?", name):
            head_dim, rows = map(int, tile.groups())
            planned = {one.rows: one.ctas for one in attention_plans.attention_tiles(head_dim)}
            assert report.registers * params.ATTENTION_THREADS * planned[rows] <= 65536
        ctas = _ctas_wanted(name, arch)
        assert report.registers * launch.threads * ctas <= 65536
        assert ctas * (shared_bytes + 1024) <= SHARED_BYTES[arch]


def _ctas_wanted(kernel: str, arch: str) -> int:
    """Return how many CTAs a multiprocessor should hold; 0 is whatever fits."""
    if kernel.startswith("dflash_gated_delta"):
        return 4
    linear = re.fullmatch(r"dflash_block_linear_t(\d+)", kernel)
    if linear is not None:
        return 3 if linear[1] == "8" else 2
    if kernel in ("dflash_select_scan", "dflash_select_pairs"):
        return 2
    tile = re.match(r"dflash_moe_(?:gate_up|down)_t(8|16|32)(.*)", kernel)
    if tile is None:
        return 0
    few = int(arch[2:]) < 90 and tile[2] == "_mxfp4"
    return 3 if tile[1] == "8" and not few else 2


def test_every_operator_has_source_and_launches() -> None:
    assert {
        name.removesuffix(".cu") for name in kernel_sources() if name.endswith(".cu")
    } == sources()
    assert set(OPERATIONS) == sources()
    assert {dict(key.sizes).get("head_dim") for key in ATTENTION_KEYS} == set(HEAD_DIMS)
    sizes = {size.name: size.values for size in GATED_DELTA_KERNEL.sizes}
    assert {name: (value,) for name, value in DELTA_KEY.sizes} == sizes


def test_compile_is_reproducible_without_paths() -> None:
    first, again = compiled(KEYS[0], "sm120"), compile_kernel(KEYS[0], "sm120")
    assert first.code == again.code
    assert str(ROOT).encode() not in first.code
    assert b"site-packages" not in first.code


def test_facts_name_kernel_arch_and_hashes() -> None:
    facts = compiled(ATTENTION, "sm120").facts()
    assert (facts["kernel"], facts["arch"]) == ("attention, head_dim 96", "sm120")
    assert len(facts["sha256"]) == len(facts["source_sha256"]) == 64
    assert facts["bytes"] == len(compiled(ATTENTION, "sm120").code)


def _with_sources(monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    wait_for_compilers()
    made = {name.replace("_", ".", 1): text.encode() for name, text in files.items()}
    for module in (nvrtc, kernel_files):
        monkeypatch.setattr(module, "kernel_sources", lambda: made)


def test_the_source_hash_is_of_the_source_and_the_headers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = set()
    for files in (
        {"accept_cu": "1"},
        {"accept_cu": "2"},
        {"accept_cu": "1", "x_h": "1"},
        {"accept_cu": "1", "x_h": ""},
    ):
        _with_sources(monkeypatch, **files)
        digests.add(source_digest("accept"))
    assert len(digests) == 4
    _with_sources(monkeypatch, accept_cu="1", attention_cu="2")
    assert source_digest("accept") in digests


def test_what_does_not_compile_is_told_in_the_compilers_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _with_sources(monkeypatch, accept_cu='extern "C" __global__ void k() { fantasy(); }')
    with pytest.raises(
        BuildError,
        match=r'(?s)kernel accept does not compile for sm120:\naccept.cu\(1\): error: .*"fantasy"',
    ):
        compile_kernel(KEYS[0], "sm120")


def test_a_function_that_is_not_in_the_cubin_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_sources(monkeypatch, accept_cu='extern "C" __global__ void dflash_accept_scan() {}')
    words = (
        r"accept.cu compiled for sm120 \(accept\) has no function dflash_accept_choose,"
        r" dflash_accept_finish"
    )
    with pytest.raises(BuildError, match=words):
        compile_kernel(KEYS[0], "sm120")


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(
        BuildError, match=r"no kernel source scan.cu, only accept.cu, .*attention.cu"
    ):
        compile_kernel(KernelVariant("scan"), "sm120")


def test_an_arch_that_nvrtc_does_not_know_is_an_error() -> None:
    with pytest.raises(
        BuildError, match=r"(?s)kernel accept does not compile for sm7:.*invalid value"
    ):
        compile_kernel(KEYS[0], "sm7")


def test_compile_in_subprocess_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in (KEYS[0], ATTENTION):
        here, apart = compiled(key, "sm120"), compile_in_subprocess(key, "sm120")
        assert (apart.key, apart.arch, apart.code) == (here.key, here.arch, here.code)
        assert apart.reports() == here.reports()
    with pytest.raises(BuildError, match=r"^there is no kernel source scan.cu, only accept.cu"):
        compile_in_subprocess(KernelVariant("scan"), "sm120")
    wait_for_compilers()
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no Python starts so
    with pytest.raises(
        BuildError,
        match=r"(?s)accept for sm120 ended with exit status 1:\n.*Fatal Python error",
    ):
        compile_in_subprocess(KEYS[0], "sm120")


def _no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc
    from cuda.pathfinder import DynamicLibNotFoundError

    def fail() -> None:
        raise DynamicLibNotFoundError("libnvrtc")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", fail)


def _no_headers(missing: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        from cuda import pathfinder

        found = pathfinder.find_nvidia_header_directory
        monkeypatch.setattr(
            pathfinder,
            "find_nvidia_header_directory",
            lambda name: None if name == missing else found(name),
        )

    return patch


@pytest.mark.parametrize(
    ("take_away", "package"),
    [
        (
            lambda patch: patch.setattr(kernel_compiler, "find_spec", lambda _: None),
            PACKAGES[0],
        ),
        (_no_nvrtc, PACKAGES[1]),
        (_no_headers("cudart"), PACKAGES[2]),
        (_no_headers("cccl"), PACKAGES[3]),
    ],
    ids=PACKAGES,
)
def test_a_missing_package_is_named(
    take_away: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uncompilable_reason() is None
    wait_for_compilers()
    take_away(monkeypatch)
    reason = uncompilable_reason()
    assert reason
    assert re.fullmatch(
        rf"NVRTC needs {package} \(no .*\), which is not installed here: pip install"
        r" '\.\[rtx\]' in the dflash-trt repository",
        reason,
    )
    with pytest.raises(
        BuildError, match=f"cannot compile the kernel accept: NVRTC needs {package}"
    ):
        compile_kernel(KEYS[0], "sm120")
