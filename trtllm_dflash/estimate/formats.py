"""In which numbers a pair is estimated: as its checkpoints are stored, or as the options ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from trtllm_dflash.catalog.gpus import GpuSpec
from trtllm_dflash.checkpoint.formats import FORMATS, Quantization, algos_of
from trtllm_dflash.checkpoint.quantized_tensors import NEVER_QUANTIZED
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.estimate.known import KnownDrafter, KnownTarget
from trtllm_dflash.estimate.precision import Precision
from trtllm_dflash.options.estimate import EstimateConfig

_PLAIN = "bf16"
_HEAD = "lm_head"


def precision_of(config: EstimateConfig, target: KnownTarget, drafter: KnownDrafter) -> Precision:
    """The precision of the pair's parts.

    Raises: UsageError: for a format that the GPU has no arithmetic for, or that is asked of what is
    quantized already, naming the option or the checkpoint that it is about.
    """
    ours = _formats(target, "--quant", config.quant, config.device)
    theirs = _formats(drafter, "--drafter-quant", config.drafter_quant, config.device)
    linears = _most(
        {
            module: name
            for module, name in ours.items()
            if not _is_expert(module) and module != _HEAD
        }
    )
    drafts, head = _most(theirs), ours.get(_HEAD, _PLAIN)
    experts = {_group(module): name for module, name in ours.items() if _is_expert(module)}
    usual = {module: _most(experts) if _is_expert(module) else linears for module in ours}
    numbers = {
        _group(module): (name, usual[module]) for module, name in ours.items() if module != _HEAD
    }
    others = {f"target.{module}": name for module, (name, most) in numbers.items() if name != most}
    others |= {f"drafter.{module}": name for module, name in theirs.items() if name != drafts}
    return Precision(
        linears=linears,
        experts=_most(experts),
        head=head,
        drafter=drafts,
        cache=_cache(config, target),
        others=tuple(others.items()),
    )


def _formats(
    model: KnownTarget | KnownDrafter, option: str, asked: str, gpu: GpuSpec
) -> dict[str, str]:
    """The number of every linear, head and expert by its module."""
    stored, wanted = model.quantization, asked != "none"
    if wanted:
        formats = [FORMATS[name] for name in {stored.default, *stored.modules.values()} if name]
        if formats:
            raise UsageError(
                f"{option} {asked}: {model.name} is {algos_of(formats)} already; leave the option"
                " out, or give its unquantized original"
            )
        stored = Quantization(default=asked, excluded=(_HEAD, *NEVER_QUANTIZED), mxfp4=stored.mxfp4)
    found = model.quantizable.formats(stored)
    expert_linears = set(model.quantizable.expert_linears)
    wrong = {module for module in expert_linears & found.keys() if found[module].group_size is None}
    if wrong and not wanted:
        raise CheckpointError(
            f"{model.name}: {min(wrong)} is FP8, and experts can be NVFP4 or unquantized:"
            " exclude it"
        )
    linears = [module for module in model.quantizable.linears if module not in NEVER_QUANTIZED]
    numbers = dict.fromkeys([*linears, *model.quantizable.experts], _PLAIN)
    numbers |= {module: row.name for module, row in found.items() if module not in wrong}
    for name in dict.fromkeys(numbers.values()):
        _require(
            name, f"{option} {name}" if name == asked else f"{model.name}, stored in {name}", gpu
        )
    return numbers


def _require(name: str, who: str, gpu: GpuSpec) -> None:
    row = FORMATS.get(name)
    if row is not None and gpu.arch not in row.archs:
        raise UsageError(
            f"{who}: {gpu.name} ({gpu.arch}) has no arithmetic for {row.algo}. Who has it:"
            f" {row.hardware}"
        )


def _cache(config: EstimateConfig, target: KnownTarget) -> str:
    """The type of the target's caches: asked for, else FP8 where its checkpoint has scales for
    it.
    """
    if config.kv_cache_dtype != "auto":
        _require(config.kv_cache_dtype, f"--kv-cache-dtype {config.kv_cache_dtype}", config.device)
        return config.kv_cache_dtype
    cache = target.quantization.kv_cache or _PLAIN
    _require(
        cache,
        f"{target.name} has scales for {cache} caches (--kv-cache-dtype bf16 does without)",
        config.device,
    )
    return cache


def _is_expert(module: str) -> bool:
    return ".experts." in module


def _group(module: str) -> str:
    """The module itself; of one expert's linear, all experts of its layer, which one node
    computes.
    """
    head, found, _ = module.partition(".experts.")
    return f"{head}.experts" if found else module


def _most(numbers: Mapping[str, str]) -> str:
    """The number that most modules have; that of unquantized weights where there is none."""
    return Counter(numbers.values()).most_common(1)[0][0] if numbers else _PLAIN
