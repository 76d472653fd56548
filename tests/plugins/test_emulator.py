"""The emulator itself: its instructions against NumPy, and the mistakes that it must find, planted
ones included.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.plugins.attention_reference import Case, attend, exactly, inputs
from tests.plugins.library import (
    BFLOAT16,
    FP8,
    GXX,
    GXX_WARNINGS,
    INCLUDES,
    PLUGINS,
    HostMemory,
    Library,
    LibraryError,
    run,
)

pytestmark = pytest.mark.slow

ORDERS = (0, 1, 2)  # forward, reverse, random
Primitive = Callable[..., str | None]


@pytest.fixture(scope="module")
def primitives(emulated_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """primitives.cu beside this file, compiled with the emulator."""
    path = tmp_path_factory.mktemp("primitives") / "libprimitives.so"
    objects = [str(emulated_path.parent / name) for name in ("emulator.o", "instructions.o")]
    source = ("-x", "c++", str(Path(__file__).with_name("primitives.cu")), "-x", "none")
    run([*GXX, *GXX_WARNINGS, *INCLUDES, "-shared", *source, *objects, "-o", str(path)])
    library = ctypes.CDLL(str(path))
    library.run_primitive.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def primitive(primitives: ctypes.CDLL) -> Primitive:
    """`primitive(name, a, b, c, threads=32, order=0, seed=0)` runs a kernel; what the emulator
    found, or None.
    """
    nothing = np.zeros(64, np.float32)

    def call(
        name: str,
        a=nothing,
        b=nothing,
        c=nothing,
        *,
        threads: int = 32,
        order: int = 0,
        seed: int = 0,
    ):
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)]
        found = primitives.run_primitive(name.encode(), threads, order, seed, *pointers)
        return found.decode() if found else None

    return call


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("columns", [False, True])
def test_product(primitive: Primitive, columns: bool, order: int) -> None:
    """Copies, matrix loads and one 16x8x16 product against NumPy: small integers, so nothing is
    rounded.
    """
    rng = np.random.default_rng(order)
    a, b = (rng.integers(-8, 8, shape).astype(BFLOAT16) for shape in ((16, 16), (16, 8)))
    c = rng.integers(-100, 100, (16, 8)).astype(np.float32)
    expected = c + a.astype(np.float32) @ b.astype(np.float32)
    given = np.ascontiguousarray(b.T) if columns else b
    assert (
        primitive(
            "product with columns" if columns else "product", a, given, c, order=order, seed=7
        )
        is None
    )
    np.testing.assert_array_equal(c, expected)


def test_exchanges(primitive: Primitive) -> None:
    c, lane = np.zeros((6, 32), np.float32), np.arange(32)
    assert primitive("exchanges", c=c) is None
    up, down = np.where(lane < 3, lane, lane - 3), np.where(lane > 28, lane, lane + 3)
    same = np.where(lane % 7 < 4, 5, 4)  # of 32 lanes
    np.testing.assert_array_equal(
        c, [lane ^ 5, up, down, np.full(32, 7), np.full(32, 11), same]
    )


def test_bfloat16_rounds_as_ml_dtypes_does(primitives: ctypes.CDLL) -> None:
    """To the nearest, ties to even; infinities and NaN stay what they are."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    edges = [0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38]
    numbers = np.concatenate([bits.view(np.float32), np.array(edges, np.float32)])
    got = np.empty_like(numbers)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (numbers, got)]
    primitives.round_to_bfloat16(*pointers, numbers.size)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, numbers.astype(BFLOAT16).astype(np.float32))


