"""The options of `dflash-trt export-trtllm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.gpu_names import arch_named
from trtllm_dflash.options.fields import check_fields, cli_option

ARCHS = ("any", "sm89", "sm90", "sm100", "sm103", "sm120", "sm121")


@dataclass(frozen=True)
class TrtllmExportConfig:
    """Which pair to export for TensorRT-LLM, and how to split it.

    Raises:
        UsageError: for a value that no model could make right.
    """

    target: str = field(
        metadata=cli_option(
            "the target: a directory, or a name of `dflash-trt list`", metavar="DIR|NAME"
        )
    )
    output_dir: Path = field(metadata=cli_option("the directory to write", metavar="DIR"))
    gpus: int = field(
        metadata=cli_option(
            "GPUs in all; the model is split among them (tensor parallelism)", low=1
        )
    )
    drafter: str | None = field(
        default=None,
        metadata=cli_option(
            "its DFlash drafter: a directory [default: a listed target's own]",
            metavar="DIR|NAME",
        ),
    )
    nodes: int = field(
        default=1, metadata=cli_option("machines with these GPUs, equally many in each", low=1)
    )
    arch: str = field(
        default="any",
        metadata=cli_option(
            "architecture of the GPUs or one's name, which selects the drafter's attention kernels:"
            f" {', '.join(ARCHS)}",
            metavar="ARCH|GPU",
            choices=ARCHS,
            parse=lambda name: name if name == "any" else arch_named(name),
        ),
    )
    expert_parallel: int | None = field(
        default=None,
        metadata=cli_option(
            "of a mixture of experts: groups of GPUs that hold whole experts [default: split every"
            " expert]",
            low=1,
        ),
    )
    max_batch_size: int = field(
        default=32, metadata=cli_option("requests that generate together", low=1)
    )
    max_seq_len: int | None = field(
        default=None,
        metadata=cli_option(
            "tokens of prompt and answer together [default: 8192, or less where the target ends"
            " before]",
            low=1,
        ),
    )
    max_num_tokens: int = field(
        default=8192, metadata=cli_option("tokens of all requests in one step", low=1)
    )
    draft_len: int | None = field(
        default=None,
        metadata=cli_option(
            "drafts verified in a step [default: all of the drafter's block]", low=1
        ),
    )
    draft_len_schedule: Path | None = field(
        default=None,
        metadata=cli_option(
            "drafts by batch size, as `profile --schedule` writes them", metavar="FILE"
        ),
    )
    rejection_sampling: bool = field(
        default=False,
        metadata=cli_option(
            "sampled requests: accept drafts by rejection sampling, not by equality with the"
            " sampled token"
        ),
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the models."""
        check_fields(self)
        if self.gpus % self.nodes:
            raise UsageError(
                f"--gpus {self.gpus} cannot be shared evenly by --nodes {self.nodes}"
            )
        if self.expert_parallel and self.gpus % self.expert_parallel:
            raise UsageError(
                f"--expert-parallel {self.expert_parallel} does not divide --gpus {self.gpus}"
            )
        if self.draft_len is not None and self.draft_len_schedule is not None:
            raise UsageError("give either --draft-len or --draft-len-schedule, not both.")

    @property
    def gpus_per_node(self) -> int:
        """GPUs in each machine."""
        return self.gpus // self.nodes
