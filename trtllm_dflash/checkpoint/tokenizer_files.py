"""The files of a checkpoint that make its tokenizer; engines and quantized copies get them too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from trtllm_dflash.checkpoint.file_types import check_file_type
from trtllm_dflash.checkpoint.links import file_in
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.tokenizing.limits import MAX_FILE_BYTES

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def check_tokenizer_files(directory: Path) -> None:
    """Check what the names and first bytes of the tokenizer files in a directory tell.

    Raises:
        CheckpointError: for a link out of the checkpoint, a stand-in such as a pointer of Git LFS,
            or a file that is too large.
    """
    for _ in _tokenizer_files(directory):
        pass


def copy_tokenizer_files(src: Path, dst: Path) -> None:
    """Copy the tokenizer files that the directory `src` has into `dst`."""
    for path in _tokenizer_files(src):
        shutil.copyfile(path, dst / path.name)


def _tokenizer_files(directory: Path) -> Iterator[Path]:
    for name in TOKENIZER_FILES:
        path = file_in(directory, name)
        if not path.is_file():
            continue
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(
                f"{path} has {human_bytes(size)}, and a tokenizer's file at most"
                f" {human_bytes(MAX_FILE_BYTES)}. Get an intact copy of the file."
            )
        check_file_type(path)
        yield path
