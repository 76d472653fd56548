"""Which drafters the reference package, `dflash` 0.1.0, computes as an engine does.

It loads a drafter of another layout without an error, or with one that names nothing. So `quantize`
and `profile`, which run it, ask here first.
"""

from __future__ import annotations

from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.models.draft_tables import EMBEDDING, HEAD
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.speculators import is_speculators


def reference_class(drafter: Checkpoint[DrafterConfig]) -> str:
    """Return the name of the package's class for a drafter from which nothing is missing."""
    return "DFlash2DraftModel" if drafter.config.selector else "DFlashDraftModel"


def missing_in_reference(drafter: Checkpoint[DrafterConfig], *, decodes: bool) -> str | None:
    """Return what the package does not do for a drafter, None if it does all of it.

    With `decodes` its own loop is run, else only the layers of a block.
    """
    config = drafter.config
    config_json = read_json_in(drafter.directory, "config.json") or {}
    own = {EMBEDDING, HEAD} & set(drafter.tensors)
    lacks = (
        ("does not read the layout of speculators", is_speculators(config_json)),
        ("has no Markov head", config.markov_rank is not None),
        ("has no drafts from the anchor's row", decodes and config.sample_from_anchor),
        ("has no attention sinks", config.has_sinks),
        ("has no embedding or head of the drafter's own", bool(own)),
        ("does not read quantized weights", drafter.quantization.is_quantized),
        ("does not run without the key num_target_layers", config.num_target_layers is None),
    )
    return next((what for what, is_needed in lacks if is_needed), None)
