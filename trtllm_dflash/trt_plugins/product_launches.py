"""Launches of the kernels that multiply weights in codes: experts, and linears in FP8 blocks."""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_dflash.checkpoint.formats import FP8_BLOCK_SIZE, FP8_UNIT, NVFP4_GROUP_SIZE
from trtllm_dflash.checkpoint.mxfp4 import MXFP4_GROUP_SIZE
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.kernel_specs import FP8_FORMAT, KernelVariant
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins import params
from trtllm_dflash.trt_plugins.call import Call, Dims, Fields

_MOE_SUFFIXES = "", "_mxfp4", "_nvfp4", "_fp8"
_GROUP_SIZES = {1: MXFP4_GROUP_SIZE, 2: NVFP4_GROUP_SIZE}  # by weight format
_BLOCK_SCALES = ("gate_up_scale", "down_scale")
_MOE_SCALES: dict[int, tuple[str, ...]] = {0: (), 1: _BLOCK_SCALES, 3: _BLOCK_SCALES}
_MOE_SCALES[2] = (*_BLOCK_SCALES, "gate_up_scale_2", "down_scale_2")


def moe_kernels(key: KernelVariant) -> list[str]:
    """Return the names of the kernels of a format of experts."""
    suffix = _MOE_SUFFIXES[dict(key.sizes).get("weight_format", 0)]
    tiles = [
        f"{part}_t{tile.tokens}" for tile in params.MOE_TILES for part in ("gate_up", "down")
    ]
    return [f"dflash_moe_{name}{suffix}" for name in ("route", "list", *tiles, "sum")]


def _moe_sizes(dims: Dims, fields: Fields) -> dict[str, int]:
    """Return the sizes of a plan, if the kernels can work on them and the scales are those of the
    weights' format.
    """
    weight_format = int(fields["weight_format"])
    top_k = int(fields["top_k"])
    (tokens, hidden) = dims["x"]
    (experts, rows) = dims["gate_up_bias"]
    inner_size = rows // 2
    unit = params.moe_unit(weight_format)
    if rows % 2 or hidden % unit or inner_size % unit:
        raise EngineError(
            f"experts need an H and an I that {unit} divides, and J = 2I rows: H is {hidden} and J"
            f" {rows}"
        )
    inner = dims["down"][2] * params.PACKED_OF_WORD.get(weight_format, 1)
    if inner != inner_size:
        raise EngineError(
            f"experts' down has I = {inner} columns, and gate_up 2I = {rows} rows"
        )
    if not 1 <= top_k <= min(experts, params.MAX_TOP_K_EXPERTS) or experts > params.MAX_EXPERTS:
        raise EngineError(
            f"a token may have 1 to {params.MAX_TOP_K_EXPERTS} experts of at most"
            f" {params.MAX_EXPERTS}: top_k is {top_k}, and there are {experts}"
        )
    _check_scales(dims, fields, {"gate_up": (rows, hidden), "down": (hidden, inner_size)})
    sizes = {
        "tokens": tokens,
        "hidden": hidden,
        "inner_size": inner_size,
        "experts": experts,
        "top_k": top_k,
    }
    return sizes | {"weight_format": weight_format}


