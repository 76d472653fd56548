"""Codes by Blackwell's conversions: which targets have them, the machine code, kernels' results.

What one conversion gives is compared bit by bit in test_moe_decode.py.
"""

from __future__ import annotations

import importlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from tests.plugins import block_linear_reference, moe_reference
from tests.plugins.conftest import built_once
from tests.plugins.cubins import ACCEPT_KEY, LINEAR_KEY, MOE_KEYS, compiled
from tests.plugins.emulated_build import build_converting
from tests.plugins.library import PLUGINS, HostMemory, Library, run
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.trt_plugins import nvrtc
from trtllm_dflash.trt_plugins.kernel_sources import constants
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_kernel

pytestmark = pytest.mark.slow

_, MXFP4_KEY, NVFP4_KEY, FP8_KEY = MOE_KEYS
E2M1, E4M3 = "F2FP.BF16.E2M1.UNPACK_B", "F2FP.BF16.E4M3.UNPACK_B"
ELF_HEADER = 64  # bytes; the GPU stands in its flags
Opcodes = Callable[[Cubin], dict[str, Counter[str]]]


@pytest.fixture
def opcodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opcodes:
    """Return what counts the instructions of a cubin's kernels, by opcode."""
    monkeypatch.syspath_prepend(str(PLUGINS / "bench"))
    bounds, sass = (importlib.import_module(name) for name in ("bounds", "sass"))
    try:
        nvdisasm = bounds.find_nvdisasm()
    except SystemExit as missing:
        pytest.skip(str(missing))

    def count(cubin: Cubin) -> dict[str, Counter[str]]:
        path = tmp_path / "kernels.cubin"
        path.write_bytes(cubin.code)
        found: dict[str, Counter[str]] = {}
        for name, function in sass.disassemble(nvdisasm, path).items():
            found[name] = Counter()
            for block in function.blocks:
                found[name].update(one.opcode for one in block.instructions)
        return found

    return count


def compiled_by_an_older_nvrtc(key: KernelVariant, arch: str) -> Cubin:
    """Compile as if NVRTC were the last one that has no names for the conversions."""
    from cuda.bindings import nvrtc as bindings

    last = divmod(constants("convert.cuh")["kConversionCuda"] - 1, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bindings, "nvrtcVersion", lambda: (0, *last))
        return compile_kernel(key, arch)


@pytest.mark.parametrize(
    ("arch", "target"),
    [
        *(("sm80", "sm_80"), ("sm90", "sm_90"), ("sm100", "sm_100f")),
        *(("sm103", "sm_103f"), ("sm120", "sm_120f"), ("sm121", "sm_121f")),
    ],
)
def test_blackwell_has_its_familys_target(arch: str, target: str) -> None:
    facts = compiled(MXFP4_KEY, arch).facts()
    assert (facts["arch"], facts["target"]) == (arch, target)


def test_a_familys_cubin_is_marked_as_the_plain_one(opcodes: Opcodes) -> None:
    """For the same GPUs; and a kernel without codes has the same instructions."""
    of_family = compiled(ACCEPT_KEY, "sm120")
    plain = compiled_by_an_older_nvrtc(ACCEPT_KEY, "sm120")
    assert (of_family.target, plain.target) == ("sm_120f", "sm_120")
    assert of_family.code[:ELF_HEADER] == plain.code[:ELF_HEADER]
    assert opcodes(of_family) == opcodes(plain)


@pytest.mark.parametrize(
    ("key", "arch", "opcode"),
    [
        *((MXFP4_KEY, arch, E2M1) for arch in ("sm100", "sm103", "sm120", "sm121")),
        *((NVFP4_KEY, arch, E2M1) for arch in ("sm100", "sm120")),
        *((FP8_KEY, arch, E4M3) for arch in ("sm100", "sm120")),
        *((LINEAR_KEY, arch, E4M3) for arch in ("sm100", "sm120")),
    ],
    ids=str,
)
def test_every_tile_converts(
    key: KernelVariant, arch: str, opcode: str, opcodes: Opcodes
) -> None:
    """One conversion gives an operand of two codes, for up to eight products of tokens."""
    cubin = compiled(key, arch)
    tiles = {name: found for name, found in opcodes(cubin).items() if "_t" in name}
    assert len(tiles) >= 4
    for name, found in tiles.items():
        products = sum(count for code, count in found.items() if code.startswith("HMMA"))
        assert products > 0
        assert found[opcode] >= products / 2, name
        assert cubin.reports()[name].spilled_bytes == 0


