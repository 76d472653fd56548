"""Loading is accounting: every tensor in the files is used, ignored for a written reason, or part
of one error.

Nothing here holds weights in memory: a Checkpoint says where each tensor lies, and the streaming
checks hold a chunk.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Generic, TypeVar

from trtllm_dflash.checkpoint import scan
from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.formats import (
    HF_QUANT_CONFIG,
    Quantization,
    WeightFormat,
    algos_of,
    read_quantization,
)
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.locate import find_directory, read_json_in
from trtllm_dflash.checkpoint.mxfp4 import BLOCKS, MAX_EXPONENT_BYTE, SCALES
from trtllm_dflash.checkpoint.quantized_tensors import (
    PACKED_DTYPES,
    Quantizable,
    StoredSpec,
    check_foreign_formats,
    check_quantization,
    expected_tensors,
    is_e8m0_scale,
    is_scale,
    without_unit_scales,
)
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.log import Progress
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import SHARED_TABLES, DrafterConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.tensor_specs import IgnoredSpec, expand_specs, resolve_shape
from trtllm_dflash.models.unsupported_drafters import (
    refuse_unsupported_in_files,
    refuse_unsupported_in_names,
)

_LOG = logging.getLogger(__name__)

Config = TypeVar("Config", TargetConfig, DrafterConfig)
_LISTED = 8


@dataclass(frozen=True)
class IgnoredTensor:
    """A tensor that is in the files and deliberately not used."""

    info: TensorInfo
    reason: str


@dataclass(frozen=True)
class Checkpoint(Generic[Config]):
    """A checked checkpoint: its configuration and where each used tensor lies, by its Hugging Face
    name.

    A tied head has no lm_head.weight. `dtype` is the safetensors dtype of most of the used bytes,
    codes and scales of quantized weights aside; `formats` are those of the quantized linears, by
    module.
    """

    directory: Path
    config: Config
    tensors: Mapping[str, TensorInfo]
    dtype: str
    ignored: Mapping[str, IgnoredTensor]
    quantization: Quantization = field(default_factory=Quantization)
    formats: Mapping[str, WeightFormat] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all used tensors on disk."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        """How many weights there are, whatever they are stored as; scales are none."""
        return sum(_num_weights(info) for name, info in self.tensors.items() if not is_scale(name))

    @property
    def stored_as(self) -> str:
        """How the weights are stored, for people: "BF16", or "NVFP4 and BF16"."""
        return f"{algos_of(self.formats.values())} and {self.dtype}" if self.formats else self.dtype

    def weight_bytes(self, bytes_per_weight: int, *, keeps_packed: bool) -> int:
        """Bytes of all weights in an engine: quantized ones as they are if it `keeps_packed`,
        converted otherwise.
        """
        return sum(self.bytes_by_format(bytes_per_weight, keeps_packed=keeps_packed).values())

    def _format_of(self, name: str) -> WeightFormat:
        """The format whose codes or scales a tensor has."""
        return (
            self.formats.get(name.rpartition(".")[0])
            or self.formats[name.removesuffix(BLOCKS).removesuffix(SCALES)]
        )

    def bytes_by_format(self, bytes_per_weight: int, *, keeps_packed: bool) -> dict[str, int]:
        """`weight_bytes` by ModelOpt's names of the formats; "": not quantized, or not any more."""
        if not keeps_packed:
            return {"": self.num_parameters * bytes_per_weight}
        found = Counter[str]()
        for name, info in self.tensors.items():
            if info.dtype not in WEIGHT_DTYPES:
                found[self._format_of(name).algo] += info.nbytes
            elif not is_scale(name):
                found[""] += prod(info.shape) * bytes_per_weight
        return dict(found)


def load_target(path_or_name: str | Path) -> Checkpoint[TargetConfig]:
    """Load and check a target from a directory or hub name; weights stay on disk."""
    directory = find_directory(path_or_name)
    where = f"target {directory}"
    config_json = _config_json(directory)
    quantization = read_quantization(config_json, read_json_in(directory, HF_QUANT_CONFIG), where)
    config = read_target_config(
        config_json, read_json_in(directory, "generation_config.json"), where
    )
    infos = read_all_tensor_infos(directory)
    config = _with_own_head(config, infos, quantization, where)
    checkpoint = _account(directory, where, config, infos, quantization)
    stored_head = checkpoint.ignored.get("lm_head.weight")
    if stored_head is not None:
        _check_same_values(
            stored_head.info,
            checkpoint.tensors["model.embed_tokens.weight"],
            f"{where}: tie_word_embeddings is true, but lm_head.weight is stored and differs from"
            " the embedding",
            "One of them is wrong: if the head is trained on its own, set tie_word_embeddings to"
            " false.",
        )
    return checkpoint


