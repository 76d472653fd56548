"""The parts of the check in their order, each with its own limit of time."""

from __future__ import annotations

from dataclasses import dataclass

_ROOM = "plugins.bench.gpu_check"
KERNEL_SOURCES = (
    *(
        "accept",
        "argmax",
        "attention",
        "block_linear",
        "gated_delta",
        "lookup",
        "adjust",
        "moe",
        "select",
    ),
)


@dataclass(frozen=True)
class Part:
    """One part. `function` is "module:name", called with a `Check` and the `arguments`.

    It runs in a process of its own, which is ended after `seconds`.
    """

    name: str
    function: str
    seconds: float
    arguments: tuple[str, ...] = ()


def _part(name: str, function: str, seconds: float, *arguments: str) -> Part:
    return Part(name, f"{_ROOM}.{function}", seconds, arguments)


PARTS = (
    _part("compile", "cubins:compile_all", 120),
    *(
        _part(f"correct-{source}", "correct:check_kernels", 60, source)
        for source in KERNEL_SOURCES
    ),
    *(
        _part(f"speed-attention-{name}", "speed_attention:time_attention", 90, name)
        for name in ("equal", "mixed", "fp8", "draft", "prompt")
    ),
    _part("speed-experts", "speed_experts:time_experts", 60),
    _part("speed-delta", "speed_delta:time_delta", 60),
    _part("speed-linear", "speed_linear:time_linear", 40),
    _part("speed-accept", "speed_choices:time_accept", 40),
    _part("speed-select", "speed_choices:time_select", 40),
    _part("engine-native", "engine:check_engines", 90, "native"),
    _part("engine-sm80", "engine:check_engines", 90, "sm80"),
    _part("engine-stand-in", "stand_in_engine:check_pairs", 90),
    _part("sanitizer", "sanitizer:sanitize", 120),
    _part("c-library", "c_library:check_library", 150),
)
