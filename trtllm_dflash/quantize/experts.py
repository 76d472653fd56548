"""The experts of a layer as transformers keeps and calls them: tensors of all, one module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.moe import MoEConfig
from trtllm_dflash.quantize.coverage import ExpertCoverage

MODULE = "mlp.experts"  # in a decoder layer


@dataclass(frozen=True)
class StackedExperts:
    """A layer's experts in two tensors, to be filled with those of a checkpoint.

    `tensors` by transformers' names: gate_up_proj [experts, 2·intermediate, hidden], the rows of
    gate first, and down_proj [experts, hidden, intermediate]. `parts` are the same memory, by the
    names of each expert's linears. Both are empty where the checkpoint's experts are stacked.
    """

    tensors: Mapping[str, torch.Tensor]
    parts: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, config: TargetConfig, dtype: torch.dtype, device: str) -> StackedExperts:
        """Return the memory for a layer's experts; its contents are undefined."""
        moe = config.moe
        if moe is None or moe.fused:
            return cls({}, {})
        inner, hidden = moe.intermediate_size, config.hidden_size
        gate_up = torch.empty(moe.num_experts, 2 * inner, hidden, dtype=dtype, device=device)
        down = torch.empty(moe.num_experts, hidden, inner, dtype=dtype, device=device)
        parts = {}
        for expert in range(moe.num_experts):
            name = f"{MODULE}.{expert}"
            parts[f"{name}.gate_proj.weight"] = gate_up[expert, :inner]
            parts[f"{name}.up_proj.weight"] = gate_up[expert, inner:]
            parts[f"{name}.down_proj.weight"] = down[expert]
        return cls({f"{MODULE}.gate_up_proj": gate_up, f"{MODULE}.down_proj": down}, parts)


class ExpertWatch:
    """Counts the tokens that reach each expert while layers are calibrated.

    `moe` None: there is nothing to count. `with_all`: every token goes through every expert before
    it goes through those that its router has chosen. Quantizers see that, and its outputs are
    dropped.
    """

    def __init__(self, moe: MoEConfig | None, *, with_all: bool) -> None:
        self._moe = moe
        self._with_all = with_all
        self._tokens: dict[str, tuple[int, ...]] = {}

    @contextlib.contextmanager
    def on(self, layer: Any, prefix: str) -> Iterator[None]:
        """Count in a layer; `prefix` is its name, with a dot."""
        moe = self._moe
        if moe is None:
            yield
            return
        tokens = torch.zeros(moe.num_experts, dtype=torch.int64)

        def before(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            hidden, chosen, _ = args
            tokens.add_(torch.bincount(chosen.reshape(-1).cpu(), minlength=moe.num_experts))
            if self._with_all:
                _run_all(module, hidden, moe)

        hook = layer.get_submodule(MODULE).register_forward_pre_hook(before)
        try:
            yield
        finally:
            hook.remove()
        self._tokens[f"{prefix}{MODULE}"] = tuple(tokens.tolist())

    @property
    def coverage(self) -> ExpertCoverage | None:
        """Return what was counted; None if there was nothing to count."""
        return ExpertCoverage(self._tokens, self._with_all) if self._tokens else None


def _run_all(module: Any, hidden: torch.Tensor, moe: MoEConfig) -> None:
    """Run all experts on hidden states [tokens, hidden], as many at a time as a token has."""
    shares = hidden.new_zeros(len(hidden), moe.top_k)
    for first in range(0, moe.num_experts, moe.top_k):
        some = torch.arange(
            first, min(first + moe.top_k, moe.num_experts), device=hidden.device
        )
        chosen = some.expand(len(hidden), -1)
        module.forward(hidden, chosen, shares[:, : len(some)])  # not called: no hook of ours