def test_fp8_rounds_as_ml_dtypes_does_and_saturates(primitives: ctypes.CDLL) -> None:
    """To the nearest, ties to even, 448 for all that is beyond it; NaN stays what it is. And every
    code comes back.
    """
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    every = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)
    between = (every[1:126] + every[:125]) / 2
    near = []
    for x in (between, every[:126]):
        near += [np.nextafter(x, np.float32(limit)) for limit in (-1e9, 1e9)]
    edges = np.array(
        [448, 449, 464, 465, 480, 1e9, np.inf, -np.inf, np.nan, 2**-10, 2**-11], np.float32
    )
    numbers = np.concatenate([bits.view(np.float32), every, between, *near, edges])
    numbers = np.concatenate([numbers, -numbers])[: 2 * numbers.size // 4 * 4]
    codes, back = np.empty(numbers.size, np.uint8), np.empty_like(numbers)
    primitives.round_to_fp8(
        *(ctypes.c_void_p(x.ctypes.data) for x in (numbers, codes, back)), numbers.size
    )
    with np.errstate(invalid="ignore"):
        expected = np.clip(numbers, -448, 448).astype(FP8)
    np.testing.assert_array_equal(back, expected.astype(np.float32))
    finite = ~np.isnan(numbers)
    np.testing.assert_array_equal(codes[finite], expected.view(np.uint8)[finite])


def test_fp8_codes_of_bfloat16_numbers_in_order(primitives: ctypes.CDLL) -> None:
    numbers = (np.random.default_rng(1).standard_normal(8 * 1000) * 3).astype(BFLOAT16)
    for scale in (1.0, 0.01, 0.0371):
        codes, back = np.empty(numbers.size, FP8), np.empty(numbers.size, np.float16)
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (numbers, codes, back)]
        primitives.narrow_and_widen(
            pointers[0], ctypes.c_float(scale), *pointers[1:], numbers.size // 8
        )
        expected = np.clip(numbers.astype(np.float32) / np.float32(scale), -448, 448).astype(
            FP8
        )
        np.testing.assert_array_equal(codes.view(np.uint8), expected.view(np.uint8))
        np.testing.assert_array_equal(back.astype(np.float32), expected.astype(np.float32))


def test_float16_rounds_as_numpy_does(primitives: ctypes.CDLL) -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, 100_000, dtype=np.uint32)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    edges = np.array([65504, 65519, 65520, 2**-24, 2**-25, 1.5 * 2**-25], np.float32)
    numbers = np.concatenate([bits.view(np.float32), every, edges, -edges])
    got = np.empty_like(numbers)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (numbers, got)]
    primitives.round_to_half(*pointers, numbers.size)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(got, numbers.astype(np.float16).astype(np.float32))


def test_queries_of_fp8_attention_stay_finite(primitives: ctypes.CDLL) -> None:
    """Exact where float16 has the number; its largest beyond it; infinities and NaN stay."""
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = bits.view(BFLOAT16).astype(np.float32)
    got = np.empty(2**16, np.float16)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (bits, got)]
    primitives.bfloat16_to_half(*pointers, numbers.size // 2)
    clipped = np.where(np.isfinite(numbers), np.clip(numbers, -65504, 65504), numbers)
    with np.errstate(invalid="ignore"):
        expected = clipped.astype(np.float16)
    np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))
    usual = (np.abs(numbers) >= 2.0**-14) & (np.abs(numbers) < 65504)
    np.testing.assert_array_equal(got[usual].astype(np.float32), numbers[usual])


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_is_kept(primitive: Primitive, order: int) -> None:
    c = np.zeros(64, np.float32)
    assert primitive("mirror", c=c, threads=64, order=order) is None
    np.testing.assert_array_equal(c, np.arange(64)[::-1])


def test_a_missing_barrier_shows(primitive: Primitive) -> None:
    """The warp that runs first finds poison where the other's numbers will be."""
    for order in ORDERS:
        c = np.zeros(64, np.float32)
        assert primitive("mirror without a barrier", c=c, threads=64, order=order) is None
        assert np.isnan(c).any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "arrived"),
    [("copy", True), ("copy without a wait", False), ("copy with a wait for others", False)],
)
def test_a_copy_lands_when_it_is_waited_for(
    primitive: Primitive, name: str, arrived: bool, order: int
) -> None:
    a, c = np.arange(8).astype(BFLOAT16), np.zeros(8, np.float32)
    assert primitive(name, np.resize(a, 64), c=c, order=order) is None
    np.testing.assert_array_equal(c, np.arange(8) if arrived else np.full(8, np.nan))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "leave before the barrier",
            r"block \(0, 0, 0\) cannot go on: 1 threads have returned \(the first is 5\), "
            r"63 threads wait at __syncthreads \(primitives.cu:\d+\) \(the first is 0\)",
        ),
        (
            "split warp",
            (
                r"__syncwarp \(primitives.cu:\d+\).*other lanes of the warp are at __ballot_sync"
                r" \(prim"
            ),
        ),
        (
            "misaligned load",
            (
                r"load_matrix_x4 \(primitives.cu:\d+\), block \(0, 0, 0\), thread \(1, 0, 0\):"
                r" .*aligned"
            ),
        ),
        (
            "load outside",
            r"load_matrix_x4 .*, thread \(31, 0, 0\): the address is outside the shared memory",
        ),
        (
            "write outside",
            r"block \(0, 0, 0\) wrote behind its 4096 bytes of dynamic shared memory",
        ),
        ("misaligned source", r"copy_async_16 .*: the global address is not 16-byte aligned"),
    ],
)
def test_mistakes_are_reported(primitive: Primitive, name: str, found: str) -> None:
    threads = 64 if "barrier" in name else 32
    assert re.match(found, primitive(name, threads=threads) or "nothing was found")


