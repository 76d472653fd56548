"""What an engine directory holds, read from its own files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.config_checks import newer_version
from trtllm_dflash.engine_dir.files import CONFIG_FILE
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.engine_dir.manifest import is_entry
from trtllm_dflash.engine_dir.slot_memory import SlotMemory
from trtllm_dflash.engine_dir.stop_tokens import missed_ends, turn_ends_of
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.log import Rows, counted, human_bytes, printable, table
from trtllm_dflash.models.draft_masks import DraftLayerConfig
from trtllm_dflash.models.hf_config import HfReader, parse_json, quote
from trtllm_dflash.options.draft_len import own_drafts
from trtllm_dflash.options.generation_defaults import defaults_text

_DIGEST_CHARACTERS = 16  # of a sha256, for people


@dataclass(frozen=True)
class Inspection:
    """An engine's config.json and manifest.json, and sentences on what differs from them here."""

    directory: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    differences: list[str]
    version_differences: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the whole inspection as plain types."""
        return asdict(self) | {"directory": str(self.directory)}

    def sections(self) -> list[tuple[str, list[str]]]:
        """Return the inspection for people: titles and lines."""
        listed = self.manifest.get("files") or {}
        files = {name: entry for name, entry in listed.items() if is_entry(name, entry)}
        size = human_bytes(sum(int(entry["bytes"]) for entry in files.values()))
        title = f"{self.directory}: {size}, built {self.manifest.get('created')}"
        overview, io_tensors = self._config_tables()
        kernels = map(_kernel_cells, self.manifest.get("kernels", ()))
        versions = self.manifest.get("versions", {})
        built_with = ", ".join(f"{name} {version}" for name, version in versions.items())
        sections = [
            (title, overview),
            ("inputs and outputs", io_tensors),
            ("kernels", _lines(kernels, "<>")),
            ("files", _lines(map(_file_cells, files.items()), "<>")),
            ("built with", [built_with, *_built_on(self.manifest)]),
            ("other versions here", self.version_differences),
            ("check", self.differences or ["every file is what the build wrote"]),
        ]
        found = []
        for title, lines in sections:
            if lines:
                found.append((printable(title), list(map(printable, lines))))
        return found

    def _config_tables(self) -> tuple[list[str], list[str]]:
        if not self.config:
            return [], []
        path = self.directory / CONFIG_FILE
        engine = EngineConfig.from_json(dict(self.config), str(path))
        overview = _overview(engine, HfReader(self.config, str(path)), self.manifest)
        tensors = map(_io_cells, _merge_layers(engine.io))
        return _lines(overview), _lines(tensors)


def _built_on(facts: Mapping[str, Any]) -> list[str]:
    """Return a line on the machine of the build, none for an engine that does not say it."""
    built_on = facts.get("platform", {})
    return [f"on {', '.join(built_on.values())}"] if built_on else []


def inspect_engine(directory: Path) -> Inspection:
    """Read an engine directory and compare every byte of it with its manifest.

    Raises:
        EngineError: if it has no manifest that this version can read.
    """
    facts = manifest.load(directory)
    differences = manifest.check(directory, deep=True, backend=facts.get("backend"))
    path = directory / CONFIG_FILE
    # A config.json that the build did not write is a difference. Nothing else is read from it.
    intact = CONFIG_FILE in (facts.get("files") or ())
    intact = intact and not any(text.startswith(CONFIG_FILE) for text in differences)
    config = parse_json(path.read_bytes(), str(path), error=EngineError) if intact else {}
    elsewhere = manifest.platform_difference(facts)
    newer = newer_version(str(config.get("version", "")))
    others = manifest.version_differences(facts)
    others += [line for line in (elsewhere, newer) if line]
    return Inspection(directory, config, facts, differences, others)


def describe_masks(layers: Sequence[DraftLayerConfig]) -> str:
    """Return runs of equal layers, as in "layers 0-3 bidirectional, layer 4 causal within 128"."""
    runs = []
    first = 0
    for mask, group in groupby(layers):
        last = first + len(list(group)) - 1
        span = f"layer {first}" if first == last else f"layers {first}-{last}"
        direction = "causal" if mask.causal else "bidirectional"
        window = f" within {mask.window}" if mask.window else ""
        runs.append(f"{span} {direction}{window}")
        first = last + 1
    return ", ".join(runs)


def _overview(engine: EngineConfig, config: HfReader, facts: Mapping[str, Any]) -> Rows:
    num_layers = config.read(int, "pretrained_config.num_hidden_layers")
    hidden_size = config.read(int, "pretrained_config.hidden_size")
    weights = facts.get("weights", ())
    sources = {source["model"]: source["directory"] for source in weights}
    target = (
        engine.model_type,
        f"{num_layers} layers",
        f"hidden size {hidden_size}",
        f"vocabulary {engine.vocab_size}",
        f"from {sources.get('target')}",
    )
    rows = [
        ("target", ", ".join(target)),
        *_dflash_rows(engine, config.section("dflash"), sources),
        ("built for", f"{engine.gpu_arch} by {engine.backend}, {engine.dtype}"),
        *_format_rows(engine),
    ]
    if engine.gpu_arch in ARCHS and ARCHS[engine.gpu_arch].is_gpu:
        kernels = "ours, as plugins" if engine.plugins else "the compiler's own"
        rows.append(("kernels", kernels))
    steps = f"in steps of up to {engine.max_num_tokens}"
    caches = f"in caches of {engine.cache_len} rows"
    rows += [
        ("slots", str(engine.max_batch_size)),
        ("prompt", f"up to {engine.max_input_len} tokens, {steps}"),
        ("sequence", f"up to {engine.max_seq_len} tokens, {caches}"),
        *_text_rows(engine, config),
    ]
    return rows


def _text_rows(engine: EngineConfig, config: HfReader) -> Rows:
    """Return the stop tokens, and the options of the chat template where there are any."""
    ends = turn_ends_of(config.get("turn_ends"))
    names = {end.token_id: str(end) for end in ends}
    stops = [names.get(token, str(token)) for token in engine.eos_token_ids]
    rows = [("stop tokens", ", ".join(stops) or "none")]
    missed = missed_ends(engine.eos_token_ids, ends, advice="build with --eos-token-ids")
    rows += [("", sentence) for sentence in missed]
    if engine.chat_template_kwargs:
        rows.append(("chats", f"with {json.dumps(engine.chat_template_kwargs)}, unless given"))
    if engine.generation_defaults:
        rows.append(
            ("serve", f"with {defaults_text(engine.generation_defaults)}, unless given")
        )
    return rows


def _dflash_rows(
    engine: EngineConfig, dflash: HfReader | None, sources: Mapping[str, str]
) -> Rows:
    if dflash is None:
        return [("drafter", "none: a plain engine, one token a step")]
    layers = _draft_layers(dflash)
    taps = ", ".join(map(str, dflash.read_list(int, "target_layer_ids")))
    verified = f"run verifies {own_drafts(engine.draft_len, auto=engine.auto_draft_len)}"
    candidates = dflash.read(int, "walk.top_k", default=None)
    drafts = "the likeliest token of each row"
    if candidates is not None:
        drafts = (
            f"one of the {candidates} likeliest of each row, each chosen with the one before"
        )
    return [
        ("drafter", f"{len(layers)} layers, from {sources.get('drafter')}"),
        ("masks", describe_masks(layers)),
        ("drafts", drafts),
        ("taps", f"outputs of target layers {taps}"),
        ("block", f"{dflash.read(int, 'block_size')} tokens; {verified}"),
        ("mask id", str(dflash.read(int, "mask_token_id"))),
    ]


def _format_rows(engine: EngineConfig) -> Rows:
    rest = _rest_of(engine.quantized_linears, engine)
    weights = f"{engine.weights}{rest}"
    if engine.speculates:
        rest = _rest_of(engine.quantized_drafter_linears, engine)
        weights += f"; drafter {engine.drafter_weights}{rest}"
    memory = SlotMemory.of(engine.io, cache_len=engine.cache_len)
    caches = f"{engine.caches}, {human_bytes(memory.token_bytes)} a token of a slot"
    rows = [("weights", weights), ("caches", caches)]
    if engine.has_states:
        layers = counted(memory.num_states, "layer")
        rows.append(("states", f"{layers}, float32, {memory.describe_states()}"))
    return rows


def _rest_of(quantized: Mapping[str, int], engine: EngineConfig) -> str:
    """Return what a model's other weights are, where some are quantized."""
    is_mixed = quantized or engine.weight_only_precision
    return f", others {engine.dtype}" if is_mixed else ""


