"""A checkpoint's tensors, from one .safetensors file or from shards with an index."""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.checkpoint.file_types import other_models_in
from trtllm_dflash.checkpoint.links import file_in
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.safetensors import TensorInfo, read_tensor_infos
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.hf_config import quote

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def has_weights_in(directory: Path) -> bool:
    """Tell whether there are weights to look at, in one file or in shards."""
    return any((directory / name).exists() for name in (SINGLE, INDEX))


def read_all_tensor_infos(directory: Path) -> dict[str, TensorInfo]:
    """Return every tensor of the directory by name.

    Raises: CheckpointError: also for a shard that does not hold exactly what the index lists.
    """
    has_single, has_index = ((directory / name).exists() for name in (SINGLE, INDEX))
    if has_single and has_index:
        raise CheckpointError(
            f"{directory}: both {SINGLE} and {INDEX} are present, and they may differ. Remove the"
            " stale one."
        )
    if has_single:
        return read_tensor_infos(file_in(directory, SINGLE))
    if has_index:
        return _read_shards(directory)
    pickles = sorted(
        path.name for path in directory.iterdir() if path.suffix in _PICKLE_SUFFIXES
    )
    if pickles:
        raise CheckpointError(
            f"{directory}: the weights are pickled ({quote(pickles[:3])}), and reading a pickle can"
            " run code. Convert them to safetensors."
        )
    others = "".join(f" It has {other}" for other in other_models_in(directory))
    raise CheckpointError(f"{directory}: there is neither {SINGLE} nor {INDEX} in it.{others}")


def _read_shards(directory: Path) -> dict[str, TensorInfo]:
    weight_map = (read_json_in(directory, INDEX) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise CheckpointError(
            f"{directory / INDEX}: weight_map must map tensor names to file names."
        )
    infos: dict[str, TensorInfo] = {}
    for file in sorted(set(weight_map.values())):
        path = file_in(directory, file)
        if not path.exists():
            count = sum(1 for value in weight_map.values() if value == file)
            raise CheckpointError(
                f"{path}: this shard is missing; {INDEX} puts {count} tensors into it. Download it"
                " again."
            )
        in_shard = read_tensor_infos(path)
        listed = {name for name, value in weight_map.items() if value == file}
        for problem, names in (
            ("lacks", listed - set(in_shard)),
            ("holds, unlisted,", set(in_shard) - listed),
        ):
            if names:
                raise CheckpointError(
                    f"{path}: against {INDEX}, this shard {problem} {quote(sorted(names)[:3])}"
                    f" ({len(names)} in all). The index belongs to other files; download the"
                    " checkpoint again."
                )
        infos |= in_shard
    return infos
