"""The typed reader: types, aliases, defaults, bounds, and the full path and value in every
error.
"""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.hf_config import Allowed, HfReader, parse_json

DATA: dict[str, Any] = {
    "size": 7,
    "eps": 1e-6,
    "whole": 3,
    "flag": True,
    "name": "x",
    "none": None,
    "ids": [1, 2],
    "nested": {"size": 7, "other": 8, "deep": {"n": 1}},
}


@pytest.fixture
def reader() -> HfReader:
    return HfReader(DATA, "model /m")


def test_values_and_defaults(reader: HfReader) -> None:
    assert reader.read(int, "size") == 7
    assert reader.read(float, "whole") == 3.0
    assert isinstance(reader.read(float, "whole"), float)
    assert reader.read(bool, "flag") is True
    assert reader.read(str, "name") == "x"
    assert reader.read(int, "absent", "nested.other") == 8
    assert reader.read(int, "nested.size", "size") == 7
    assert reader.read(int, "none", default=None) is None
    assert reader.read(int, "size.of.a.number", default=5) == 5
    assert reader.read_list(int, "ids") == (1, 2)
    assert reader.read_list(int, "size", scalar=True) == (7,)
    assert reader.read_list(int, "absent", default=()) == ()
    assert reader.section("absent") is None


def test_section_keeps_the_full_path(reader: HfReader) -> None:
    section = reader.section("nested")
    assert section is not None
    with pytest.raises(
        ConfigError, match=r"model /m: nested\.other is 8, expected true or false"
    ):
        section.read(bool, "other")
    with pytest.raises(
        ConfigError, match=r"the key nested\.absent is missing\. It has no safe default; add it"
    ):
        section.read(bool, "absent")


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        (int, "flag", "flag is true, expected an integer"),
        (int, "eps", "eps is 1e-06, expected an integer"),
        (float, "flag", "flag is true, expected a finite number"),
        (bool, "size", "size is 7, expected true or false"),
        (str, "size", "size is 7, expected a string"),
        (int, "nested.deep", 'nested.deep is {"n": 1}, expected an integer'),
        (int, "none", "the key none is missing"),
    ],
)
def test_wrong_types(reader: HfReader, kind: Any, path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reader.read(kind, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1 << 60])
def test_floats_that_are_none(value: float) -> None:
    with pytest.raises(ConfigError, match=r"eps is .*, expected a finite number"):
        HfReader({"eps": value}, "m").read(float, "eps")


def test_bounds(reader: HfReader) -> None:
    with pytest.raises(ConfigError, match="size is 7, expected at least 8 and at most 9"):
        reader.read(int, "size", low=8, high=9)
    with pytest.raises(ConfigError, match="size is 7, expected at most 6"):
        reader.read(int, "size", high=6)


def test_contradicting_aliases(reader: HfReader) -> None:
    with pytest.raises(
        ConfigError, match=r"size is 7 but nested\.other is 8\. Make them agree or drop one"
    ):
        reader.read(int, "size", "nested.other")
    with pytest.raises(ConfigError, match="a is 1 but b is true"):
        HfReader({"a": 1, "b": True}, "m").read(int, "a", "b")


def test_missing_names_every_alias(reader: HfReader) -> None:
    with pytest.raises(ConfigError, match=r"the key absent or nested.absent is missing"):
        reader.read(int, "absent", "nested.absent")


def test_lists(reader: HfReader) -> None:
    with pytest.raises(ConfigError, match="size is 7, expected a list, each entry an integer"):
        reader.read_list(int, "size")
    with pytest.raises(ConfigError, match=r"ids\[1\] is true, expected an integer"):
        HfReader({"ids": [1, True]}, "m").read_list(int, "ids")
    with pytest.raises(ConfigError, match=r"size is 7, expected an object"):
        reader.section("size")


def test_only(reader: HfReader) -> None:
    reader.check_allowed(
        [
            Allowed("size", (7,), "never"),
            Allowed("absent", (1,), "never"),
            Allowed("none", (1,), "never"),
        ]
    )
    with pytest.raises(
        ConfigError, match=r'name is "x", and only "y" or "z" is supported: because.'
    ):
        reader.check_allowed([Allowed("name", ("y", "z"), "because.")])
    with pytest.raises(
        ConfigError, match="flag is true, and only 1 is supported: bool is not int"
    ):
        reader.check_allowed([Allowed("flag", (1,), "bool is not int")])


def test_long_values_are_cut() -> None:
    with pytest.raises(ConfigError, match=r"a is \"x{76}\.\.\., expected an integer"):
        HfReader({"a": "x" * 1000}, "m").read(int, "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "w: this is not valid JSON"),
        (b"\xff{}", "w: this is not valid JSON"),
        (b"[]", "w: expected a JSON object, got list"),
        (b'{"a": 1, "a": 1}', 'w: the key "a" appears twice'),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', 'w: the key "b" appears twice'),
        (b'{"a": ' + b"9" * 5000 + b"}", "w: this is not valid JSON .*digits"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "w: the JSON is nested too deeply"),
    ],
)
def test_bad_json(text: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        parse_json(text, "w", error=CheckpointError)
