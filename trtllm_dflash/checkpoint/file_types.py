"""Files that are something else than their names say, told by their first bytes and neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trtllm_dflash.errors import CheckpointError

_SNIFFED_BYTES = 512
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_SHOWN = 3
_SIGNATURES = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a ZIP archive, as pickled weights are",
    b"\x1f\x8b": "a gzip archive",
    b"Entry not found": "an error message of a download",
    b"Repository Not Found": "an error message of a download",
    b"Access to model": "an error message of a download",
}
# What a directory without config.json or weights may hold instead, and what to do with it.
_OTHER_MODELS = (
    (
        "adapter_config.json",
        "an adapter (LoRA), which is not a whole model",
        "Merge it into its base model and save that: `model.merge_and_unload()` of peft",
    ),
    ("*.gguf", "GGUF weights", "Get the model's safetensors files, from which they were made"),
    (
        "consolidated*.safetensors",
        "weights in the format of the model's author",
        "Get the files of the Hugging Face format: model.safetensors or its shards",
    ),
    (
        "consolidated*.pth",
        "pickled weights in the format of the model's author",
        "Get the files of the Hugging Face format: model.safetensors or its shards",
    ),
    (
        "pytorch_model*.bin",
        "pickled weights, and reading a pickle can run code",
        "Convert them to safetensors, or get files that are",
    ),
    (
        "diffusion_pytorch_model*.safetensors",
        "an image model",
        "Give the directory of a language model",
    ),
)


def check_file_type(path: Path) -> None:
    """Check that a file is no stand-in for the one that its name says.

    Raises:
        CheckpointError: for a pointer of Git LFS, a web page, or another file format.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(_SNIFFED_BYTES)
    except OSError:
        return  # whoever reads it has the words for that
    if begin.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in {path.parent}, or"
            f" `hf download NAME --local-dir {path.parent}`."
        )
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not the file: what was saved is probably an error page, or the"
            " page that shows the file. Download the file itself."
        )
    for signature, what in _SIGNATURES.items():
        if begin.startswith(signature):
            raise CheckpointError(
                f"{path} is {what}, not what its name says. Download it again."
            )


def other_models_in(directory: Path) -> Iterator[str]:
    """Yield a sentence for each other model format that a directory holds."""
    for pattern, what, advice in _OTHER_MODELS:
        found = sorted(path.name for path in directory.glob(pattern))
        if found:
            more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
            names = ", ".join(found[:_MAX_SHOWN])
            yield f"{names}{more}: {what}. {advice}."
