"""What people type for an architecture or a GPU, and what it stands for."""

from __future__ import annotations

import pytest

from trtllm_dflash.catalog.gpus import GPUS, GpuSpec
from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.gpu_names import arch_named, find_gpu, find_hardware

ARCH_NAMES = {
    "sm80": (
        "sm80",
        "sm_80",
        "8.0",
        "A100",
        "a100 40gb",
        "NVIDIA A100-SXM4-80GB",
        "a30",
        "A800",
    ),
    "sm86": (
        "86",
        "3090",
        "RTX 3090 Ti",
        "a10",
        "A10G",
        "a40",
        "rtx a6000",
        "rtxa5000",
        "3060",
    ),
    "sm89": (
        "4090",
        "l4",
        "L40",
        "l40s",
        "RTX6000Ada",
        "NVIDIA RTX 6000 Ada Generation",
        "ada",
    ),
    "sm90": (
        "H100",
        "h100 80gb",
        "NVIDIA H200",
        "GH200",
        "h20",
        "sm_90a",
        "compute_90",
        "hopper",
    ),
    "sm100": ("b200", "GB200", "dgx b200", "10.0", "NVIDIA B200"),
    "sm103": ("B300", "gb300", "GB300 NVL72", "10.3", "blackwell ultra"),
    "sm120": (
        "5090",
        "RTX 5090",
        "rtx5070ti",
        "5060 ti",
        "pro 6000",
        "SM120a",
        "12.0",
        " 120 ",
    ),
    "sm121": ("spark", "DGX Spark", "gb10", "sm_121"),
    "cpu": ("cpu", "CPU"),
}


@pytest.mark.parametrize("arch", ARCH_NAMES)
def test_a_name_gives_its_arch(arch: str) -> None:
    assert {name: arch_named(name) for name in ARCH_NAMES[arch]} == dict.fromkeys(
        ARCH_NAMES[arch], arch
    )
    assert arch_named(arch.upper()) == arch
    assert not find_hardware(arch).is_unlisted


@pytest.mark.parametrize("name", ["L40", "rtx 3080", "A10G", "gh200", "5060"])
def test_a_product_outside_the_table_is_told(name: str) -> None:
    found = find_hardware(name)
    assert found.is_unlisted
    assert found.gpus == ()


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_gpus_own_name_is_that_gpu(gpu: GpuSpec) -> None:
    name = gpu.name
    for text in (name, name.lower(), f"NVIDIA {name.upper()}", name.replace(" ", "")):
        assert find_gpu(text) == gpu, text
        assert find_hardware(text).gpus == (gpu,)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("b200", "B200"),  # and not GB200, which it is a part of
        ("5070", "RTX 5070"),
        ("5070 Ti", "RTX 5070 Ti"),
        ("a10", "A10"),
        ("80gb a100", "A100 80GB"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("dgxspark", "GB10 (DGX Spark)"),
        ("spar", "GB10 (DGX Spark)"),
    ],
)
def test_a_part_of_a_name_finds_the_gpu(name: str, wanted: str) -> None:
    assert find_gpu(name).name == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("6000", "RTX PRO 6000 Blackwell (sm120), RTX 6000 Ada (sm89)"),
        ("blackwell", "fits sm100, sm103, sm120, sm121"),
        ("ampere", "one of sm80, sm86"),
        ("b2000", "did you mean B200 (sm100)"),
        ("rtx 5091", "did you mean RTX 5090 (sm120)"),
        ("sm12", "did you mean sm121, sm120"),
        # Another chip of less memory: not the desktop's.
        ("RTX 5090 Laptop GPU", "did you mean RTX 5090 (sm120)"),
        ("sm75", "no known architecture or GPU"),
        ("", "no known architecture or GPU"),
        ("nvidia", "no known architecture or GPU"),
        ("80gb", "no known architecture or GPU"),
        ("x" * 10**6, "no known architecture or GPU"),
    ],
)
def test_an_unclear_name_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        arch_named(name)
    text = str(caught.value)
    assert words in text
    if "no known" in words:
        assert all(arch.hardware in text for arch in ARCHS.values())


@pytest.mark.parametrize(
    ("name", "arch", "words"),
    [
        ("rtx", "sm120", "fits RTX PRO 6000 Blackwell, RTX 5090, RTX 5080"),
        ("a100", "sm80", "fits A100 80GB, A100 40GB"),
        ("h100", "sm120", "--gpu 'h100' is sm90, and not sm120"),
        ("L40", "sm89", "no figures of it. Of sm89 it has: L40S, RTX 4090"),
        ("H20", "sm90", "no figures of it. Of sm90 it has: H100, H200"),
        ("sm120", "sm120", "no figures of it. Of sm120 it has: RTX PRO 6000"),
    ],
)
def test_a_name_without_figures_is_refused(name: str, arch: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(name, arch)
    assert words in str(caught.value)
