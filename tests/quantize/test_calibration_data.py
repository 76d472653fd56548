"""Calibration text: the forms of a file, and the sequences made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.tiny_models import VOCAB
from trtllm_dflash.errors import UsageError
from trtllm_dflash.quantize.calibration_data import Sample, encode_samples, read_samples
from trtllm_dflash.runtime.text.chat_format import ChatFormat
from trtllm_dflash.runtime.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(make_target: Callable[..., Path]) -> Tokenizer:
    found = Tokenizer.find(make_target("llama", tokenizer=True))
    assert found is not None
    return found


def encode(
    samples: list[Sample], tokenizer: Tokenizer | None, *, seq_len: int = 512, limit: int = 99
) -> list[list[int]]:
    return encode_samples(
        samples, tokenizer, ChatFormat(), vocab_size=VOCAB, seq_len=seq_len, limit=limit
    )


def test_builtin_set_is_varied_and_fits_a_chat_model(tokenizer: Tokenizer) -> None:
    samples = read_samples(None)
    assert len(samples) >= 40
    assert len({sample.text for sample in samples}) == len(samples)
    assert 15 < sum(sample.prompt is not None for sample in samples) < 35
    assert sum(not sample.text.isascii() for sample in samples) > 5


def test_read_samples_of_every_json_form(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "Hi"},
        {"text": "abc", "index": 3},
        {"prompt": "Hi", "text": "Yo"},
        {"prompt": [1, 2, 3]},
    ]
    rows += [{"prompt": [1, 2], "text": "!"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    chat = tokenizer.encode_chat("Hi")
    want = [
        chat,
        tokenizer.encode("abc"),
        chat + tokenizer.encode("Yo"),
        [1, 2, 3],
        [1, 2, *tokenizer.encode("!")],
    ]
    assert encode(read_samples(path), tokenizer) == want


def test_read_samples_splits_text_into_paragraphs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\ufeffOne\nline more.\n\n \n\nTwo.\n", encoding="utf-8")
    samples = read_samples(path)
    assert [sample.text for sample in samples] == ["One\nline more.", "Two."]
    assert encode(samples, tokenizer) == [
        tokenizer.encode("One\nline more."),
        tokenizer.encode("Two."),
    ]


def test_encode_samples_splits_long_text_up_to_the_limit(tokenizer: Tokenizer) -> None:
    sample = Sample(tuple(range(50)), "", "here")
    pieces = encode([sample, sample], None, seq_len=20)
    assert pieces == [list(range(20)), list(range(20, 40)), list(range(40, 50))] * 2
    assert encode([sample, sample], None, seq_len=20, limit=4) == pieces[:4]


@pytest.mark.parametrize(("length", "kept"), [(31, 31), (32, 32), (40, 32), (97, 96)])
def test_encode_samples_ends_at_multiples_of_32(length: int, kept: int) -> None:
    assert encode([Sample((1,) * length, "", "here")], None) == [[1] * kept]


def test_encode_samples_without_a_chat_template(
    make_target: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_target("llama", tokenizer=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        settings = json.loads((source / name).read_text())
        settings.pop("chat_template", None)
        (tmp_path / name).write_text(json.dumps(settings))
    tokenizer = Tokenizer.find(tmp_path)
    assert tokenizer is not None
    assert encode([Sample("Hi", "Yo", "here")], tokenizer) == [
        tokenizer.encode("Hi") + tokenizer.encode("Yo")
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "--calib-file {path} is empty. Give text of the kind that the model will see"),
        ("\n \n\n", "--calib-file {path} is empty"),
        ('{"prompt": "a"}\n{"prompt": }\n', "{path}, line 2: not JSON"),
        ('{"question": "a"}\n', '{path}, line 1: expected {{"prompt": a string or token ids}}'),
        ('{"prompt": ""}\n', "{path}, line 1: expected"),
        ('{"prompt": [1, true]}\n', "{path}, line 1: expected"),
        ('{"prompt": "a", "text": 7}\n', "{path}, line 1: expected"),
        ('{"text": ""}\n', "{path}, line 1: expected"),
        (b"\xff\xfe\x00", "--calib-file {path}: byte 0 is not UTF-8. Save the file as UTF-8."),
    ],
)
def test_read_samples_refuses_unusable_files(
    content: str | bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        read_samples(path)
    assert str(caught.value).startswith(words.format(path=path))


def test_read_samples_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"--calib-file .*none.txt: cannot be read \(No such file or directory\)",
    ):
        read_samples(tmp_path / "none.txt")


def test_read_samples_refuses_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[1, 2]\n")
    with pytest.raises(UsageError, match="line 1: expected"):
        read_samples(path)


def test_encode_samples_refuses_unknown_tokens() -> None:
    with pytest.raises(
        UsageError, match="row 3: token 97 is outside the target's vocabulary of 97"
    ):
        encode([Sample((1, 97), "", "row 3")], None)


def test_encode_samples_refuses_text_without_a_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"row 1: the target has no tokenizer.json.*token ids"):
        encode([Sample(None, "abc", "row 1")], None)
