"""Checks, before any work, that an arch and our kernels support what a build asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trtllm_dflash.builder.what_if import UNQUANTIZED
from trtllm_dflash.checkpoint.formats import FORMATS, FP8_UNIT, WeightFormat, algos_of
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.errors import BuildError, UsageError
from trtllm_dflash.graph.kernel_specs import ATTENTION, GATED_DELTA_KERNEL
from trtllm_dflash.hardware.archs import ARCHS, Arch
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.models.moe import MoEConfig
from trtllm_dflash.options.resolved_build import ResolvedBuild
from trtllm_dflash.trt_plugins.params import (
    DELTA_MAX_SHARED_BYTES,
    MAX_TOP_K_EXPERTS,
    gated_delta_plan,
    moe_unit,
)

HEAD_UNIT = 8  # tried with TensorRT-RTX 1.7: 8 to 512, and 36, 68, 100, with and without GQA
_INSTEAD = "--kv-cache-dtype bfloat16 leaves the caches as they are"


def check_format_support(
    checkpoints: Mapping[str, Checkpoint[Any]], arch: Arch, *, quant: str = UNQUANTIZED
) -> None:
    """Check that every quantized linear of the models (by role) can be computed on `arch`.

    The target is supposed to be quantized to `quant`.

    Raises:
        UsageError: if `quant` cannot be.
        BuildError: naming the format, the archs that have it, and what to do instead.
    """
    for role, checkpoint in checkpoints.items():
        for fmt in checkpoint.formats.values():
            if arch.name in fmt.archs:
                continue
            who = f"{fmt.hardware} can compute it: --arch {', '.join(fmt.archs)}"
            if fmt is FORMATS.get(quant):
                raise UsageError(
                    f"--quant {quant}: --arch {arch.name} ({arch.hardware}) has no arithmetic for"
                    f" {fmt.algo}. {who}"
                )
            others = [other.algo for other in FORMATS.values() if arch.name in other.archs]
            instead = "Use the unquantized original"
            if others:
                instead = f"Quantize its unquantized original to {' or '.join(others)}"
            raise BuildError(
                f"--arch {arch.name} ({arch.hardware}) has no arithmetic for {fmt.algo}"
                f" ({fmt.meaning}), in which the {role} {checkpoint.directory} is stored."
                f" {who}. {instead} for {arch.name}"
            )


def check_weight_only(checkpoints: Mapping[str, Checkpoint[Any]], precision: str) -> None:
    """Check that no model (by role) is quantized already.

    Raises:
        UsageError: naming the first that is.
    """
    for role, checkpoint in checkpoints.items():
        if checkpoint.formats:
            raise UsageError(
                f"--weight-only-precision {precision}: the {role} {checkpoint.directory} is"
                f" quantized already ({algos_of(checkpoint.formats.values())}), and would lose"
                " twice. Build from its unquantized original, or leave the option out"
            )


def check_fp8_kv(resolved: ResolvedBuild) -> None:
    """Check that an engine of these sizes can have FP8 caches.

    Raises:
        UsageError: saying what can.
    """
    arch = ARCHS[resolved.gpu_arch]
    if not arch.has_fp8:
        able = ", ".join(name for name, other in ARCHS.items() if other.has_fp8)
        raise UsageError(
            f"FP8 KV caches cannot be built for --arch {arch.name}, which has no FP8; {able} have"
            f" it. {_INSTEAD}"
        )
    if arch.is_gpu and not resolved.plugins:
        raise UsageError(
            f"FP8 KV caches need our kernels: {BACKENDS[arch.backend].title} by itself updates only"
            f" caches of float32, float16 and bfloat16 in place; leave --no-plugins out. {_INSTEAD}"
        )


def check_heads(configs: Mapping[str, TargetConfig | DrafterConfig]) -> None:
    """Check that TensorRT-RTX compiles the attention of these models, by role.

    With as many key heads as query heads it stops in an internal check, unless 8 divides head_dim.

    Raises:
        UsageError: naming the sizes.
    """
    for role, config in configs.items():
        if config.head_dim % HEAD_UNIT and config.num_q_heads == config.num_kv_heads:
            raise UsageError(
                f"the {role}'s head_dim {config.head_dim} is no multiple of {HEAD_UNIT}, and it has"
                f" as many key heads as query heads ({config.num_q_heads}): the compiler cannot"
                " compile that attention, with our kernels or without. --arch cpu can"
            )


def check_kernels(
    configs: Mapping[str, TargetConfig | DrafterConfig],
    *,
    expert_formats: Collection[WeightFormat],
    block_size: int,
    fp8_caches: bool = False,
) -> None:
    """Check that our kernels exist for the sizes of these models, by role.

    `expert_formats` are those of the target's experts.

    Raises:
        UsageError: saying for which sizes they do, and what builds without them.
    """
    options = "--no-plugins"
    if fp8_caches:
        options += " --kv-cache-dtype bfloat16"
    advice = f"give {options}, and the compiler makes its own"
    (head_dim,) = ATTENTION.sizes
    for role, config in configs.items():
        if config.head_dim not in head_dim.values:
            raise UsageError(
                f"there is no attention kernel for the {role}'s head_dim {config.head_dim}, only"
                f" for {', '.join(map(str, head_dim.values))}; {advice}"
            )
        if not isinstance(config, TargetConfig):
            continue
        if config.moe is not None:
            unit = max(map(_expert_unit, expert_formats), default=moe_unit(0))
            _check_expert_kernel(config.hidden_size, config.moe, unit, advice)
        if config.linear_attention is not None:
            _check_delta_kernel(config.linear_attention, block_size, advice)


def _expert_unit(fmt: WeightFormat) -> int:
    return FP8_UNIT if fmt.group_size is None else moe_unit(1)


def _check_delta_kernel(linear: LinearAttentionConfig, block_size: int, advice: str) -> None:
    problems = []
    for size in GATED_DELTA_KERNEL.sizes:
        value = getattr(linear, size.name)
        if value not in size.values:
            accepted = " or ".join(map(str, size.values))
            problems.append(f"{size.name} is {value}, expected {accepted}")
    plan = gated_delta_plan(
        batch=1,
        rows=block_size,
        window_rows=linear.window_rows(block_size),
        key_heads=linear.num_key_heads,
        value_heads=linear.num_value_heads,
    )
    if plan.shared_bytes > DELTA_MAX_SHARED_BYTES:
        problems.append(
            f"a block of {block_size} tokens and {linear.num_value_heads} value heads need"
            f" {plan.shared_bytes} bytes of shared memory, more than {DELTA_MAX_SHARED_BYTES}"
        )
    if problems:
        raise UsageError(
            "there is no kernel for the target's gated delta nets:"
            f" {'; '.join(problems)}; {advice}"
        )


def _check_expert_kernel(hidden_size: int, moe: MoEConfig, unit: int, advice: str) -> None:
    sizes = {
        "hidden_size": hidden_size,
        "the experts' intermediate_size": moe.intermediate_size,
    }
    problems = [
        f"{name} is {size}, no multiple of {unit}"
        for name, size in sizes.items()
        if size % unit
    ]
    if moe.top_k > MAX_TOP_K_EXPERTS:
        problems.append(f"a token has {moe.top_k} experts, more than {MAX_TOP_K_EXPERTS}")
    if problems:
        raise UsageError(
            f"there is no kernel for the target's experts: {'; '.join(problems)}; {advice}"
        )
