"""What config.pbtxt tells the model, as parameters of Triton's model configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.checks import parse_integer
from trtllm_dflash.options.queueing import MAX_WAITING
from trtllm_dflash.options.shared import DEFAULT_PREFIX_CACHE_MIB

# How long requests may go on when the model is unloaded or the server ends; below Triton's
# --exit-timeout-secs of 30.
DRAIN_SECONDS = 20
_TEXTS = ("engine_dir", "engine_digest")
_MAY_BE_0 = ("prefix_cache_mib",)
# Parameters that Triton's Python backend reads itself.
_OF_TRITON = ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")


@dataclass(frozen=True)
class Settings:
    """The parameters of a model."""

    engine_dir: str  # absolute, or within the model's directory
    engine_digest: (
        str  # of the engine's manifest: an engine that is built again has another one
    )
    max_waiting: int = MAX_WAITING
    drain_seconds: int = DRAIN_SECONDS
    prompt_tokens_per_step: int | None = None
    num_threads: int | None = None
    prefix_cache_mib: int = DEFAULT_PREFIX_CACHE_MIB

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read the parameters of a parsed model configuration.

        Raises:
            EngineError: for missing, wrong or unknown ones.
        """
        parameters = config.get("parameters", {})
        given = {name: row.get("string_value", "") for name, row in parameters.items()}
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in (*known, *_OF_TRITON):
                near = get_close_matches(name, known, n=1)
                advice = f"; did you mean {near[0]}?" if near else "."
                raise EngineError(
                    f"config.pbtxt has the parameter {name}, which this model does not know{advice}"
                    f" Its parameters are: {', '.join(known)}."
                )
        for name in _TEXTS:
            if not given.get(name):
                raise EngineError(
                    f"config.pbtxt has no parameter {name}. Export the engine again."
                )
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = given.get(field.name)
            if text and field.name in _TEXTS:
                values[field.name] = text
            elif text:
                values[field.name] = _integer(field.name, text)
        return cls(**values)

    def parameters(self) -> dict[str, str]:
        """Return all parameters as texts; one that is left to the model's default is empty."""
        texts = {}
        for field in fields(self):
            value = getattr(self, field.name)
            texts[field.name] = "" if value is None else str(value)
        return texts


def _integer(name: str, text: str) -> int:
    try:
        return parse_integer(f"config.pbtxt: {name}", text, low=int(name not in _MAY_BE_0))
    except UsageError as error:
        raise EngineError(str(error)) from error