def _draft_layers(dflash: HfReader) -> list[DraftLayerConfig]:
    rows = dflash.get("layers")
    if not isinstance(rows, list):
        dflash.fail("layers", f"is {quote(rows)}, expected a list of masks.")
    layers = []
    for index, row in enumerate(rows):
        mask = HfReader({"layer": row}, dflash.where, f"{dflash.prefix}layers[{index}].")
        causal = mask.read(bool, "layer.causal")
        layers.append(DraftLayerConfig(causal, mask.read(int, "layer.window", low=0)))
    return layers


def _merge_layers(tensors: Iterable[IoTensor]) -> list[IoTensor]:
    """Return one tensor for all caches that differ in nothing but their layer.

    Caches with rings are longer or shorter than others, so they are not merged with them.
    """
    merged: dict[tuple[str, tuple[int | str, ...]], IoTensor] = {}
    for tensor in tensors:
        if tensor.cache is not None:
            stem, _, layer = tensor.name.partition(".")
            name = f"{stem}.*.out" if layer.endswith(".out") else f"{stem}.*"
            part = stem.rpartition("_")[2] if tensor.recurrent else "cache"
            tensor = replace(tensor, name=name, meaning=f"a layer's {part}, updated in place")
        merged.setdefault((tensor.name, tensor.shape), tensor)
    return list(merged.values())


def _lines(rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    return table(rows, "", align).splitlines()


def _kernel_cells(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        kernel["kernel"],
        human_bytes(int(kernel["bytes"])),
        f"sha256 {_digest(kernel['sha256'])}",
        f"of source {_digest(kernel['source_sha256'])}",
    )


def _file_cells(item: tuple[str, Mapping[str, Any]]) -> tuple[str, ...]:
    name, entry = item
    size = human_bytes(int(entry["bytes"]))
    return name, size, f"sha256 {_digest(entry['sha256'])}"


def _io_cells(tensor: IoTensor) -> tuple[str, ...]:
    shape = f"[{', '.join(map(str, tensor.shape))}]"
    return (
        tensor.direction,
        tensor.name,
        tensor.dtype,
        shape,
        tensor.meaning,
    )


def _digest(sha256: str) -> str:
    return f"{sha256[:_DIGEST_CHARACTERS]}…"
