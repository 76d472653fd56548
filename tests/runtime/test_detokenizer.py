"""Any token ids in any steps: the stream's text is that of all tokens at once."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.runtime.decoders import families
from trtllm_dflash.runtime.text.detokenizer import REPLACEMENT, IncrementalDetokenizer

FAMILIES = families()


IDS = st.lists(st.integers(0, 2**31), max_size=120)
WIDTHS = st.lists(st.integers(1, 8), min_size=1, max_size=9)


def check_stream(name: str, numbers: list[int], widths: list[int]) -> None:
    """Check the text of ids, each taken modulo the size of the vocabulary, in steps of widths."""
    family = FAMILIES[name]
    ids = [number % family.num_ids for number in numbers]
    text = family.expected(ids)
    assert family.decode(ids) == text
    stream = IncrementalDetokenizer(family.decode)
    pieces = []
    begin = 0
    while begin < len(ids):
        width = widths[len(pieces) % len(widths)]
        pieces.append(stream.push(ids[begin : begin + width]))
        begin += width
        assert text.startswith("".join(pieces))
    assert "".join(pieces) + stream.finish() == text


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25)
@given(numbers=IDS, widths=WIDTHS)
@example(numbers=[0xE6, 0x97, 0xA5, 0xC3], widths=[1])
@example(numbers=[0x80] * 100, widths=[1])
@example(numbers=[256] * 100, widths=[3])
def test_joined_stream_is_the_text(name: str, numbers: list[int], widths: list[int]) -> None:
    check_stream(name, numbers, widths)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=600)
@given(numbers=IDS, widths=WIDTHS)
def test_joined_stream_of_many_ids(name: str, numbers: list[int], widths: list[int]) -> None:
    check_stream(name, numbers, widths)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_cut_character_leaves_what_was_finished(name: str) -> None:
    family = FAMILIES[name]
    for data in ("日é".encode()[:-1], "日".encode() + b"\xff", b"\xf0\x9f\x99", b"a\xe6\x97b"):
        assert family.decode(list(data)) == data.decode(errors="replace")


@pytest.mark.parametrize("name", ["llama", "byte-level"])
def test_a_half_character_is_held_for_three_bytes(name: str) -> None:
    family = FAMILIES[name]
    bad = next(token for token in range(256) if family.decode([token] * 2) == 2 * REPLACEMENT)
    stream = IncrementalDetokenizer(family.decode)
    held = 0
    for count in range(1, 100):
        fresh = stream.push([bad])
        held += 1 - len(fresh)
        assert held <= 3, count
        assert set(fresh) <= {REPLACEMENT}


@pytest.mark.parametrize("name", FAMILIES)
def test_few_and_short_calls(name: str) -> None:
    family = FAMILIES[name]
    lengths = []

    def decode(token_ids: list[int]) -> str:
        lengths.append(len(token_ids))
        return family.decode(token_ids)

    stream = IncrementalDetokenizer(decode)  # type: ignore[arg-type]
    for number in range(400):
        stream.push([number * 7 % family.num_ids])
    assert max(lengths) <= 32
    assert len(lengths) <= 450
