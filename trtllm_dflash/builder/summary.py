"""A resolved build for people: one row for each thing that was decided."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trtllm_dflash.builder.resolve import STORED_DTYPES, ResolvedModels
from trtllm_dflash.checkpoint.block_integers import BLOCK_LENGTH
from trtllm_dflash.checkpoint.formats import Holds, WeightFormat, algos_of
from trtllm_dflash.checkpoint.from_config import has_files
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.engine_dir.inspection import describe_masks
from trtllm_dflash.graph.kv_scales import stores_kv_scales
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.log import Rows, human_bytes
from trtllm_dflash.models.draft_tables import EMBEDDING, HEAD
from trtllm_dflash.options.draft_len import own_drafts


def summary_rows(models: ResolvedModels) -> Rows:
    """Return the resolved configuration as rows of name and text."""
    return [
        ("target", _describe(models.target)),
        *_layers_rows(models),
        *_drafter_rows(models),
        *_arch_rows(models),
        *_sizes_rows(models),
        ("weights", _weights_text(models)),
        ("caches", _caches_text(models)),
        *_rings_rows(models),
        ("output", str(models.config.output_dir)),
    ]


def _arch_rows(models: ResolvedModels) -> Rows:
    arch = ARCHS[models.resolved.gpu_arch]
    backend = BACKENDS[arch.backend].title
    rows = [("arch", f"{arch.name} ({arch.hardware}), built by {backend}")]
    if arch.is_gpu:
        ours = models.resolved.plugins
        rows.append(("kernels", "ours, as plugins" if ours else "the compiler's own"))
    return rows


def _sizes_rows(models: ResolvedModels) -> Rows:
    sizes = models.resolved
    steps = f"in steps of up to {sizes.max_num_tokens}"
    caches = f"in caches of {sizes.cache_len} rows"
    return [
        ("dtype", sizes.dtype),
        ("slots", str(sizes.max_batch_size)),
        ("prompt", f"up to {sizes.max_input_len} tokens, {steps}"),
        ("sequence", f"up to {sizes.max_seq_len} tokens, {caches}"),
    ]


def _describe(checkpoint: Checkpoint[Any]) -> str:
    config = checkpoint.config
    source = ""
    if not checkpoint.directory.is_dir():
        source = "; no file of it is here: as its config.json is published"
    elif not has_files(checkpoint):
        source = "; its weights are not here: as its config.json says"
    facts = (
        getattr(config, "model_type", "DFlash"),
        f"{config.num_layers} layers",
        f"hidden size {config.hidden_size}",
        f"{_human_count(checkpoint.num_parameters)} parameters",
        f"{checkpoint.stored_as}{source}",
    )
    return f"{checkpoint.directory} ({', '.join(facts)})"


def _human_count(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _layers_rows(models: ResolvedModels) -> Rows:
    """Return rows on what only some targets have: gated delta nets, windows, sinks, experts."""
    config = models.target.config
    rows = []
    linear = config.linear_attention
    if linear is not None:
        state = f"{linear.num_value_heads} x {linear.key_dim} x {linear.value_dim} numbers"
        text = (
            f"{sum(config.linear_layers)} of {config.num_layers} layers keep a state of {state}"
        )
        rows.append(("states", text))
    sliding = [window for window in config.windows if window]
    if sliding:
        sizes = ", ".join(map(str, sorted(set(sliding))))
        sinks = ", with sinks" if config.sinks else ""
        text = f"{len(sliding)} of {config.num_layers} layers see {sizes} tokens{sinks}"
        rows.append(("windows", text))
    if config.moe:
        formats = models.target.formats.items()
        stored = algos_of(fmt for name, fmt in formats if ".experts." in name)
        weights = f"{stored}, their activations as they are" if stored else "not quantized"
        experts = f"{config.moe.num_experts} a layer, {config.moe.top_k} a token"
        if config.moe.shared_intermediate_size:
            experts += " and a shared one"
        rows.append(("experts", f"{experts}; {weights}"))
    return rows


_TABLES = {HEAD: "a head", EMBEDDING: "an embedding"}


def _drafter_rows(models: ResolvedModels) -> Rows:
    if models.drafter is None:
        return [("drafter", "none: a plain engine, one token a step")]
    config = models.drafter.config
    sizes = models.resolved
    block = f"{sizes.block_size} tokens (trained with {config.block_size})"
    verified = own_drafts(sizes.draft_len, auto=sizes.auto_draft_len)
    vocab_size = models.target.config.vocab_size
    drafted = f"all {models.draft_vocab_size} tokens"
    if models.draft_vocab_size < vocab_size:
        drafted = f"{models.draft_vocab_size} of {vocab_size} tokens"
    own = [words for name, words in _TABLES.items() if name in models.drafter.tensors]
    if own:
        drafted += f", with {' and '.join(own)} of the drafter's own"
    taps = ", ".join(map(str, config.target_layer_ids))
    return [
        ("drafter", _describe(models.drafter)),
        ("licence", f"of the drafter: {models.drafter_licence}"),
        ("masks", describe_masks(config.layers)),
        ("taps", f"outputs of target layers {taps}"),
        ("block", f"{block}; run verifies {verified}"),
        ("drafted", drafted),
    ]


def _weights_text(models: ResolvedModels) -> str:
    dtype = models.resolved.dtype
    precision = models.resolved.weight_only_precision
    if precision is not None:
        count = sum(len(checkpoint.tensors) for checkpoint in models.checkpoints.values())
        size = human_bytes(models.weight_bytes)
        blocks = f"{precision} in blocks of {BLOCK_LENGTH} and {dtype}"
        return f"{count} tensors, {size} as {blocks}; all converted"
    packed: list[WeightFormat] = []
    count, converted = 0, 0
    for checkpoint in models.checkpoints.values():
        holds = models.holds(checkpoint)
        for name, info in checkpoint.tensors.items():
            is_packed = checkpoint.stays_packed(name, holds)
            packed += [checkpoint.format_of(name)] if is_packed else []
            converted += info.dtype != STORED_DTYPES[dtype] and not is_packed
        count += len(checkpoint.tensors)
    stored_as = f"{algos_of(packed)} and {dtype}" if packed else dtype
    size = human_bytes(models.weight_bytes)
    text = f"{count} tensors, {size} as {stored_as}; {converted} converted"
    left_out = _formats_without_kernels(models)
    if left_out:
        text += (
            f". {algos_of(left_out)} as {dtype}: --no-plugins leaves out what multiplies them"
        )
    return text


def _formats_without_kernels(models: ResolvedModels) -> list[WeightFormat]:
    """Return the formats that only our kernels multiply, where an engine has none of them."""
    found = []
    for checkpoint in models.checkpoints.values():
        if models.holds(checkpoint) is Holds.COMPILED:
            found += [
                fmt
                for module, fmt in checkpoint.formats.items()
                if not fmt.stays_packed(Holds.COMPILED, experts=".experts." in module)
            ]
    return found


def _caches_text(models: ResolvedModels) -> str:
    size = f"{human_bytes(models.cache_bytes_per_slot)} a slot"
    fixed = models.slot_memory.fixed_bytes
    if fixed:
        size += f", {human_bytes(fixed)} of it states and their windows"
    if models.kv_scales is None:
        return size
    dtype = "FP8"
    if not ARCHS[models.resolved.gpu_arch].is_gpu:
        dtype = f"FP8 numbers, held in {models.resolved.dtype}"
    scale = ""
    if not (stores_kv_scales(models.target) or models.supposed):
        scale = " with scale 1, since the checkpoint has no scales for them"
    holder = "the target's keys and values" if fixed else "the target's"
    return f"{size}, {holder} in {dtype}{scale}"


def _rings_rows(models: ResolvedModels) -> Rows:
    """Return how many layers with a window keep only the rows that it sees, [] without any."""
    windows: list[int] = []
    for model in models.checkpoints.values():
        windows += filter(None, model.config.windows)
    if not windows:
        return []
    if models.resolved.ring_width is None:
        why = (
            "the compiler by itself updates none in place; our kernels do, so leave"
            " --no-plugins out"
        )
        return [("rings", f"none for the {len(windows)} layers with a window: {why}")]
    counts = Counter[int | str]()
    for tensor in models.io:
        is_key_cache = tensor.direction == "input" and "_key." in tensor.name
        if is_key_cache and tensor.shape[2] != models.resolved.cache_len:
            counts[tensor.shape[2]] += 1
    text = ", ".join(f"{count} layers of {rows} rows" for rows, count in counts.items())
    none = "none: with the widest step a window takes as many rows as a sequence"
    return [("rings", text or none)]
