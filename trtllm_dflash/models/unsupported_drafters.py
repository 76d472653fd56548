"""Drafters that look like DFlash and are not: one table, by which each is refused by name.

A drafter loaded as another variant computes without an error and drafts noise. So the table is
checked three times: against the file names, config.json and the tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models import dspark
from trtllm_dflash.models.hf_config import HfReader

ARCHITECTURE = "DFlashDraftModel"
_INSTEAD = "Use a drafter of DFlash, DFlash 2 or DSpark (plain Markov head)."


@dataclass(frozen=True)
class ConfigMarker:
    """A config key that gives a variant away, by any value outside `neutral`.

    If `equals` is given, only these values do; if `contains` is, only texts with that part, without
    the neutral ones. A path that ends with "*" stands for every key that begins so.
    """

    path: str
    neutral: tuple[object, ...] = ()
    equals: tuple[object, ...] = ()
    contains: str = ""

    def evidence(self, reader: HfReader) -> str | None:
        """Return the path of the key that is present with a telling value, None without one."""
        for path in self._paths(reader):
            value = reader.get(path)
            if value is not None and self._tells(value):
                return path
        return None

    def matches(self, reader: HfReader) -> bool:
        """Tell whether the key is present with a telling value."""
        return self.evidence(reader) is not None

    def _paths(self, reader: HfReader) -> list[str]:
        if not self.path.endswith("*"):
            return [self.path]
        section, _, start = self.path.removesuffix("*").rpartition(".")
        found = reader.get(section) if section else reader.data
        if not isinstance(found, Mapping):
            return []
        names = sorted(name for name in found if name.startswith(start))
        return [f"{section}.{name}" if section else name for name in names]

    def _tells(self, value: object) -> bool:
        entries = value if isinstance(value, list) else [value]
        if self.contains:
            texts = [entry for entry in entries if isinstance(entry, str)]
            return any(self.contains in text and text not in self.neutral for text in texts)
        if self.equals:
            return any(entry in self.equals for entry in entries)
        return value not in self.neutral


@dataclass(frozen=True)
class UnsupportedDrafter:
    """A variant of drafter, why it is refused, and how it is recognized.

    `markers` are keys of config.json, `tensors` regular expressions of names, `files` file names.
    """

    name: str
    reason: str
    markers: tuple[ConfigMarker, ...]
    tensors: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def _architectures(*names: str) -> ConfigMarker:
    return ConfigMarker("architectures", equals=names)


def _architectures_of(name: str) -> tuple[ConfigMarker, ...]:
    """Return markers for every class of a method, and for the method as a projector."""
    projector = name.lower()
    return (
        ConfigMarker("architectures", contains=name),
        *(replace(marker, equals=(projector,)) for marker in markers("projector_type")),
    )


def markers(name: str, *, neutral: tuple[object, ...] = ()) -> tuple[ConfigMarker, ...]:
    """Return markers for both places that published drafters use: the top and dflash_config."""
    return tuple(ConfigMarker(path, neutral) for path in (name, f"dflash_config.{name}"))


# The first match wins, so specific variants stand before the features that several of them share.
UNSUPPORTED_DRAFTERS: tuple[UnsupportedDrafter, ...] = (
    UnsupportedDrafter(
        "Laguna",
        "its fused projections, output gates and norms per tap are not supported.",
        markers=(
            _architectures("DFlashLagunaForCausalLM", "LagunaDFlashDraftModel"),
            ConfigMarker("model_type", equals=("laguna",)),
            ConfigMarker("gating"),
        ),
        tensors=(r"\.(qkv_proj|g_proj)\.", r"^aux_hidden_norms\."),
    ),
    UnsupportedDrafter(
        "LiLiCorr",
        f"its correction head is not supported. {_INSTEAD}",
        markers=(
            *_architectures_of("LiLiCorr"),
            *markers("lilicorr_*"),
        ),
        tensors=(r"(^|\.)lilicorr",),
    ),
    UnsupportedDrafter(
        "XPress",
        f"its own layers are not supported. {_INSTEAD}",
        markers=_architectures_of("XPress"),
    ),
    UnsupportedDrafter(
        "DSpark of other layers",
        f"only its Qwen3 layers are supported ({' and '.join(dspark.ARCHITECTURES)}). {_INSTEAD}",
        markers=(
            ConfigMarker("architectures", dspark.ARCHITECTURES, contains="DSpark"),
            ConfigMarker("architectures", contains="MuseSpark"),
        ),
    ),
    UnsupportedDrafter(
        "Domino",
        f"its correction head is not supported. {_INSTEAD}",
        markers=(*_architectures_of("Domino"), *markers("domino_*")),
        tensors=(r"(^|\.)(domino\w*|gru)\.",),
    ),
    UnsupportedDrafter(
        "AdaFlash",
        f"its threshold head is not supported. {_INSTEAD}",
        markers=(*_architectures_of("AdaFlash"), *markers("thresh_head_*")),
        tensors=(r"(^|\.)thresh_head",),
    ),
    UnsupportedDrafter(
        "another correction head",
        f"its projector is not known. {_INSTEAD}",
        markers=markers("projector_type", neutral=("dflash", dspark.PROJECTOR)),
    ),
    UnsupportedDrafter(
        "MiMo",
        "its value scale, mask embedding and sinks of some layers are not supported.",
        markers=(
            *markers("attention_value_scale", neutral=(1, 1.0)),
            ConfigMarker("add_swa_attention_sink_bias", equals=(True,)),
            ConfigMarker("add_full_attention_sink_bias", equals=(True,)),
        ),
        tensors=(r"^mask_embedding$",),
        files=("mask_embedding.pt",),
    ),
    UnsupportedDrafter(
        "Muse-Glimmer",
        "its encoder layout is not supported.",
        markers=(
            ConfigMarker("model_type", equals=("muse_glimmer_assistant",)),
            _architectures("MuseGlimmerAssistantModel", "MuseGlimmerAssistantDraftModel"),
        ),
        tensors=(r"^encoder\.(fc|output_norm_enc)\.",),
    ),
    UnsupportedDrafter(
        "EAGLE-3",
        "it drafts one token per pass. Use a drafter of DFlash, DFlash 2 or DSpark.",
        markers=(_architectures("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"),),
        tensors=(r"^midlayer\.",),
    ),
)


def refuse_unsupported_in_config(reader: HfReader) -> None:
    """Raise ConfigError naming the variant that config.json gives away."""
    for unsupported in UNSUPPORTED_DRAFTERS:
        for marker in unsupported.markers:
            path = marker.evidence(reader)
            if path is not None:
                raise ConfigError(_refusal(reader.where, path, unsupported))


def refuse_unsupported_in_names(names: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming the variant that the tensor names give away."""
    listed = sorted(names)
    for unsupported in UNSUPPORTED_DRAFTERS:
        for pattern in map(re.compile, unsupported.tensors):
            hit = next((name for name in listed if pattern.search(name)), None)
            if hit is not None:
                raise CheckpointError(_refusal(where, f"tensor {hit}", unsupported))


def refuse_unsupported_in_files(files: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming the variant that a file beside the weights gives away."""
    present = set(files)
    for unsupported in UNSUPPORTED_DRAFTERS:
        for file in unsupported.files:
            if file in present:
                raise CheckpointError(_refusal(where, file, unsupported))


def _refusal(where: str, evidence: str, unsupported: UnsupportedDrafter) -> str:
    variant = f"a drafter of the variant '{unsupported.name}'"
    return f"{where}: {evidence} shows {variant}: {unsupported.reason}"