def load_drafter(path_or_name: str | Path) -> Checkpoint[DrafterConfig]:
    """Load and check a DFlash v1 drafter from a directory or hub name; weights stay on disk."""
    directory = find_directory(path_or_name, role="drafter")
    where = f"drafter {directory}"
    refuse_unsupported_in_files((path.name for path in directory.iterdir()), where)
    config_json = _config_json(directory)
    config = DrafterConfig.from_hf(config_json, where)
    quantization = read_quantization(config_json, read_json_in(directory, HF_QUANT_CONFIG), where)
    infos = read_all_tensor_infos(directory)
    refuse_unsupported_in_names(infos, where)
    return _account(directory, where, config, infos, quantization)


def check_pair(target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]) -> None:
    """Check that the drafter was made for this target; one error lists every contradiction with
    both numbers.
    """
    problems = pair_mismatches(target.config, drafter.config)
    if problems:
        raise CheckpointError(
            f"the drafter {drafter.directory} does not fit the target {target.directory}:"
            f" {'; '.join(problems)}. Pass the drafter that was trained for this target."
        )
    _check_shared_tables(target, drafter)


def pair_mismatches(theirs: TargetConfig, ours: DrafterConfig) -> list[str]:
    """Every contradiction between a target's configuration and a drafter's, with both numbers; []
    if they fit.
    """
    problems = []
    if ours.hidden_size != theirs.hidden_size:
        problems.append(
            f"hidden_size is {ours.hidden_size} in the drafter and {theirs.hidden_size} in the"
            " target"
        )
    if ours.vocab_size != theirs.vocab_size:
        problems.append(
            f"vocab_size is {ours.vocab_size} in the drafter and {theirs.vocab_size} in the target"
            " (if the target is a fine-tune that only added tokens, write its number into the"
            " drafter's config.json)"
        )
    if ours.mask_token_id >= theirs.vocab_size:
        problems.append(
            f"mask_token_id is {ours.mask_token_id}, but the target embeds ids 0 to"
            f" {theirs.vocab_size - 1}"
        )
    if ours.num_target_layers not in (None, theirs.num_layers):
        problems.append(
            f"num_target_layers is {ours.num_target_layers}, but the target has {theirs.num_layers}"
            " layers"
        )
    last = theirs.num_layers - 1
    beyond = [tap for tap in ours.target_layer_ids if tap > last]
    if beyond:
        problems.append(f"target_layer_ids has {beyond}, but the target's layers are 0 to {last}")
    if last in ours.target_layer_ids:
        problems.append(
            f"target_layer_ids has the last layer, {last}: drafters trained with Hugging Face saw"
            " it after the final norm, others before it, and the file does not say which"
        )
    return problems


def check_finite_with_progress(kind: str, checkpoint: Checkpoint[Any], progress: Progress) -> None:
    """`check_finite` of the target or the drafter (`kind`), with its progress in bytes."""
    phase, done = f"checking the {kind}", 0

    def read(size: int) -> None:
        nonlocal done
        done += size
        progress(phase, done, checkpoint.nbytes)

    check_finite(checkpoint, progress=read)


def check_finite(
    checkpoint: Checkpoint[Any], *, progress: Callable[[int], None] | None = None
) -> None:
    """Stream all used weights once and raise on the first NaN or Inf, and on the first scale that
    is not above zero.

    `progress` gets the bytes of each chunk read. Memory: one chunk of 8 MiB and its mask.
    """
    for name, info in checkpoint.tensors.items():
        if info.dtype == "U8":
            _check_exponents(name, info)  # any other byte is two numbers
            if progress is not None:
                progress(info.nbytes)
            continue
        scales = is_scale(name)
        index = scan.first_nonfinite(info, progress=progress)
        if index is None and scales:
            index = scan.first_nonpositive(info)
        if index is None:
            continue
        problem = f"{info.path}: tensor {name} has {info.array()[index]} at index {list(index)}."
        if scales or info.dtype in PACKED_DTYPES:
            raise CheckpointError(
                f"{problem} A scale is a finite number above zero, and ModelOpt writes others for a"
                " weight (or an activation in calibration) that is zero throughout. Exclude that"
                " module, and quantize again."
            )
        raise CheckpointError(
            f"{problem} A weight that is not finite makes every output NaN; get an intact copy of"
            " the checkpoint."
        )


def _check_exponents(name: str, info: TensorInfo) -> None:
    index = scan.first_above(info, MAX_EXPONENT_BYTE) if is_e8m0_scale(name) else None
    if index is not None:
        raise CheckpointError(
            f"{info.path}: tensor {name} has {info.array()[index]} at index {list(index)}. It is"
            f" the exponent of a scale, 2^(byte - 127), and at most {MAX_EXPONENT_BYTE}: beyond it"
            " numbers leave float32, and 255 is NaN. Get an intact copy of the checkpoint."
        )


def _config_json(directory: Path) -> dict[str, Any]:
    config_json = read_json_in(directory, "config.json")
    if config_json is None:
        raise CheckpointError(
            f"{directory}: there is no config.json in it. Pass the directory of a Hugging Face"
            " checkpoint."
        )
    return config_json


