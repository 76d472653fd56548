"""What `dflash-trt export-trtllm` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import option

ARCHS = ("any", "sm90", "sm100", "sm103")


@dataclass(frozen=True)
class TrtllmExportConfig:
    """What the user asks of an export for TensorRT-LLM.

    Raises:
        UsageError: for a value that no model could make right.
    """

    target: str = field(
        metadata=option(
            "the target: a directory, or a name of `dflash-trt list`", metavar="DIR|NAME"
        )
    )
    output_dir: Path = field(metadata=option("the directory to write", metavar="DIR"))
    gpus: int = field(
        metadata=option("GPUs in all; the model is split among them (tensor parallelism)")
    )
    drafter: str | None = field(
        default=None,
        metadata=option(
            "its DFlash drafter: a directory [default: a listed target's own]", metavar="DIR|NAME"
        ),
    )
    nodes: int = field(
        default=1, metadata=option("machines that these GPUs are in, as many in each")
    )
    arch: str = field(
        default="any",
        metadata=option("the GPUs' kind: decides the drafter's attention kernels", choices=ARCHS),
    )
    expert_parallel: int | None = field(
        default=None,
        metadata=option(
            "of a mixture of experts: groups of GPUs that hold whole experts [default: split every"
            " expert]"
        ),
    )
    max_batch_size: int = field(default=32, metadata=option("requests that generate together"))
    max_seq_len: int = field(default=8192, metadata=option("tokens of prompt and answer together"))
    max_num_tokens: int = field(default=8192, metadata=option("tokens of all requests in one step"))
    draft_len: int | None = field(
        default=None,
        metadata=option("drafts verified in a step [default: all of the drafter's block]"),
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the models."""
        for name in (
            "gpus",
            "nodes",
            "max_batch_size",
            "max_seq_len",
            "max_num_tokens",
            "draft_len",
            "expert_parallel",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.arch not in ARCHS:
            raise UsageError(f"--arch {self.arch!r} is not known; choose one of {', '.join(ARCHS)}")
        if self.gpus % self.nodes:
            raise UsageError(f"--gpus {self.gpus} cannot be shared evenly by --nodes {self.nodes}")
        if self.expert_parallel and self.gpus % self.expert_parallel:
            raise UsageError(
                f"--expert-parallel {self.expert_parallel} does not divide --gpus {self.gpus}"
            )

    @property
    def gpus_per_node(self) -> int:
        """GPUs in each machine."""
        return self.gpus // self.nodes
