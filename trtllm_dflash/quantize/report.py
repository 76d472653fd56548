"""The report of a quantization."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtllm_dflash.log import human_bytes
from trtllm_dflash.quantize.coverage import ExpertCoverage


@dataclass(frozen=True)
class QuantizeReport:
    """The output and cost of a quantization: wall-clock seconds, bytes, peak memory of the process.

    `linear_bytes` of the target's quantized weights, with scales, replace `original_bytes`. At
    `agreed` of `compared` positions of the calibration text the most likely next token is that of
    the unquantized target. `coverage` is of experts whose inputs are calibrated.
    """

    directory: Path
    seconds: float
    bytes: int
    linear_bytes: int
    original_bytes: int
    agreed: int
    compared: int
    peak_memory: int
    coverage: ExpertCoverage | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Return the costs as rows of a log table."""
        rows = [
            ("took", f"{self.seconds:.1f} s"),
            ("wrote", human_bytes(self.bytes)),
            ("quantized weights", self._weights()),
            ("peak memory", human_bytes(self.peak_memory)),
        ]
        if self.coverage is not None:
            rows.append(("experts", self.coverage.describe()))
        if self.compared:
            agreement = (
                f"{self.agreed / self.compared:.1%} of {self.compared} calibration tokens"
            )
            rows.append(("same next token", agreement))
        return rows

    def _weights(self) -> str:
        """Describe the size of the quantized weights."""
        if not self.original_bytes:
            return "none"
        share = self.linear_bytes / self.original_bytes
        return (
            f"{human_bytes(self.linear_bytes)} ({share:.2f} of their"
            f" {human_bytes(self.original_bytes)})"
        )