def test_an_older_nvrtc_gets_integer_instructions(opcodes: Opcodes) -> None:
    cubin = compiled_by_an_older_nvrtc(MXFP4_KEY, "sm120")
    assert cubin.target == "sm_120"
    assert not any(found[E2M1] for found in opcodes(cubin).values())


def test_hoppers_own_target_has_no_conversions(
    monkeypatch: pytest.MonkeyPatch, opcodes: Opcodes
) -> None:
    """It counts as a family's too."""
    monkeypatch.setattr(nvrtc, "_target_of", lambda _: "sm_90a")
    cubin = compile_kernel(MXFP4_KEY, "sm90")
    assert cubin.target == "sm_90a"
    assert not any(found[E2M1] for found in opcodes(cubin).values())


@pytest.mark.parametrize("target", ["sm_100f", "sm_120f"])
def test_every_nvcc_that_knows_families_compiles(target: str, tmp_path: Path) -> None:
    """One without the conversions too: the source asks for its version."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    options = ["-std=c++17", "--expt-relaxed-constexpr", "-DDFLASH_WEIGHT_FORMAT=1"]
    path = tmp_path / "moe.cubin"
    source = str(PLUGINS / "kernels" / "moe.cu")
    run(["nvcc", "-cubin", f"-arch={target}", *options, source, "-o", str(path)])
    assert path.read_bytes().startswith(b"\x7fELF")


@pytest.fixture(scope="module")
def converting(emulated_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return the emulated library with codes converted."""
    path = built_once(
        tmp_path_factory, "converting", lambda folder: build_converting(folder, emulated_path)
    )
    return Library(path, HostMemory(), emulated=True)


@pytest.mark.parametrize("weight_format", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 9, 20, 70])
def test_experts(weight_format: int, tokens: int, converting: Library) -> None:
    """Every tile, over rows and columns that fill none."""
    case = moe_reference.fitting(
        moe_reference.Case(tokens, weight_format, 160, 96, experts=6, top_k=2, order="random")
    )
    given = moe_reference.inputs(case)
    converting.order(case.order, case.seed)
    moe_reference.assert_close(case, given, converting.moe(given, case.options))


@pytest.mark.parametrize("scale", [0, 1, 2, 60, 129, 200, 252, 253, 255])
def test_mxfp4_scales_of_every_kind(scale: int, converting: Library, emulated: Library) -> None:
    """A row has one code that is not 0, so its sum has the bits of integer instructions."""
    case = moe_reference.Case(2, 1, 64, 64, experts=2, top_k=1)
    given = moe_reference.inputs(case)
    for name in ("gate_up", "down"):
        codes = given[name].view(np.uint8).reshape(-1, 32)
        codes[:, 1:] = 0
        codes[:, 0] &= 0x0F
    given["down_scale"].view(np.uint8).reshape(2, 64, 2)[:, [3, 25, 32, 47, 48], 0] = scale
    got = [
        library.moe(given, case.options).view(np.uint16) for library in (converting, emulated)
    ]
    np.testing.assert_array_equal(got[0], got[1])


@pytest.mark.parametrize("tokens", [1, 12, 40, 130])
def test_block_linears(tokens: int, converting: Library, emulated: Library) -> None:
    """Codes of FP8 keep their order, and so every sum has the bits of integer instructions."""
    case = block_linear_reference.Case(tokens, 200, 400, bias=True)
    given = block_linear_reference.inputs(case)
    got = converting.block_linear(given)
    block_linear_reference.assert_close(case, given, got)
    np.testing.assert_array_equal(
        got.view(np.uint16), emulated.block_linear(given).view(np.uint16)
    )
