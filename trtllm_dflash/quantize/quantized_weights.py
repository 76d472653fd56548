"""Which tensors of a model are quantized, and the names that its files give to all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.checkpoint.formats import MXFP4, WeightFormat
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantization_checks import quantized_to
from trtllm_dflash.checkpoint.quantized_tensors import Quantizable
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.models.tensor_specs import expand_specs

# Where ModelOpt's two descriptions list the modules that it left out.
_EXCLUSIONS = ("exclude_modules", "ignore")


def quantized_weights(checkpoint: Checkpoint[Any], fmt: WeightFormat | None) -> frozenset[str]:
    """Return the names of a model's weights that are quantized to a format; None: there are none.

    MXFP4 is of gpt-oss's experts, the others are of linears. Heads, embeddings, the drafter's `fc`
    and the gates of linear attention are not. Convolutions, routers and the gate of a shared expert
    are no linears of the table.
    """
    if fmt is None:
        return frozenset()
    config = checkpoint.config
    rows = expand_specs(config.tensors.used, config)
    model = Quantizable.from_rows(rows, config)
    if fmt is MXFP4:
        return frozenset(model.experts)
    stated = quantized_to(fmt.name)
    return frozenset(f"{name}.weight" for name in model.linears if not stated.excluded_by(name))


@dataclass(frozen=True)
class StoredNames:
    """The names that a model's files give to its tensors and modules.

    A model with images has its decoder under a prefix, and other parts, which nothing here reads.
    """

    original: Checkpoint[Any]
    infos: Mapping[str, TensorInfo]  # all tensors in the files
    is_under_prefix: bool

    @classmethod
    def of(cls, original: Checkpoint[Any]) -> StoredNames:
        """Return the names in the files of a checkpoint, whose headers are read."""
        infos = read_all_tensor_infos(original.directory)
        return cls(original, infos, original.config.tensors.is_stored_under(infos))

    def tensors(
        self, packed: Mapping[str, TensorInfo], replaced: Collection[str]
    ) -> dict[str, TensorInfo]:
        """Return all tensors of the quantized checkpoint.

        `packed` are there instead of the `replaced` ones of the original. Other parts are kept as
        they are.
        """
        found = {}
        for name, info in self.original.tensors.items():
            if name not in replaced:
                found[self._stored(name)] = info
        found |= {self._stored(name): info for name, info in packed.items()}
        table = self.original.config.tensors
        others = [name for name in self.infos if table.ignored_reason(name) is not None]
        return found | {name: self.infos[name] for name in others}

    def description(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return a description of ModelOpt's with these names.

        Parts that are kept as they are become exclusions: other engines read them.
        """
        prefixes = [part.prefix for part in self.original.config.tensors.ignored_prefixes]
        present = [
            each for each in prefixes if any(name.startswith(each) for name in self.infos)
        ]
        kept = [f"{prefix.removesuffix('.')}*" for prefix in present]

        def rename(value: Any) -> Any:
            if not isinstance(value, Mapping):
                return value
            result = {key: rename(inner) for key, inner in value.items()}
            for key in _EXCLUSIONS:
                if isinstance(value.get(key), list):
                    result[key] = [*map(self._stored, value[key]), *kept]
            return result

        renamed: dict[str, Any] = rename(described)
        return renamed

    def _stored(self, name: str) -> str:
        return self.original.config.tensors.stored_name(name) if self.is_under_prefix else name
