"""What a checkpoint asks of sampling where a request says nothing, as `dflash-trt serve` has it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

# Those that vLLM takes from generation_config.json; it does not look at `do_sample` either.
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_ROWS = {row.name: row for row in SAMPLING_INPUTS if row.name in _NAMES}
ALLOWED = ("auto", "none")
_WITH_TEMPERATURE = ("top_p", "top_k", "min_p")  # without effect where the answer is greedy


def defaults_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of generation_config.json that say something.

    What is no value of ours is left out: `build` has named it.
    """
    found = {}
    for name, row in _ROWS.items():
        value = settings.get(name)
        with suppress(UsageError):
            row.check(value)
            if name == "temperature" or value != row.default:
                found[name] = value
    return found


def check_defaults(given: Any) -> dict[str, Any]:
    """Return what an engine's config.json has of them.

    Raises:
        UsageError: for what is no object, an unknown name, or a value out of range.
    """
    if not isinstance(given, dict):
        raise UsageError(f"generation_defaults is {shown(given)}, expected an object.")
    for name, value in given.items():
        if name not in _ROWS:
            raise UsageError(
                f"generation_defaults has {shown(name)}, expected {', '.join(_NAMES)}."
            )
        _ROWS[name].check(value)
    return dict(given)


def defaults_text(defaults: Mapping[str, Any]) -> str:
    """Return them for people: temperature 0.6, top_k 20."""
    return ", ".join(f"{name} {value:g}" for name, value in defaults.items())


def completed(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's options with the defaults for those that it does not give.

    `own` has a temperature. A greedy request takes no default that only sampling has.
    """
    options = {**own, **given}
    if options["temperature"] == 0:
        for name in _WITH_TEMPERATURE:
            if name not in given:
                options.pop(name, None)
    return options
