"""The tensors that a checkpoint must have, as data: Hugging Face's names, and shapes in fields.

`{i}` runs over the layers, `{j}` over the experts of a layer. A size is a product of configuration
fields and numbers, as in "num_q_heads*head_dim" and "2*moe.intermediate_size". `when` and `unless`
name a field that decides whether a tensor exists. A field may differ by layer (`by_layer` of the
configuration): sizes and conditions of a layer's tensors then follow that layer's value. A tensor
in neither half of the table is an error: see checkpoint/loader.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

TABLE_PREFIX = "model."


@dataclass(frozen=True)
class TensorSpec:
    """One row: a tensor's name, its symbolic shape, and the fields under which it exists.

    A linear's weight is [out, in] and may be quantized. So may experts, [number, in, out]. No other
    tensor may. `layer` is set by `expand_specs`: the layer whose fields the row reads.
    """

    name: str
    shape: tuple[str, ...]
    when: str | None = None
    unless: str | None = None
    is_linear: bool = False
    are_experts: bool = False
    layer: int | None = None

    @property
    def is_per_expert(self) -> bool:
        """Tell whether there is one for each expert of a layer."""
        return "{j}" in self.name

    def applies(self, config: Any) -> bool:
        """Tell whether the tensor exists under this configuration, in the row's layer."""
        if self.when and not _value(config, self.when, self.layer):
            return False
        return not (self.unless and _value(config, self.unless, self.layer))


@dataclass(frozen=True, kw_only=True)
class IgnoredSpec(TensorSpec):
    """One row: a tensor that may be in the files and is not used, for `reason`.

    An empty shape is not checked.
    """

    shape: tuple[str, ...] = ()
    reason: str


Row = TypeVar("Row", bound=TensorSpec)


@dataclass(frozen=True)
class IgnoredPrefix:
    """Tensors with names that begin so: they may be in the files and are not used, for `reason`."""

    prefix: str
    reason: str


@dataclass(frozen=True)
class TensorTable:
    """All tensors of one architecture's checkpoints.

    `stored_under`: in the files a name may begin with this in the place of "model.".
    """

    used: tuple[TensorSpec, ...]
    ignored: tuple[IgnoredSpec, ...]
    ignored_prefixes: tuple[IgnoredPrefix, ...] = ()
    stored_under: str = ""

    def ignored_reason(self, name: str) -> str | None:
        """Return why a tensor of another part of the model is not used; None: it is of no other."""
        rows = (row for row in self.ignored_prefixes if name.startswith(row.prefix))
        return next((row.reason for row in rows), None)

    def canonical_name(self, name: str) -> str:
        """Return a name in the files as the table has it."""
        if self.stored_under and name.startswith(self.stored_under):
            return TABLE_PREFIX + name.removeprefix(self.stored_under)
        return name

    def is_stored_under(self, names: Iterable[str]) -> bool:
        """Tell whether files with tensors of these names have the table's under the prefix."""
        prefix = self.stored_under
        return bool(prefix) and any(name.startswith(prefix) for name in names)

    def stored_name(self, name: str) -> str:
        """Return the other name that a tensor or module of the table may have in the files."""
        if self.stored_under and name.startswith(TABLE_PREFIX):
            return self.stored_under + name.removeprefix(TABLE_PREFIX)
        return name


def expand_specs(rows: Iterable[Row], config: Any) -> dict[str, Row]:
    """Return the rows that apply by tensor name, each layer's and expert's spelled out."""
    expanded: dict[str, Row] = {}
    for row in rows:
        for bound in _by_layer(row, config):
            if not bound.applies(config):
                continue
            name = bound.name.replace("{i}", str(bound.layer))
            if not bound.is_per_expert:
                expanded[name] = bound
                continue
            for expert in range(_value(config, "moe.num_experts", bound.layer)):
                expanded[name.replace("{j}", str(expert))] = bound
    return expanded


def resolve_shape(row: TensorSpec, config: Any) -> list[int]:
    """Evaluate a row's symbolic shape in its layer."""
    shape = []
    for size in row.shape:
        factors = [_size(config, factor, row.layer) for factor in size.split("*")]
        shape.append(math.prod(factors))
    return shape


def resolve_shapes(rows: Mapping[str, TensorSpec], config: Any) -> dict[str, tuple[int, ...]]:
    """Evaluate the shapes of expanded rows by name.

    All experts of a layer have one row, which is evaluated once.
    """
    of_row = {id(row): row for row in rows.values()}
    shapes = {key: tuple(resolve_shape(row, config)) for key, row in of_row.items()}
    return {name: shapes[id(row)] for name, row in rows.items()}


def _by_layer(row: Row, config: Any) -> Iterator[Row]:
    if "{i}" not in row.name:
        yield row
        return
    for layer in range(config.num_layers):
        yield replace(row, layer=layer)


def _size(config: Any, factor: str, layer: int | None) -> int:
    return int(factor) if factor.isdigit() else int(_value(config, factor, layer))


def _value(config: Any, path: str, layer: int | None) -> Any:
    """Return the field under a dotted path, None where a part of the configuration is absent."""
    first, *rest = path.split(".")
    by_layer = getattr(config, "by_layer", {}).get(first)
    value = getattr(config, first) if by_layer is None or layer is None else by_layer[layer]
    for name in rest:
        value = None if value is None else getattr(value, name)
    return value
