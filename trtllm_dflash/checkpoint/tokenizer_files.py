"""The files of a checkpoint that make its tokenizer; engines and quantized copies get them too."""

from __future__ import annotations

import shutil
from pathlib import Path

from trtllm_dflash.checkpoint.locate import file_in

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


def copy_tokenizer_files(src: Path, dst: Path) -> None:
    """Copy the tokenizer files that the directory `src` has into `dst`."""
    for name in TOKENIZER_FILES:
        path = file_in(src, name)
        if path.is_file():
            shutil.copyfile(path, dst / name)
