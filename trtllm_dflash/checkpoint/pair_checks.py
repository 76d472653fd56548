"""Checks that a target and a drafter were made for each other."""

from __future__ import annotations

import logging
from dataclasses import replace

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantized_tensors import PACKED_DTYPES
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.checkpoint.scan import check_same_values
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import SHARED_TABLES, DrafterConfig

# Vocabularies of one tokenizer differ by their padding, and by tokens that a fine-tune added.
MAX_PADDING = 4096
_LOG = logging.getLogger(__name__)


def check_pair(target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]) -> None:
    """Check that the drafter was made for this target.

    Raises: CheckpointError: that lists every contradiction, with both values.
    """
    problems = pair_mismatches(target.config, drafter.config)
    if problems:
        raise CheckpointError(
            f"the drafter {drafter.directory} does not fit the target {target.directory}:"
            f" {'; '.join(problems)}. Pass the drafter that was trained for this target."
        )
    _check_shared_tables(target, drafter)
    _warn_of_padding(target.config.vocab_size, drafter)


def pair_mismatches(theirs: TargetConfig, ours: DrafterConfig) -> list[str]:
    """List every contradiction between a target and a drafter, with both values; [] if they fit."""
    problems = []
    if ours.hidden_size != theirs.hidden_size:
        problems.append(
            f"hidden_size is {ours.hidden_size} in the drafter and {theirs.hidden_size} in the"
            " target"
        )
    if abs(ours.vocab_size - theirs.vocab_size) > MAX_PADDING:
        problems.append(
            f"vocab_size is {ours.vocab_size} in the drafter and {theirs.vocab_size} in the target:"
            f" padding and added tokens differ by {MAX_PADDING} at most"
        )
    if ours.mask_token_id >= theirs.vocab_size:
        problems.append(
            f"mask_token_id is {ours.mask_token_id}, but the target embeds ids 0 to"
            f" {theirs.vocab_size - 1}"
        )
    if ours.num_target_layers not in (None, theirs.num_layers):
        problems.append(
            f"num_target_layers is {ours.num_target_layers}, but the target has {theirs.num_layers}"
            " layers"
        )
    last = theirs.num_layers - 1
    beyond = [tap for tap in ours.target_layer_ids if tap > last]
    if beyond:
        problems.append(
            f"target_layer_ids has {beyond}, but the target's layers are 0 to {last}"
        )
    if last in ours.target_layer_ids:
        problems.append(
            f"target_layer_ids has the last layer, {last}: drafters trained with Hugging Face saw"
            " it after the final norm, others before it, and the file does not say which"
        )
    return problems


def _warn_of_padding(vocab_size: int, drafter: Checkpoint[DrafterConfig]) -> None:
    """Name a vocabulary of another size: the drafter uses the target's tables, so it fits."""
    if drafter.config.vocab_size != vocab_size:
        _LOG.warning(
            "drafter %s: vocab_size is %d, and the target's is %d: the drafter drafts with the"
            " target's tables, so the target's counts",
            drafter.directory,
            drafter.config.vocab_size,
            vocab_size,
        )


def _first_rows(info: TensorInfo, count: int) -> TensorInfo:
    shape = (count, *info.shape[1:])
    nbytes = info.nbytes // info.shape[0] * count
    return replace(info, shape=shape, nbytes=nbytes)


def _check_shared_tables(
    target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> None:
    for name, target_name in SHARED_TABLES.items():
        copy = drafter.ignored.get(name)
        original = (
            target.tensors.get(target_name) or target.tensors["model.embed_tokens.weight"]
        )
        # A packed head cannot be compared with a copy, whose sizes the loader has checked.
        if copy is not None and original.dtype not in PACKED_DTYPES:
            common = min(copy.info.shape[0], original.shape[0])
            check_same_values(
                _first_rows(copy.info, common),
                _first_rows(original, common),
                f"drafter {drafter.directory}: its own {name} differs from the target's"
                f" {original.name}",
                "A DFlash v1 drafter uses the target's tables; one with tables of its own is not"
                " supported.",
            )
