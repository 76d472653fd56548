"""The numbers that every estimate assumes, each with its reason. None belongs to a model, a GPU or
a published row.

`assumptions` prints them; docs/estimate shows how the validation moves with each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


def _assumed(default: float, unit: str, meaning: str, reason: str) -> float:
    value: float = field(
        default=default, metadata={"unit": unit, "meaning": meaning, "reason": reason}
    )
    return value


@dataclass(frozen=True)
class Constants:
    """Seconds, and fractions of a datasheet's figure."""

    bandwidth_fraction: float = _assumed(
        0.85, "", "of the memory's bandwidth, while a kernel streams weights or keys",
        "usual for large copies; plain Qwen3-8B and 4B at 47 and 80 tokens/s on Jetson Thor need 0.82 to 0.9",
    )  # fmt: skip
    compute_fraction: float = _assumed(
        0.60, "", "of the tensor cores' dense rate, at the 16 to 1000 rows of a step",
        "an assumption: such matrices fill neither all SMs nor whole tiles",
    )  # fmt: skip
    kernel: float = _assumed(
        4.0e-6, "s", "that each kernel of a CUDA graph adds: its launch, filling and draining the GPU",
        "plain Qwen3-8B at 230 tokens/s on a B200: what its weights do not explain, by about 365 kernels",
    )  # fmt: skip
    sum_latency: float = _assumed(
        8.0e-6, "s", "of one sum over GPUs, besides its bytes",
        "an assumption, for one-shot sums over NVLink",
    )  # fmt: skip
    link_fraction: float = _assumed(
        0.75, "", "of NVLink's bandwidth in sums over GPUs", "an assumption",
    )  # fmt: skip

    def rows(self) -> list[tuple[str, str, str]]:
        """Value, meaning and reason of each, for people."""
        return [
            (
                _shown(getattr(self, f.name), f.metadata["unit"]),
                f.metadata["meaning"],
                f.metadata["reason"],
            )
            for f in fields(self)
        ]


def _shown(value: float, unit: str) -> str:
    return f"{value * 1e6:g} µs" if unit else f"{value:g}"


@dataclass(frozen=True)
class Runtime:
    """What a kind of software adds to the device's work: seconds of a step in which the GPU waits
    for the host.
    """

    name: str
    meaning: str
    reason: str
    plain_host: float = 0.0
    draft_host: float = 0.0
    draft_host_per_sequence: float = 0.0
    launch: float = (
        0.0  # where there is no CUDA graph: the host's time for a launch, if that is longer
    )
    unfused: float = 1.0  # launches for each one that is counted
    captured: bool = True  # steps are CUDA graphs; prompts are only where launch is 0


_DISPATCH = 0.5e-3
_ONE, _THREE = "one dispatch from Python a step", "three with drafts (verify, inject, draft)"
CONSTANTS = Constants()
ENGINE = Runtime(
    "engine",
    "one call and one CUDA graph a step; nothing returns to the host between",
    "this project's design",
)
SERVING = Runtime(
    "serving",
    "a PyTorch server with CUDA graphs and overlapped scheduling: SGLang's spec-v2, vLLM,"
    " TensorRT-LLM",
    f"0.5 ms for {_ONE}, {_THREE}: from plain Qwen3-8B at 1 and at 32 sequences on a B200; 10 µs a"
    " launch in prompts",
    plain_host=_DISPATCH,
    draft_host=3 * _DISPATCH,
    launch=10e-6,
)
SERVING_SYNC = Runtime(
    "serving, no overlap",
    "the same without overlap: SGLang's spec-v1",
    "147 µs more for each sequence: what SGLang's overlap saved (DFlash, GSM8K, 32 sequences: 9688"
    " to 12360 tokens/s)",
    plain_host=_DISPATCH,
    draft_host=3 * _DISPATCH,
    draft_host_per_sequence=0.147e-3,
    launch=10e-6,
)
EAGER = Runtime(
    "eager",
    "Hugging Face transformers, every operator launched by itself",
    "8 µs a launch, 2.5 launches for one that is counted: an assumption, which hardly moves a"
    " ratio",
    launch=8e-6,
    unfused=2.5,
    captured=False,
)
EDGE = Runtime(
    "two engines",
    "TensorRT Edge-LLM: two engines, the loop in C++ on the host",
    "0.1 ms a dispatch, three with drafts: an assumption",
    plain_host=0.1e-3,
    draft_host=0.3e-3,
)
RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime for runtime in (ENGINE, SERVING, SERVING_SYNC, EAGER, EDGE)
}

# One direction of a GPU's NVLink, 10^9 bytes a second: NVIDIA's Hopper and Blackwell datasheets, a
# half of both ways.
LINK_GBS: Mapping[str, float] = {"sm90": 450.0, "sm100": 900.0, "sm103": 900.0}