def _with_own_head(
    config: TargetConfig, infos: Mapping[str, TensorInfo], quantization: Quantization, where: str
) -> TargetConfig:
    """A tied head that is stored quantized is a head of its own: the embedding's copy could not
    be.
    """
    head = infos.get("lm_head.weight")
    if (
        not config.tie_word_embeddings
        or head is None
        or head.dtype not in PACKED_DTYPES
        or not quantization.is_quantized
    ):
        return config
    _LOG.info(
        "%s: tie_word_embeddings is true, but lm_head is stored quantized: it is used as it is"
        " stored",
        where,
    )
    return replace(config, tie_word_embeddings=False)


def _account(
    directory: Path,
    where: str,
    config: Config,
    infos: Mapping[str, TensorInfo],
    quantization: Quantization,
) -> Checkpoint[Config]:
    """Sort every tensor into used and ignored; one error lists all that is missing, unexpected or
    of a wrong kind.
    """
    rows, ignorable = (
        expand_specs(config.tensors.used, config),
        expand_specs(config.tensors.ignored, config),
    )
    quantizable = Quantizable.from_rows(rows, config)
    formats = quantizable.formats(quantization)
    ignorable |= {
        name: IgnoredSpec(name, reason="experts multiply their activations as they are.")
        for name in (
            f"{module}.input_scale" for module in quantizable.expert_linears if module in formats
        )
    }
    expected = without_unit_scales(expected_tensors(rows, config, formats, quantization), infos)
    check_foreign_formats(infos.keys() - expected.keys() - quantizable.expert_tensor_names, where)
    check_quantization(infos, quantizable, quantization, where)
    allowed = {
        name: StoredSpec(tuple(resolve_shape(row, config)), row.shape)
        for name, row in ignorable.items()
    }
    _refuse_mismatch(where, infos, expected, allowed)
    tensors = {name: infos[name] for name in expected}
    ignored = {
        name: IgnoredTensor(infos[name], row.reason)
        for name, row in ignorable.items()
        if name in infos
    }
    plain = {
        name: info
        for name, info in tensors.items()
        if info.dtype not in PACKED_DTYPES and not is_scale(name)
    }
    return Checkpoint(
        directory, config, tensors, _majority_dtype(plain), ignored, quantization, formats
    )


def _refuse_mismatch(
    where: str,
    infos: Mapping[str, TensorInfo],
    expected: dict[str, StoredSpec],
    allowed: dict[str, StoredSpec],
) -> None:
    present = {name: stored for name, stored in (allowed | expected).items() if name in infos}
    problems = {
        "missing": [
            f"{name} {list(stored.shape)}" for name, stored in expected.items() if name not in infos
        ],
        "unexpected": [
            f"{name} {list(info.shape)}" for name, info in infos.items() if name not in present
        ],
        "wrong shape": [
            f"{name} has {list(infos[name].shape)}, expected {list(stored.shape)} ="
            f" [{', '.join(stored.symbols)}]"
            for name, stored in present.items()
            if (stored.symbols or name in expected) and not stored.admits(infos[name].shape)
        ],
        "wrong dtype": [
            f"{name} is {infos[name].dtype} (supported: {', '.join(stored.dtypes)})"
            for name, stored in expected.items()
            if name in infos and infos[name].dtype not in stored.dtypes
        ],
    }
    lines: list[str] = [
        f"  {kind}: {_abridged(entries)}" for kind, entries in problems.items() if entries
    ]
    if lines:
        text = "\n".join([f"{where}: the tensors do not match config.json:", *lines])
        raise CheckpointError(f"{text}\nPass the config.json that belongs to these weights.")


def _num_weights(info: TensorInfo) -> int:
    return prod(info.shape) * (2 if info.dtype == "U8" else 1)


def _abridged(entries: list[str]) -> str:
    more = len(entries) - _LISTED
    return "; ".join(entries[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _majority_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    nbytes: dict[str, int] = {}
    for info in tensors.values():
        nbytes[info.dtype] = nbytes.get(info.dtype, 0) + info.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype])


def _check_shared_tables(
    target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> None:
    for name, target_name in SHARED_TABLES.items():
        copy = drafter.ignored.get(name)
        original = target.tensors.get(target_name) or target.tensors["model.embed_tokens.weight"]
        # Codes of a quantized head are not the numbers of a copy; that has the right sizes, as its
        # loader has seen.
        if copy is not None and original.dtype not in PACKED_DTYPES:
            _check_same_values(
                copy.info,
                original,
                f"drafter {drafter.directory}: its own {name} differs from the target's"
                f" {original.name}",
                "A DFlash v1 drafter uses the target's tables; one with tables of its own is not"
                " supported.",
            )


def _check_same_values(copy: TensorInfo, original: TensorInfo, problem: str, advice: str) -> None:
    index = scan.first_difference(copy, original)
    if index is not None:
        raise CheckpointError(f"{problem} at index {list(index)}. {advice}")
