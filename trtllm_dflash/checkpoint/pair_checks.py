"""Checks that a target and a drafter were made for each other."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from trtllm_dflash.checkpoint.draft_vocab import own_vocabulary
from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.quantized_tensors import PACKED_DTYPES
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.checkpoint.scan import check_same_values, first_difference
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.draft_tables import (
    EMBEDDING,
    HEAD,
    OFFSETS,
    SHARED_TABLES,
    VERIFIER_HEAD,
    VERIFIER_NORM,
)
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.speculators import is_speculators, read_verifier

# Vocabularies of one tokenizer differ by their padding, and by tokens that a fine-tune added.
MAX_PADDING = 4096
_LOG = logging.getLogger(__name__)


def check_pair(
    target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> Checkpoint[DrafterConfig]:
    """Check that the drafter was made for this target; return it with the tables of its own.

    A stored embedding or head that equals the target's is shared with it. One that differs is the
    drafter's own, and becomes one of its tensors.

    Raises: CheckpointError: that lists every contradiction, with both values.
    """
    problems = pair_mismatches(target.config, drafter.config)
    problems += _verifier_mismatches(target, drafter)
    ids = draft_ids(drafter)
    if ids is not None and ids.max() >= target.config.vocab_size:
        problems.append(
            f"the drafter drafts token {ids.max()}, but tokens of the target are 0 to"
            f" {target.config.vocab_size - 1}"
        )
    if problems:
        raise CheckpointError(
            f"the drafter {drafter.directory} does not fit the target {target.directory}:"
            f" {'; '.join(problems)}. Pass the drafter that was trained for this target."
        )
    _check_training_copies(target, drafter, ids)
    _warn_of_padding(target.config.vocab_size, drafter)
    return _with_own_tables(target, drafter)


def draft_ids(drafter: Checkpoint[DrafterConfig]) -> np.ndarray | None:
    """Return the token ids that the rows of a drafter's own head stand for, int64.

    None: it has no list, or was made of a configuration alone.
    """
    if OFFSETS not in drafter.ignored:
        return None
    infos = {name: row.info for name, row in drafter.ignored.items()}
    return own_vocabulary(infos, drafter.config, f"drafter {drafter.directory}")


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


def _verifier_mismatches(
    target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> list[str]:
    """Return what speaks against the target that the drafter's config.json names; say its name.

    A name alone is no contradiction: a quantized copy of a target has another.
    """
    config_json = read_json_in(drafter.directory, "config.json")
    if config_json is None or not is_speculators(config_json):
        return []
    verifier = read_verifier(config_json, f"drafter {drafter.directory}")
    if verifier.name:
        _LOG.info("drafter %s: trained for %s", drafter.directory, verifier.name)
    ours = target.config.family.architecture
    if not verifier.architectures or _decoder(ours) in map(_decoder, verifier.architectures):
        return []
    theirs = ", ".join(verifier.architectures)
    name = f" ({verifier.name})" if verifier.name else ""
    return [f"it was trained for a {theirs}{name}, and the target is a {ours}"]


def _decoder(architecture: str) -> str:
    """Return the part of a class's name that is the same with images and of text alone."""
    return architecture.partition("For")[0]


def _check_training_copies(
    target: Checkpoint[TargetConfig],
    drafter: Checkpoint[DrafterConfig],
    ids: np.ndarray | None,
) -> None:
    """Raise CheckpointError if a copy that was kept for training is of another target."""
    for name, target_name in ((VERIFIER_NORM, "model.norm.weight"), (VERIFIER_HEAD, HEAD)):
        copy = drafter.ignored.get(name)
        original = _target_table(target, target_name)
        if copy is None or original.dtype in PACKED_DTYPES:
            continue
        rows = None if ids is None or name != VERIFIER_HEAD else ids
        _check_copy(copy.info, original, rows, f"drafter {drafter.directory}")


def _check_copy(
    copy: TensorInfo, original: TensorInfo, rows: np.ndarray | None, where: str
) -> None:
    """Raise CheckpointError if a copy of these rows (int64; None: the first ones) differs."""
    problem = f"{where}: its {copy.name} differs from the target's {original.name}"
    advice = "It was trained for another target: pass that one."
    if rows is None:
        common = min(copy.shape[0], original.shape[0])
        check_same_values(
            _first_rows(copy, common), _first_rows(original, common), problem, advice
        )
        return
    theirs, ours = original.array(), copy.array()
    for row, token in enumerate(rows):
        if not np.array_equal(ours[row], theirs[token]):
            raise CheckpointError(f"{problem} for token {token}. {advice}")


def _with_own_tables(
    target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> Checkpoint[DrafterConfig]:
    own = {}
    for name, target_name in SHARED_TABLES.items():
        copy = drafter.ignored.get(name)
        original = _target_table(target, target_name)
        # A packed head cannot be compared with a copy, whose sizes the loader has checked.
        if copy is None or original.dtype in PACKED_DTYPES:
            continue
        common = min(copy.info.shape[0], original.shape[0])
        index = first_difference(_first_rows(copy.info, common), _first_rows(original, common))
        if index is None:
            continue
        _LOG.warning(
            "drafter %s: its %s differs from the target's %s at index %s: it is used as the"
            " drafter's own",
            drafter.directory,
            name,
            original.name,
            list(index),
        )
        _check_own_dtype(copy.info, f"drafter {drafter.directory}")
        own[name] = _first_rows(copy.info, common)
    if EMBEDDING in own and own[EMBEDDING].shape[0] < target.config.vocab_size:
        raise CheckpointError(
            f"drafter {drafter.directory}: its own {EMBEDDING} has {own[EMBEDDING].shape[0]} rows,"
            f" but tokens of the target are 0 to {target.config.vocab_size - 1}."
        )
    ignored = {name: row for name, row in drafter.ignored.items() if name not in own}
    return replace(drafter, tensors={**drafter.tensors, **own}, ignored=ignored)


def _check_own_dtype(info: TensorInfo, where: str) -> None:
    if info.dtype not in WEIGHT_DTYPES:
        raise CheckpointError(
            f"{where}: its own {info.name} is {info.dtype}, expected {' or '.join(WEIGHT_DTYPES)}."
        )


def _target_table(target: Checkpoint[TargetConfig], name: str) -> TensorInfo:
    """Return the target's tensor; a head that is not stored is the embedding."""
    return target.tensors.get(name) or target.tensors["model.embed_tokens.weight"]