def test_it_goes_on_after_a_failure(primitive: Primitive) -> None:
    assert primitive("leave before the barrier", threads=64)
    test_a_barrier_is_kept(primitive, 0)


# ---- faults planted in the attention kernel: each must show in some order of one of these launches
# ----

LAUNCHES = [
    Case((130,), 8, 64, 1, 2),
    Case((100,), 16, 64, 1, 8),
    Case((70, 3), 8, 64, 1, 4, processors=132, spare=300),
    Case((70, 3, 400, 9, 100, 30), 8, 64, 2, 4, processors=1),  # several items a CTA
]
FP8_LAUNCHES = [replace(case, cache_scales=(0.01, 0.02)) for case in LAUNCHES]
TILE, DEAL = "attention_tile.cuh", "attention_deal.cuh"
OPERANDS = "attention_operands.cuh"
BARRIER = re.compile(r"^ *__syncthreads\(\);", re.MULTILINE)


def _without_barrier(text: str, number: int) -> str:
    place = list(BARRIER.finditer(text))[number]
    return text[: place.start()] + text[place.end() :]


def _planted(emulated: Path, folder: Path, source: str, text: str, *, fp8: bool) -> Library:
    """Return the emulated library with `text` as the file `source` of the attention kernel, for
    head_dim 64.
    """
    kernels, name = folder / "kernels", "attention_64_fp8.o" if fp8 else "attention_64.o"
    shutil.copytree(PLUGINS / "kernels", kernels)
    (kernels / source).write_text(text)
    includes = [f"-I{kernels}", *(flag for flag in INCLUDES if not flag.endswith("kernels"))]
    flags = ["-DDFLASH_HEAD_DIM=64", *["-DDFLASH_FP8_CACHE=1"] * fp8]
    run(
        [
            *GXX,
            *includes,
            "-c",
            "-x",
            "c++",
            *flags,
            str(kernels / "attention.cu"),
            "-o",
            str(folder / name),
        ]
    )
    rest = [str(path) for path in emulated.parent.glob("*.o") if path.name != name]
    run(["g++", "-shared", str(folder / name), *rest, "-o", str(folder / "libplanted.so")])
    return Library(folder / "libplanted.so", HostMemory(), emulated=True)


def _shows(library: Library, cases: list[Case]) -> bool:
    for case in cases:
        given = inputs(case)
        exact = attend(case, given, case.head_dim**-0.5, exactly)
        for order in ("forward", "reverse", "random"):
            library.order(order, 1)
            try:
                got = library.attention(
                    "verify",
                    given,
                    scale=case.head_dim**-0.5,
                    processors=case.processors,
                    cache_scales=case.cache_scales,
                )
            except LibraryError:
                return True
            error = np.abs(got["out"].astype(np.float64) - exact).max()
            if (
                not error < 0.1
            ):  # far above bfloat16's rounding of numbers near 1; NaN is not below it either
                return True
    return False


def _faults() -> list[tuple[str, int | str | None]]:
    counts = {
        source: len(BARRIER.findall((PLUGINS / "kernels" / source).read_text()))
        for source in (TILE, DEAL)
    }
    counts[DEAL] -= (
        1  # without its last, a CTA works on a slot that is not there: the test would die
    )
    barriers = [(source, number) for source, count in counts.items() for number in range(count)]
    return [*barriers, (TILE, "wait"), (TILE, None), (OPERANDS, None)]


@pytest.mark.parametrize(("source", "fault"), _faults())
def test_planted_faults_show(
    emulated_path: Path, tmp_path: Path, source: str, fault: int | str | None
) -> None:
    """Every barrier of the attention kernel is needed, and so is its wait for copies; as it is,
    nothing shows, with FP8 caches neither.
    """
    text, fp8 = (PLUGINS / "kernels" / source).read_text(), source == OPERANDS
    if fault == "wait":
        assert "copy_async_wait<1>();" in text
        text = text.replace("copy_async_wait<1>();", "copy_async_wait<2>();")
    elif isinstance(fault, int):
        text = _without_barrier(text, fault)
    library = _planted(emulated_path, tmp_path, source, text, fp8=fp8)
    assert _shows(library, FP8_LAUNCHES if fp8 else LAUNCHES) == (fault is not None)
