"""Loading is accounting: every tensor is used, ignored for a written reason, or part of one error.

Nothing here holds weights in memory: a Checkpoint says where each tensor lies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from trtllm_dflash.checkpoint.actual_quantization import (
    settle_quantization,
    without_unfit_blocks,
)
from trtllm_dflash.checkpoint.draft_vocab import own_vocabulary
from trtllm_dflash.checkpoint.file_types import other_models_in
from trtllm_dflash.checkpoint.formats import (
    HF_QUANT_CONFIG,
    Layout,
    Quantization,
    WeightFormat,
    algos_of,
)
from trtllm_dflash.checkpoint.held_weights import HeldWeights, num_weights
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.locate import find_directory, read_json_in
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.checkpoint.quantization_checks import (
    check_foreign_formats,
    check_quantization,
    may_have_input_scale,
)
from trtllm_dflash.checkpoint.quantized_layouts import (
    by_modelopts_names,
    stored_name,
    with_experts_apart,
)
from trtllm_dflash.checkpoint.quantized_tensors import (
    PACKED_DTYPES,
    Quantizable,
    StoredSpec,
    expected_tensors,
    is_scale,
    without_unit_scales,
)
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.checkpoint.scan import check_same_values
from trtllm_dflash.checkpoint.stored_layouts import drafter_in_usual_layout, in_usual_layout
from trtllm_dflash.checkpoint.text_part import (
    drafter_quantization,
    text_part,
    text_quantization,
)
from trtllm_dflash.checkpoint.tokenizer_files import check_tokenizer_files
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.generation_config import unmet_settings
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.tensor_specs import IgnoredSpec, expand_specs, resolve_shape
from trtllm_dflash.models.unsupported_drafters import (
    refuse_unsupported_in_files,
    refuse_unsupported_in_names,
)

_LOG = logging.getLogger(__name__)

Config = TypeVar("Config", TargetConfig, DrafterConfig)
_MAX_LISTED = 8


@dataclass(frozen=True)
class IgnoredTensor:
    """A tensor that is in the files and deliberately not used."""

    info: TensorInfo
    reason: str


@dataclass(frozen=True)
class Checkpoint(HeldWeights, Generic[Config]):
    """A checked checkpoint: its configuration, and where each used tensor lies, by name.

    A tied head has no lm_head.weight. `dtype` is the safetensors dtype of most used bytes, without
    packed weights and scales. `formats` are those of the quantized linears, by module.
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
        """Return the bytes of all used tensors on disk."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        """Return how many weights there are, however they are stored; scales do not count."""
        return sum(
            num_weights(info) for name, info in self.tensors.items() if not is_scale(name)
        )

    @property
    def stored_as(self) -> str:
        """Return how the weights are stored, for people: "BF16", or "NVFP4 and BF16"."""
        return (
            f"{algos_of(self.formats.values())} and {self.dtype}"
            if self.formats
            else self.dtype
        )


def load_target(path_or_name: str | Path) -> Checkpoint[TargetConfig]:
    """Load and check a target from a directory or hub name; weights stay on disk."""
    directory = find_directory(path_or_name)
    where = f"target {directory}"
    config_json = _config_json(directory)
    quantization = read_quantization(
        config_json, read_json_in(directory, HF_QUANT_CONFIG), where, has_weights=True
    )
    config = read_target_config(
        config_json, read_json_in(directory, "generation_config.json"), where
    )
    check_tokenizer_files(directory)
    text = text_part(read_all_tensor_infos(directory), config.tensors, where)
    quantization = text_quantization(quantization, config.tensors)
    quantization = settle_quantization(quantization, text.infos, where)
    infos = by_modelopts_names(text.infos, quantization.layout, where)
    infos = with_experts_apart(infos, config, where)
    infos = in_usual_layout(infos, config)
    config = _with_own_head(config, infos, quantization, where)
    checkpoint = _match_tensors(directory, where, config, infos, quantization)
    others = {name: IgnoredTensor(*row) for name, row in text.ignored.items()}
    checkpoint = replace(checkpoint, ignored={**checkpoint.ignored, **others})
    stored_head = checkpoint.ignored.get("lm_head.weight")
    if stored_head is not None:
        check_same_values(
            stored_head.info,
            checkpoint.tensors["model.embed_tokens.weight"],
            f"{where}: tie_word_embeddings is true, but lm_head.weight is stored and differs from"
            " the embedding",
            "One of them is wrong: if the head is trained on its own, set tie_word_embeddings to"
            " false.",
        )
    return checkpoint


def warn_of_unmet_settings(target: Checkpoint[TargetConfig]) -> None:
    """Name what the target's files ask of Hugging Face's generate and an engine does not do."""
    config_json = read_json_in(target.directory, "config.json") or {}
    generation_config = read_json_in(target.directory, "generation_config.json")
    for warning in unmet_settings(generation_config, config_json):
        _LOG.warning("target %s: %s", target.directory, warning)


def load_drafter(path_or_name: str | Path) -> Checkpoint[DrafterConfig]:
    """Load and check a drafter from a directory or hub name; weights stay on disk."""
    directory = find_directory(path_or_name, role="drafter")
    where = f"drafter {directory}"
    refuse_unsupported_in_files((path.name for path in directory.iterdir()), where)
    config_json = _config_json(directory)
    config = DrafterConfig.from_hf(config_json, where)
    quantization = read_quantization(
        config_json, read_json_in(directory, HF_QUANT_CONFIG), where, has_weights=True
    )
    infos = read_all_tensor_infos(directory)
    refuse_unsupported_in_names(infos, where)
    quantization = settle_quantization(drafter_quantization(quantization), infos, where)
    infos = by_modelopts_names(infos, quantization.layout, where)
    infos = drafter_in_usual_layout(infos, where)
    checkpoint = _match_tensors(directory, where, config, infos, quantization)
    own_vocabulary(infos, config, where)
    return checkpoint


def _config_json(directory: Path) -> dict[str, Any]:
    config_json = read_json_in(directory, "config.json")
    if config_json is None:
        others = "".join(f" It has {other}" for other in other_models_in(directory))
        raise CheckpointError(
            f"{directory}: there is no config.json in it. Pass the directory of a Hugging Face"
            f" checkpoint.{others}"
        )
    return config_json


def _with_own_head(
    config: TargetConfig,
    infos: Mapping[str, TensorInfo],
    quantization: Quantization,
    where: str,
) -> TargetConfig:
    """Untie a tied head that is stored quantized: it cannot be a copy of the embedding."""
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


def _match_tensors(
    directory: Path,
    where: str,
    config: Config,
    infos: Mapping[str, TensorInfo],
    quantization: Quantization,
) -> Checkpoint[Config]:
    """Sort every tensor into used and ignored.

    One error lists all that are missing, unexpected or of a wrong shape or dtype.
    """
    quantization = without_unfit_blocks(quantization, infos)
    rows = expand_specs(config.tensors.used, config)
    ignorable = expand_specs(config.tensors.ignored, config)
    quantizable = Quantizable.from_rows(rows, config)
    formats = quantizable.formats(quantization)
    for module in quantizable.linears.keys() & formats.keys():
        if not formats[module].has_input_scale and may_have_input_scale(module, quantization):
            name = f"{module}.input_scale"
            reason = "activations are multiplied as they are."
            ignorable[name] = IgnoredSpec(name, reason=reason)
    expected = without_unit_scales(expected_tensors(rows, config, formats, quantization), infos)
    check_foreign_formats(
        infos.keys() - expected.keys() - quantizable.expert_tensor_names, where
    )
    check_quantization(infos, quantizable, quantization, where)
    allowed = {
        name: StoredSpec(tuple(resolve_shape(row, config)), row.shape)
        for name, row in ignorable.items()
    }
    names = _stored_names(expected, infos, config, formats, quantization.layout)
    _refuse_mismatch(where, infos, expected, allowed, names)
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


def _stored_names(
    expected: Iterable[str],
    infos: Mapping[str, TensorInfo],
    config: TargetConfig | DrafterConfig,
    formats: Mapping[str, WeightFormat],
    layout: Layout,
) -> dict[str, str]:
    """Return the names that the files have, or should have, by those of the table."""
    table = config.tensors
    is_under = table.is_stored_under(info.name for info in infos.values())
    names = {}
    for name in expected:
        fmt = formats.get(name.rpartition(".")[0])
        whole = table.stored_name(name) if is_under else name
        names[name] = stored_name(whole, layout, is_packed=_is_packed(fmt))
    return names


def _refuse_mismatch(
    where: str,
    infos: Mapping[str, TensorInfo],
    expected: dict[str, StoredSpec],
    allowed: dict[str, StoredSpec],
    names: Mapping[str, str],
) -> None:
    """Raise CheckpointError for all differences; `names` are those that the files should have."""
    present = {name: stored for name, stored in (allowed | expected).items() if name in infos}
    problems = {
        "missing": [
            f"{names[name]} {list(stored.shape)}"
            for name, stored in expected.items()
            if name not in infos
        ],
        "unexpected": [
            f"{info.name} {list(info.shape)}"
            for name, info in infos.items()
            if name not in present
        ],
        "wrong shape": [
            f"{infos[name].name} has {list(infos[name].shape)}, expected {list(stored.shape)} ="
            f" [{', '.join(stored.symbols)}]"
            for name, stored in present.items()
            if (stored.symbols or name in expected) and not stored.admits(infos[name].shape)
        ],
        "wrong dtype": [
            f"{infos[name].name} is {infos[name].dtype} (supported: {', '.join(stored.dtypes)})"
            for name, stored in expected.items()
            if name in infos and infos[name].dtype not in stored.dtypes
        ],
    }
    lines: list[str] = [
        f"  {problem}: {_abridged(entries)}" for problem, entries in problems.items() if entries
    ]
    if lines:
        text = "\n".join([f"{where}: the tensors do not match config.json:", *lines])
        raise CheckpointError(f"{text}\nPass the config.json that belongs to these weights.")


def _is_packed(fmt: WeightFormat | None) -> bool:
    return fmt is not None and fmt.group_size is not None


def _abridged(entries: list[str]) -> str:
    more = len(entries) - _MAX_LISTED
    return "; ".join(entries[:_MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _majority_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    nbytes: dict[str, int] = {}
    for info in tensors.values():
        nbytes[info.dtype] = nbytes.get(info.dtype, 0) + info.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype])