def _check_scales(dims: Dims, fields: Fields, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check that scales are there where the format has them, as many as the weights' `shapes` have
    blocks.
    """
    weight_format = int(fields["weight_format"])
    given = tuple(name for name in _MOE_SCALES[2] if name in dims)
    if given != _MOE_SCALES[weight_format]:
        wanted, got = (
            ", ".join(names) or "no scales" for names in (_MOE_SCALES[weight_format], given)
        )
        raise EngineError(f"experts of weight_format {weight_format} have {wanted}; got {got}")
    _check_fp8_fields(fields)
    for name, (rows, columns) in shapes.items() if weight_format else ():
        if weight_format == FP8_FORMAT:
            halves = 2 if name == "gate_up" else 1
            words = halves * _fp8_scales(rows // halves, columns, int(fields["block_rows"]))
            held = "a scale in each"
        else:
            words = rows * columns // (4 * _GROUP_SIZES[weight_format])
            held = "four scales in each"
        if dims[f"{name}_scale"][1] != words:
            raise EngineError(
                f"{name}_scale is {list(dims[f'{name}_scale'])}, expected [E, {words}], {held}"
            )


def _check_fp8_fields(fields: Fields) -> None:
    block_rows = int(fields["block_rows"])
    is_fp8 = fields["weight_format"] == FP8_FORMAT
    if block_rows not in ((1, FP8_BLOCK_SIZE) if is_fp8 else (0,)):
        raise EngineError(
            f"experts have block_rows 1 or {FP8_BLOCK_SIZE} if weight_format is"
            f" {FP8_FORMAT}, else 0: block_rows is {block_rows} and weight_format"
            f" {int(fields['weight_format'])}"
        )
    if is_fp8 and fields["interleaved"]:
        raise EngineError("experts in FP8 have all gates before all ups: interleaved is 1")


def _fp8_scales(rows: int, columns: int, block_rows: int) -> int:
    """Return how many scales FP8 codes have: one a block, or one a row."""
    if block_rows == 1:
        return rows
    return -(-rows // FP8_BLOCK_SIZE) * -(-columns // FP8_BLOCK_SIZE)


def moe_workspace(dims: Dims, fields: Fields) -> int:
    """Return the bytes of workspace; EngineError for shapes that no call may have."""
    return params.moe_plan(**_moe_sizes(dims, fields)).workspace_bytes


def moe_launches(call: Call) -> list[Launch]:
    """Plan the launches of experts."""
    sizes = _moe_sizes(call.dims, call.attributes)
    made = params.moe_plan(**sizes)
    weight_format = sizes.pop("weight_format")
    misplaced = [name for name in ("x", "gate_up", "down", "out") if call.addresses[name] % 16]
    if misplaced:
        raise EngineError(
            f"experts are read 16 bytes at a time: {', '.join(misplaced)} must begin at a multiple"
            " of 16"
        )
    parts = {name: call.workspace + begin for name, begin in made.parts.items()}
    if weight_format not in _GROUP_SIZES:  # there the products' order is another
        parts["ordered_x"] = call.addresses["x"]
    kernel_params = params.MoeParams(
        **call.addresses,
        **parts,
        **sizes,
        **{
            name: int(call.attributes[name])
            for name in ("normalize", "interleaved", "block_rows")
        },
        **{name: call.attributes[name] for name in ("limit", "alpha", "shift")},
    )
    tokens = sizes["tokens"]
    tile = f"_t{made.tile.tokens}"
    suffix = _MOE_SUFFIXES[weight_format]
    steps = {
        "route": ((tokens, 1, 1), params.ROUTE_THREADS, 0),
        "list": ((1, 1, 1), params.LIST_THREADS, 0),
        f"gate_up{tile}": (
            (made.gate_up_blocks, made.groups, 1),
            params.MOE_THREADS,
            made.shared_bytes,
        ),
        f"down{tile}": (
            (made.down_blocks, made.groups, 1),
            params.MOE_THREADS,
            made.shared_bytes,
        ),
        "sum": ((tokens, made.sum_blocks, 1), params.SUM_THREADS, 0),
    }
    return [
        Launch(f"dflash_moe_{name}{suffix}", grid, threads, shared_bytes, kernel_params)
        for name, (grid, threads, shared_bytes) in steps.items()
    ]


def linear_kernels(_: KernelVariant) -> list[str]:
    """Return the names of the kernels of linears."""
    return [f"dflash_block_linear_t{tile.tokens}" for tile in params.LINEAR_TILES]


def _linear_sizes(dims: Dims, _: Fields) -> dict[str, int]:
    """Return the sizes of a call, if the kernel can work on them and they hold together."""
    tokens, in_size = dims["x"]
    out_size, words = dims["weight"]
    if in_size % FP8_UNIT or in_size != 4 * words:
        raise EngineError(
            f"a linear in FP8 blocks needs an I that {FP8_UNIT} divides, in int32 of four"
            f" codes: I is {in_size}, and the weight is {list(dims['weight'])}"
        )
    blocks = [-(-size // FP8_BLOCK_SIZE) for size in (out_size, in_size)]
    if list(dims["scales"]) != blocks:
        raise EngineError(
            f"scales are {list(dims['scales'])}, expected {blocks}: one for each block of"
            f" {FP8_BLOCK_SIZE} x {FP8_BLOCK_SIZE} of {out_size} x {in_size}"
        )
    made = params.block_linear_plan(tokens=tokens, out_size=out_size)
    if made.row_blocks > params.MAX_GRID:
        raise EngineError(
            f"a linear in FP8 blocks may have {params.MAX_GRID} blocks of rows:"
            f" {out_size} rows are {made.row_blocks}"
        )
    return {"tokens": tokens, "in_size": in_size, "out_size": out_size}


def linear_workspace(dims: Dims, fields: Fields) -> int:
    """Return 0, the bytes of workspace; EngineError for shapes that no call may have."""
    _linear_sizes(dims, fields)
    return 0


def linear_launches(call: Call) -> list[Launch]:
    """Plan the launch of a linear."""
    sizes = _linear_sizes(call.dims, call.attributes)
    made = params.block_linear_plan(tokens=sizes["tokens"], out_size=sizes["out_size"])
    misplaced = [name for name in ("x", "weight") if call.addresses[name] % 16]
    if misplaced:
        raise EngineError(
            "a linear in FP8 blocks is read 16 bytes at a time:"
            f" {', '.join(misplaced)} must begin at a multiple of 16"
        )
    kernel_params = params.BlockLinearParams(**call.addresses, **sizes)
    name = f"dflash_block_linear_t{made.tile.tokens}"
    grid = (made.token_tiles, made.row_blocks, 1)
    shared = params.LINEAR_SHARED_BYTES
    return [Launch(name, grid, params.MOE_THREADS, shared, kernel_params)]
