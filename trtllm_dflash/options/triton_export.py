"""The options of `dflash-trt export-triton`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import parse_integers
from trtllm_dflash.options.fields import check_fields, cli_option


@dataclass(frozen=True)
class TritonExportConfig:
    """Which engine a model repository serves, under what name and on which GPUs.

    Raises:
        UsageError: for a value that no engine could make right.
    """

    engine: Path
    output_dir: Path = field(
        metadata=cli_option(
            "the model repository, new or with other models",
            metavar="DIR",
            aliases=("--output",),
        )
    )
    name: str = field(default="dflash", metadata=cli_option("the model's name"))
    instances: int = field(
        default=1, metadata=cli_option("engines on each GPU, or on the processor", low=1)
    )
    gpu_ids: str | None = field(
        default=None,
        metadata=cli_option(
            "Triton's indices of the GPUs to serve on [default: all]",
            metavar="0,1,…",
            aliases=("--gpus",),
        ),
    )
    cpu: bool = field(
        default=False,
        metadata=cli_option("for a server without GPUs: refuse an engine that needs one"),
    )
    copy: bool = field(
        default=False,
        metadata=cli_option("copy the engine into the repository, instead of its path"),
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engine."""
        check_fields(self)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UsageError(
                f"--name {self.name!r}: expected letters, digits, and _ . - behind the first."
            )
        _ = self.gpu_indices

    @property
    def gpu_indices(self) -> tuple[int, ...]:
        """Return the GPUs to serve on; none means every GPU that the server sees."""
        return () if self.gpu_ids is None else parse_integers("--gpu-ids", self.gpu_ids)
