"""What must be known of a pair to hand it over: read from its config.json files, or from the
registry.

TensorRT-LLM runs more targets and drafters than we build, so these files are not put to our own
readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.catalog.pairs import pair_of, unknown_name_message
from trtllm_dflash.catalog.published import target_json
from trtllm_dflash.checkpoint.formats import HF_QUANT_CONFIG
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.drafter import MAX_BLOCK_SIZE, MIN_BLOCK_SIZE
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.unsupported_drafters import UNSUPPORTED_DRAFTERS

# Dialects that TensorRT-LLM's DFlash has code for; those of other decoding types; of the rest its
# pages say nothing.
TAKEN = ("DFlash 2", "Laguna")
_OTHER_TYPES = ("DSpark or Domino", "EAGLE-3")


@dataclass(frozen=True)
class PairFacts:
    """A pair as TensorRT-LLM is told of it: an absolute directory or a hub name each, and what
    splitting depends on.
    """

    target: str
    drafter: str
    architecture: str
    block_size: int
    heads: dict[str, int]  # query heads by model, as far as they are known
    experts: int  # 0: dense
    quantization: str  # of the target, in words
    drafter_variant: str | None  # of the drafter, where it is not DFlash v1


def read_pair(target: str, drafter: str | None) -> PairFacts:
    """The facts of a pair.

    Raises: UsageError: if a model is neither a directory nor in the registry, or the drafter is
    none for TensorRT-LLM or for this target. ConfigError: for a config.json that lacks what is
    needed.
    """
    target_name, target_reader, quant_file = _target(target)
    drafter_name, drafter_reader = _drafter(target, drafter)
    variant = next(
        (
            row
            for row in UNSUPPORTED_DRAFTERS
            if any(marker.matches(drafter_reader) for marker in row.markers)
        ),
        None,
    )
    if variant is not None and variant.name in _OTHER_TYPES:
        raise UsageError(
            f"drafter {drafter_name}: it is of the variant '{variant.name}', for which TensorRT-LLM"
            " has another decoding_type than DFlash. Give a DFlash drafter"
        )
    _check_pair(target_name, target_reader, drafter_name, drafter_reader)
    architectures = target_reader.read_list(str, "architectures")
    readers = {"target": target_reader, "drafter": drafter_reader}
    heads = {role: _number(reader, "num_attention_heads") for role, reader in readers.items()}
    return PairFacts(
        target=target_name,
        drafter=drafter_name,
        architecture=architectures[0] if architectures else "unknown",
        block_size=drafter_reader.read(
            int, "dflash_config.block_size", "block_size", low=MIN_BLOCK_SIZE, high=MAX_BLOCK_SIZE
        ),
        heads={role: count for role, count in heads.items() if count},
        experts=_number(target_reader, "num_local_experts")
        or _number(target_reader, "num_experts"),
        quantization=_quantization(target_reader, quant_file),
        drafter_variant=variant.name if variant else None,
    )


def _target(name: str) -> tuple[str, HfReader, dict[str, Any] | None]:
    path = Path(name)
    if path.is_dir():
        quant_file = read_json_in(path, HF_QUANT_CONFIG)
        return str(path.resolve()), HfReader(_config(path), f"target {path}"), quant_file
    pair = pair_of(name)
    if pair is None:
        raise UsageError(f"{unknown_name_message(name, 'target')}. Give its directory.")
    repository = pair.target.repository
    return repository, HfReader(target_json(pair.target), f"target {repository}"), None


def _drafter(target: str, name: str | None) -> tuple[str, HfReader]:
    path = Path(name) if name else None
    if path is not None and path.is_dir():
        return str(path.resolve()), HfReader(_config(path), f"drafter {path}")
    if name is not None:
        pair = pair_of(name, "drafter")
        if pair is None:
            raise UsageError(f"{unknown_name_message(name, 'drafter')}. Give its directory.")
    else:
        pair = None if Path(target).is_dir() else pair_of(target)
        if pair is None:
            raise UsageError(
                "--drafter is missing, and a target's directory brings none: give its directory or"
                " name."
            )
    if pair.drafter.block_size is None:
        raise UsageError(
            f"drafter {pair.drafter.repository}: its block size is not published; give its"
            " directory."
        )
    drafter = pair.drafter
    published = {
        "architectures": [drafter.architecture],
        **drafter.config,
    }  # and nothing in place of what is not
    return drafter.repository, HfReader(published, f"drafter {drafter.repository}")


def _check_pair(target: str, theirs: HfReader, drafter: str, ours: HfReader) -> None:
    """Refuse sizes that contradict each other, as far as both are known: TensorRT-LLM would only
    say so on the GPUs.
    """
    sizes = {
        "hidden_size": "hidden_size",
        "vocab_size": "vocab_size",
        "num_target_layers": "num_hidden_layers",
    }
    pairs = {name: (_number(ours, name), _number(theirs, other)) for name, other in sizes.items()}
    problems = [
        f"{name} is {mine} in the drafter, and {sizes[name]} {yours} in the target"
        for name, (mine, yours) in pairs.items()
        if mine and yours and mine != yours
    ]
    if problems:
        raise UsageError(
            f"the drafter {drafter} does not fit the target {target}: {'; '.join(problems)}. Give"
            " the drafter that was trained for this target."
        )


def _config(directory: Path) -> dict[str, Any]:
    config = read_json_in(directory, "config.json")
    if config is None:
        raise UsageError(
            f"{directory}: there is no config.json in it. Give the directory of a Hugging Face"
            " checkpoint."
        )
    return config


def _number(reader: HfReader, name: str) -> int:
    """A size, which models with images keep in text_config; 0 if it is not there."""
    return reader.read(int, name, f"text_config.{name}", default=0, low=0)


def _quantization(reader: HfReader, quant_file: dict[str, Any] | None) -> str:
    if quant_file is not None:
        reader = HfReader({"quantization_config": quant_file.get("quantization", {})}, reader.where)
    method = reader.read(
        str, "quantization_config.quant_algo", "quantization_config.quant_method", default=None
    )
    return method or "none: the weights are as trained"
