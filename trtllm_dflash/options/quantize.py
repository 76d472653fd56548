"""The options of `dflash-trt quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.checkpoint.formats import FORMATS, MXFP4, WeightFormat
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.fields import DTYPE_NAMES, check_fields, cli_option
from trtllm_dflash.options.prompt_options import ChatOptions
from trtllm_dflash.options.shared import ALLOW_LINKS

KV_CACHE_DTYPES = ("fp8",)
KEEP_WEIGHTS = "none"
DEVICES = ("auto", "cpu", "cuda")
MAX_SEQ_LEN = 1 << 20
# Of linears, and of the experts of gpt-oss.
_FORMATS = {**FORMATS, MXFP4.name: MXFP4}
_CHOICES = (*_FORMATS, KEEP_WEIGHTS)


@dataclass(frozen=True)
class QuantizeConfig(ChatOptions):
    """What to quantize, and how; a `drafter` is quantized into `output_dir`/drafter.

    Raises:
        UsageError: for a value that no model could make right.
    """

    target: str = field(
        metadata=cli_option(
            "the unquantized target: a directory or hub name", metavar="DIR|NAME"
        )
    )
    output_dir: Path = field(
        metadata=cli_option("the checkpoint directory to write", metavar="DIR")
    )
    quant: str = field(
        metadata=cli_option(
            "; ".join(
                f"{row.name}: {row.meaning}, for {row.hardware}" for row in _FORMATS.values()
            )
            + f"; {KEEP_WEIGHTS}: weights as they are, for --kv-cache-dtype alone",
            choices=_CHOICES,
            aliases=("--format",),
        )
    )
    drafter: str | None = field(
        default=None,
        metadata=cli_option(
            "its drafter, for --quantize-drafter: a directory or hub name", metavar="DIR|NAME"
        ),
    )
    kv_cache_dtype: str | None = field(
        default=None,
        metadata=cli_option(
            "also calibrate scales for keys and values in 8 bits [default: none]",
            choices=KV_CACHE_DTYPES,
            other_values=DTYPE_NAMES,
        ),
    )
    calib_file: Path | None = field(
        default=None,
        metadata=cli_option(
            "text to calibrate with: JSON lines with a prompt, its answer as text, or both (`run"
            " --output` writes them), or plain text in paragraphs [default: a small mixed set that"
            " comes with dflash-trt]",
            metavar="FILE",
        ),
    )
    calib_size: int = field(
        default=128, metadata=cli_option("sequences to calibrate with, at most", low=1)
    )
    calib_seq_len: int = field(
        default=512,
        metadata=cli_option(
            "tokens of the longest sequence; a longer text becomes several",
            low=1,
            high=MAX_SEQ_LEN,
        ),
    )
    calib_all_experts: bool = field(
        default=False,
        metadata=cli_option(
            "send every token through every expert too, to see what rare ones compute; it takes as"
            " many times longer as a token leaves out"
        ),
    )
    device: str = field(
        default="auto",
        metadata=cli_option("where to compute; auto: the GPU if there is one", choices=DEVICES),
    )

    allow_links: bool = field(default=False, metadata=ALLOW_LINKS)

    def __post_init__(self) -> None:
        """Check everything that can be judged without the models."""
        super().__post_init__()
        check_fields(self)
        if self.messages is not None and self.calib_file is not None:
            raise UsageError(
                "give either --calib-file or --messages to calibrate with, not both"
            )
        if self.weight_format is None and self.kv_cache_dtype is None:
            raise UsageError(
                f"--quant {KEEP_WEIGHTS} changes nothing without --kv-cache-dtype fp8"
            )
        if self.calib_all_experts and not self.quantizes_inputs:
            raise UsageError(
                f"--calib-all-experts is for the scales of inputs, and --quant {self.quant} has"
                " none; leave it out"
            )
        if self.weight_format is None and self.drafter is not None:
            raise UsageError(
                f"--quant {KEEP_WEIGHTS} leaves nothing to quantize in a drafter, whose caches"
                f" stay as they are; give --quant {' or '.join(FORMATS)}, or no drafter"
            )
        if self.quantizes_fused_experts and self.drafter is not None:
            raise UsageError(
                f"--quant {self.quant} is of gpt-oss's experts, and a drafter has none; leave"
                " --quantize-drafter out"
            )

    @property
    def calibration_text(self) -> Path | None:
        """Return the file of the text to calibrate with; None: the package's own."""
        return self.calib_file or self.messages

    @property
    def weight_format(self) -> WeightFormat | None:
        """Return the format of `quant`; None where weights stay as they are."""
        return _FORMATS.get(self.quant)

    @property
    def quantizes_fused_experts(self) -> bool:
        """Return whether only the experts of gpt-oss are quantized."""
        return self.weight_format is MXFP4

    @property
    def reads_activations(self) -> bool:
        """Return whether anything but weights gets scales, which takes text for calibration."""
        return self.quantizes_inputs or self.kv_cache_dtype is not None

    @property
    def quantizes_inputs(self) -> bool:
        """Return whether the inputs of linears get scales."""
        return self.weight_format is not None and self.weight_format.has_input_scale

    @property
    def group_size(self) -> int | None:
        """Return the elements that share a scale; None where there are no groups."""
        return self.weight_format.group_size if self.weight_format else None
