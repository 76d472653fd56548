"""Weights in registers: every code with every scale, bit for bit what the formats say.

Both by integer instructions and by conversions, as PTX states these. So the two ways agree.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.plugins.library import BFLOAT16, CONVERSIONS, FP8, GXX, GXX_WARNINGS, INCLUDES, run
from tests.plugins.moe_reference import CODES

pytestmark = pytest.mark.slow

# Of an eight, where the products want it: by integer instructions, and by conversions.
ORDERS = {False: np.array([0, 4, 1, 5, 2, 6, 3, 7]), True: np.array([0, 1, 4, 5, 2, 3, 6, 7])}
Decode = Callable[..., np.ndarray]


class Decoder(ctypes.CDLL):
    """moe_decode.cpp beside this file, compiled with the emulator's names."""

    converts: bool
    order: np.ndarray


@pytest.fixture(scope="module", params=[False, True], ids=["integers", "conversions"])
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Decoder:
    """Compile the decoder for one way."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the emulator")
    path = tmp_path_factory.mktemp("decode") / "libdecode.so"
    source = str(Path(__file__).with_name("moe_decode.cpp"))
    way = [CONVERSIONS] if request.param else []
    run([*GXX, *way, *GXX_WARNINGS, *INCLUDES, "-shared", source, "-o", str(path)])
    library = Decoder(str(path))
    library.converts, library.order = request.param, ORDERS[request.param]
    library.nvfp4_worth.restype = ctypes.c_float
    return library


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture
def decode(decoder: Decoder) -> Decode:
    """`decode("mxfp4", bytes, scales)`: the elements of 16 bytes as bfloat16, in their order."""

    def call(name: str, block: np.ndarray, *scales: np.ndarray) -> np.ndarray:
        pairs = np.full(16, 0x7FFF7FFF, np.uint32)
        getattr(decoder, f"expand_{name}")(
            _pointer(block), *map(_pointer, scales), _pointer(pairs)
        )
        ordered = pairs.view(BFLOAT16).reshape(4, 8)
        made = np.empty_like(ordered)
        made[:, decoder.order] = ordered
        return made.reshape(-1)

    return call


# Every code in every place of a word, once.
BLOCKS = [np.roll(np.arange(32, dtype=np.uint8) % 16, shift) for shift in range(16)]


def _packed(codes: np.ndarray) -> np.ndarray:
    return codes[::2] | codes[1::2] << 4


def _bits(numbers: np.ndarray) -> np.ndarray:
    """Return the bits of bfloat16; all NaN are one."""
    numbers = numbers.astype(BFLOAT16)
    return np.where(np.isnan(numbers.astype(np.float32)), 0x7FC0, numbers.view(np.uint16))


@pytest.mark.filterwarnings("ignore:overflow")
def test_mxfp4_is_code_times_power_of_two(decode: Decode, decoder: Decoder) -> None:
    """All scales: 2^-127, whose products are subnormal, to 2^127, where 2 and more are infinite;
    255 is NaN.

    A usual scale converts to normal numbers and zeros alone, of which PTX says all.
    """
    for scale in range(256):
        stored = np.array([scale], np.uint8)
        worth = np.nan if scale == 255 else 2.0 ** (scale - 127)
        sizes = np.abs(CODES[CODES != 0] * worth)
        is_normal = bool(((sizes >= 2.0**-126) & (sizes < 2.0**128)).all())
        is_rare = not is_normal if decoder.converts else scale > 128
        for codes in BLOCKS:
            block, expected = _packed(codes), _bits(CODES[codes] * worth)
            assert decoder.is_rare(_pointer(block), _pointer(stored)) == is_rare
            np.testing.assert_array_equal(
                _bits(decode("mxfp4_rare", block, stored)), expected, err_msg=f"{scale}"
            )
            if not is_rare:
                np.testing.assert_array_equal(
                    _bits(decode("mxfp4", block, stored)), expected, err_msg=f"{scale}"
                )


def test_nvfp4_is_code_times_block_scale(decode: Decode, decoder: Decoder) -> None:
    """All E4M3 scales, the two of a block being different ones; the sum is worth 2^8 more, and the
    expert's scale.
    """
    for scale in range(256):
        stored = np.array([scale, (scale * 37 + 11) % 256], np.uint8)
        worth = np.repeat(stored.view(FP8).astype(np.float64), 16) * 2.0**-8
        for codes in BLOCKS:
            expected = CODES[codes] * worth
            np.testing.assert_array_equal(
                _bits(decode("nvfp4", _packed(codes), stored)), _bits(expected)
            )
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(
                expected[finite].astype(BFLOAT16).astype(np.float64), expected[finite]
            )
    assert decoder.nvfp4_worth(_pointer(np.array([0.75], np.float32))) == 0.75 * 256


def test_fp8_is_its_code(decoder: Decoder) -> None:
    """In their order. A NaN is 480 by integer instructions, and one by conversions."""
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(FP8).astype(np.float32)
    if not decoder.converts:
        expected[np.isnan(expected)] = [480, -480]
    scale, pairs = np.ones(1, np.float32), np.zeros(8, np.uint32)
    for block, numbers in zip(codes.reshape(-1, 16), expected.reshape(-1, 16), strict=True):
        decoder.expand_fp8(_pointer(block), _pointer(scale), _pointer(pairs))
        np.testing.assert_array_equal(pairs.view(BFLOAT16).astype(np.float32), numbers)


def test_bfloat16_is_as_it_is(decoder: Decoder) -> None:
    numbers, pairs = np.arange(8, dtype=np.uint16) * 257, np.zeros(4, np.uint32)
    decoder.expand_bfloat16(_pointer(numbers), _pointer(pairs))
    np.testing.assert_array_equal(pairs.view(np.uint16), numbers)


def test_what_codes_are_multiplied_with_has_their_order(decoder: Decoder) -> None:
    eight, ordered = np.arange(8, dtype=np.uint16), np.zeros(8, np.uint16)
    decoder.order_eight(_pointer(eight), _pointer(ordered))
    np.testing.assert_array_equal(ordered, decoder.order)
    assert [decoder.place(int(i) + 16) for i in decoder.order] == [
        16 + place for place in range(8)
    ]


def test_both_orders_give_a_product_the_same_four_of_an_eight() -> None:
    by_integers, by_conversions = (np.sort(order.reshape(2, 4)) for order in ORDERS.values())
    np.testing.assert_array_equal(by_integers, by_conversions)
