"""What an engine directory holds, read from its own files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.files import CONFIG_FILE
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.log import Rows, human_bytes, table
from trtllm_dflash.models.drafter import DraftLayerConfig
from trtllm_dflash.models.hf_config import parse_json


@dataclass(frozen=True)
class Inspection:
    """An engine's config.json and manifest.json, and in words what differs from them here."""

    directory: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    differences: list[str]
    version_differences: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return asdict(self) | {"directory": str(self.directory)}

    def sections(self) -> list[tuple[str, list[str]]]:
        """All of it, for people: titles and lines."""
        files, versions = self.manifest["files"], self.manifest.get("versions", {})
        size = human_bytes(sum(int(entry["bytes"]) for entry in files.values()))
        overview = _sizes(self.config, self.manifest) if self.config else []
        ports = _one_of_each_kind(self.config["io"]) if self.config else []
        sections = [
            (
                f"{self.directory}: {size}, built {self.manifest.get('created')}",
                table(overview, "").splitlines(),
            ),
            ("inputs and outputs", [_port_line(port) for port in ports]),
            ("kernels", [_kernel_line(kernel) for kernel in self.manifest.get("kernels", ())]),
            ("files", [_file_line(name, entry) for name, entry in files.items()]),
            ("built with", [", ".join(f"{name} {version}" for name, version in versions.items())]),
            ("other versions here", self.version_differences),
            ("check", self.differences or ["every file is what the build wrote"]),
        ]
        return [(title, lines) for title, lines in sections if lines]


def inspect_engine(directory: Path) -> Inspection:
    """Read an engine directory and compare every byte of it with its manifest.

    Raises:
        EngineError: if it has no manifest that this version can read.
    """
    facts = manifest.load(directory)
    differences = manifest.check(directory, deep=True)
    path = directory / CONFIG_FILE
    # A config.json that is not what the build wrote is a difference, and nothing else is read from
    # it.
    intact = not any(text.startswith(CONFIG_FILE) for text in differences)
    config = parse_json(path.read_bytes(), str(path), error=EngineError) if intact else {}
    return Inspection(directory, config, facts, differences, manifest.version_differences(facts))


def describe_masks(layers: Sequence[DraftLayerConfig]) -> str:
    """Each run of equal drafter layers: "layers 0-3 bidirectional, layer 4 causal within 128"."""
    runs = []
    for mask, group in groupby(enumerate(layers), key=lambda item: item[1]):
        indices = [index for index, _ in group]
        span = f"layer {indices[0]}" if len(indices) == 1 else f"layers {indices[0]}-{indices[-1]}"
        window = f" within {mask.window}" if mask.window else ""
        runs.append(f"{span} {'causal' if mask.causal else 'bidirectional'}{window}")
    return ", ".join(runs)


def _sizes(config: Mapping[str, Any], facts: Mapping[str, Any]) -> Rows:
    model, sizes = config["pretrained_config"], config["build_config"]
    sources = {source["model"]: source["directory"] for source in facts.get("weights", ())}
    gpu_arch = sizes["gpu_arch"] if "gpu_arch" in sizes else sizes["arch"]  # until 2026-11
    is_gpu = ARCHS[gpu_arch].is_gpu
    return [
        (
            "target",
            (
                f"{model['model_type']}, {model['num_hidden_layers']} layers, hidden size"
                f" {model['hidden_size']}, vocabulary {model['vocab_size']}, from"
                f" {sources.get('target')}"
            ),
        ),
        *_dflash_rows(config["dflash"], sources),
        ("built for", f"{gpu_arch} by {sizes['backend']}, {sizes['dtype']}"),
        *(
            [("kernels", "ours, as plugins" if sizes["plugins"] else "the compiler's own")]
            if is_gpu
            else []
        ),
        ("slots", str(sizes["max_batch_size"])),
        (
            "prompt",
            f"up to {sizes['max_input_len']} tokens, in steps of up to {sizes['max_num_tokens']}",
        ),
        (
            "sequence",
            f"up to {sizes['max_seq_len']} tokens, in caches of {sizes['cache_len']} rows",
        ),
        ("stop tokens", ", ".join(map(str, model["eos_token_ids"])) or "none"),
    ]


def _dflash_rows(dflash: Mapping[str, Any] | None, sources: Mapping[str, str]) -> Rows:
    if dflash is None:
        return [("drafter", "none: a plain engine, one token a step")]
    layers = [DraftLayerConfig(**layer) for layer in dflash["layers"]]
    return [
        ("drafter", f"{len(layers)} layers, from {sources.get('drafter')}"),
        ("masks", describe_masks(layers)),
        ("taps", f"outputs of target layers {', '.join(map(str, dflash['target_layer_ids']))}"),
        ("block", f"{dflash['block_size']} tokens; run verifies {dflash['draft_len']} drafts"),
        ("mask id", str(dflash["mask_token_id"])),
    ]


def _one_of_each_kind(ports: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each group of caches that differ in their layer only, as one row; rings are longer or shorter
    than others.
    """
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for port in ports:
        is_cache = "cache" in port
        stem, _, rest = str(port["name"]).partition(".")
        name = (
            f"{stem}.*{'.out' if rest.endswith('.out') else ''}" if is_cache else str(port["name"])
        )
        meaning = "a layer's cache, updated in place" if is_cache else port["meaning"]
        kept.setdefault((name, str(port["shape"])), {**port, "name": name, "meaning": meaning})
    return list(kept.values())


def _kernel_line(kernel: Mapping[str, Any]) -> str:
    size, digests = (
        human_bytes(int(kernel["bytes"])),
        (kernel["sha256"][:16], kernel["source_sha256"][:16]),
    )
    return f"{kernel['kernel']:<24}  {size:>9}  sha256 {digests[0]}…  of source {digests[1]}…"


def _file_line(name: str, entry: Mapping[str, Any]) -> str:
    return f"{name:<24}  {human_bytes(int(entry['bytes'])):>9}  sha256 {entry['sha256'][:16]}…"


def _port_line(port: Mapping[str, Any]) -> str:
    shape = f"[{', '.join(map(str, port['shape']))}]"
    return (
        f"{port['direction']:<6}  {port['name']:<18}  {port['dtype']:<8}  {shape:<26} "
        f" {port['meaning']}"
    )
