"""What DFlash 2 adds to a drafter: convolutions around attention and MLP, and a candidate selector.

Source: the reference implementation `dflash` 0.1.0.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.models.drafter_keys import either
from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader
from trtllm_dflash.models.tensor_specs import TensorSpec

ARCHITECTURE = "DFlash2DraftModel"
SELECTOR = "candidate_selector"
PREDECESSORS = f"{SELECTOR}.predecessor_codebook"
SUCCESSORS = f"{SELECTOR}.successor_codebook"
CODEBOOKS = (PREDECESSORS, SUCCESSORS)
# Candidates of a row; the selector's kernel holds no more.
MAX_CANDIDATES = 64
_MAX_TAPS = 64  # of a convolution: no block is longer
_CONV_KEYS = ("conv_kernel_size", "conv_group_size")
_SELECTOR_KEYS = ("selector_rank", "selector_top_k")


@dataclass(frozen=True)
class DraftConvConfig:
    """Grouped dynamic causal convolutions: each sees `kernel_size` rows of the block.

    The dynamic part of a kernel is one number for `group_size` channels.
    """

    kernel_size: int
    group_size: int


@dataclass(frozen=True)
class SelectorConfig:
    """The candidate selector: `top_k` candidates a row, `rank` numbers of a token in a codebook."""

    rank: int
    top_k: int


def dflash2_specs(layer: str) -> tuple[TensorSpec, ...]:
    """List the tensors of the convolutions in `layer`, and of the selector.

    None is quantized. A file may store a codebook without ".weight".
    """
    size = ("2", "conv.kernel_size", "hidden_size")
    projection = ("2*conv.kernel_size*num_conv_groups", "hidden_size")
    convs = (f"{layer}attention_conv", f"{layer}mlp_conv")
    return (
        *(TensorSpec(f"{conv}.base_kernel", size, when="conv") for conv in convs),
        *(
            TensorSpec(f"{conv}.kernel_projection.weight", projection, when="conv")
            for conv in convs
        ),
        *(
            TensorSpec(f"{name}.weight", ("vocab_size", "selector.rank"), when="selector")
            for name in CODEBOOKS
        ),
        TensorSpec(
            f"{SELECTOR}.hidden_projection.weight",
            ("selector.rank", "hidden_size"),
            when="selector",
        ),
    )


def is_dflash2(reader: HfReader) -> bool:
    """Tell whether config.json describes DFlash 2.

    Raises: ConfigError: for a key of DFlash 2 beside another architecture, which would ignore it.
    """
    names = reader.read_list(str, "architectures", default=())
    if names == (ARCHITECTURE,):
        return True
    keys = [path for name in (*_CONV_KEYS, *_SELECTOR_KEYS) for path in either(name)]
    given = [path for path in keys if reader.get(path) is not None]
    if given and names:
        reader.fail(
            given[0],
            f'is a key of DFlash 2, but architectures is ["{names[0]}"]. Set it to'
            f' ["{ARCHITECTURE}"], or drop the key.',
        )
    return bool(given)


def read_conv(reader: HfReader, hidden_size: int) -> DraftConvConfig:
    """Read the convolutions of a drafter of DFlash 2."""
    kernel_size = reader.read(int, *either("conv_kernel_size"), low=1, high=_MAX_TAPS)
    group_size = reader.read(int, *either("conv_group_size"), low=1, high=hidden_size)
    if hidden_size % group_size:
        reader.fail(
            "conv_group_size",
            f"is {group_size}, expected a divisor of hidden_size {hidden_size}.",
        )
    return DraftConvConfig(kernel_size, group_size)


def read_selector(reader: HfReader, vocab_size: int) -> SelectorConfig:
    """Read the candidate selector of a drafter of DFlash 2; it covers the whole vocabulary."""
    rows = reader.read(int, *either("selector_vocab_size"), default=vocab_size)
    if rows != vocab_size:
        reader.fail(
            "selector_vocab_size",
            f"is {rows}, and only vocab_size {vocab_size} is supported: the codebooks have a row"
            " for each token.",
        )
    return SelectorConfig(
        rank=reader.read(int, *either("selector_rank"), low=1, high=MAX_SIZE),
        top_k=reader.read(
            int, *either("selector_top_k"), low=1, high=min(MAX_CANDIDATES, vocab_size)
        ),
    )


def read_multiplier(reader: HfReader) -> float:
    """Read what logits are multiplied by; it changes a choice of the selector, never an argmax."""
    multiplier = reader.read(float, *either("output_multiplier"), default=1.0)
    if multiplier <= 0.0:
        reader.fail(
            "output_multiplier",
            f"is {multiplier:g}, expected more than 0: another would turn the logits' order round.",
        )
    return multiplier


def read_softcap(reader: HfReader) -> float | None:
    """Read the bound c of logits c · tanh(logits / c), None without one; 0 means none."""
    return reader.read(float, *either("final_logit_softcapping"), default=0.0, low=0.0) or None
