"""What limits our kernels, by their machine code: a table of bounds, for GPUs that are not here.

`python plugins/bench/bounds.py --json bounds.json --markdown bounds.md`: about five minutes; needs
nvidia-cuda-nvdisasm besides what compiles kernels. README.md says what the columns are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from issue import cycles_a_turn
from launches import ATTENTION, launch_size
from machines import ARCHS, MACHINES, Machine, resident_ctas
from sass import disassemble, is_product
from turn import Accesses, Trace, usual_turn

from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.trt_plugins import attention_plans, params
from trtllm_dflash.trt_plugins.nvrtc import Cubin, FunctionReport, compile_kernel

_LANES = 32
_SCHEDULERS = 4  # of a multiprocessor
_PRODUCT_OPERATIONS = 2 * 16 * 8 * 16
_FIRST_FP8 = 89


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor.

    `ctas` is how many fit at once, 0 if it is not known here how the kernel is launched.
    """

    kernel: str
    arch: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    ctas: int
    instructions: int  # of the whole code


@dataclass(frozen=True)
class Bound:
    """The most that the main loop of a kernel can do on a GPU, all CTAs that fit at work.

    `bytes` are what a CTA reads in a turn, `instructions` and `products` those of one warp.
    """

    kernel: str
    gpu: str
    ctas: int
    instructions: int
    products: int
    bytes: int
    cycles: float
    bytes_a_cycle: float
    share_of_copy_bandwidth: float
    tflops: float


def variants(arch: str) -> Iterator[KernelVariant]:
    """Yield every kernel source with all sizes and formats that an engine for `arch` may have."""
    found = set()
    for spec in OPS.values():
        kernel = spec.kernel
        choices = [[(size.name, value) for value in size.values] for size in kernel.sizes]
        for one in kernel.types:
            formats = (0, *one.formats) if _has(one.name, arch) else (0,)
            choices.append([(one.name, number) for number in formats])
        for chosen in product(*choices):
            found.add(KernelVariant(kernel.source, tuple(pair for pair in chosen if pair[1])))
    yield from sorted(found)


def _has(name: str, arch: str) -> bool:
    return name != "fp8_cache" or int(arch[2:]) >= _FIRST_FP8


def _tile_bytes(kernel: str) -> int | None:
    """Return the bytes of attention's tile of keys and values; None for other kernels."""
    found = ATTENTION.fullmatch(kernel)
    if found is None:
        return None
    head_dim, rows = int(found[1]), int(found[2])
    keys = next(
        tile.keys for tile in attention_plans.attention_tiles(head_dim) if tile.rows == rows
    )
    return 2 * keys * head_dim * (1 if found[3] else 2)


def _accesses(kernel: str) -> list[Accesses]:
    """Return what a warp moves in a turn of the main loop: keys and values, or weights first.

    Where threads do not divide a tile evenly it is the warp with most.
    """
    tile = _tile_bytes(kernel)
    if tile is None:
        return [Accesses("LDG"), Accesses("LDGSTS")]
    vectors = 2 * -(-tile // (2 * 16 * params.ATTENTION_THREADS))
    return [Accesses("LDGSTS", vectors)]


def measure(
    nvdisasm: Path, cubin: Cubin, machines: Sequence[Machine]
) -> tuple[list[Resources], list[Bound]]:
    """Return resources of all kernels of a cubin, and bounds of those with products."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin.code)
        functions = disassemble(nvdisasm, path)
    resources, bounds = [], []
    for kernel, report in sorted(cubin.reports().items()):
        function = functions[kernel]
        code = sum(len(block.instructions) for block in function.blocks)
        found = _resources(kernel, cubin.arch, report, code)
        resources.append(found)
        turn = usual_turn(function, _accesses(kernel)) if found.ctas else None
        if turn is not None:
            bounds += [_bound(found, turn, machine) for machine in machines]
    return resources, bounds


def _resources(kernel: str, arch: str, report: FunctionReport, code: int) -> Resources:
    launch = launch_size(kernel)
    shared_bytes = report.static_shared_bytes + (launch.shared_bytes if launch else 0)
    ctas = resident_ctas(arch, report.registers, launch.threads, shared_bytes) if launch else 0
    return Resources(
        kernel, arch, report.registers, report.spilled_bytes, shared_bytes, ctas, code
    )


def _bound(found: Resources, turn: Trace, machine: Machine) -> Bound:
    launch = launch_size(found.kernel)
    assert launch is not None
    warps = launch.threads // _LANES
    products = sum(map(is_product, turn))
    read = _accesses(found.kernel)[0].count(turn) * 16 * _LANES * warps
    moved = _tile_bytes(found.kernel) or read
    cycles = cycles_a_turn(turn, found.ctas * warps // _SCHEDULERS, machine.product_cycles)
    rate = found.ctas * moved / cycles
    operations = found.ctas * warps * products * _PRODUCT_OPERATIONS / cycles
    return Bound(
        found.kernel,
        machine.name,
        found.ctas,
        len(turn),
        products,
        moved,
        round(cycles),
        round(rate, 2),
        round(
            rate * machine.processors * machine.cycles_a_second / machine.copy_bytes_a_second, 3
        ),
        round(operations * machine.processors * machine.cycles_a_second / 1e12, 1),
    )


def tables(resources: Sequence[Resources], bounds: Sequence[Bound]) -> str:
    """Return both tables in Markdown."""
    archs = sorted({one.arch for one in resources}, key=lambda arch: int(arch[2:]))
    gpus = [machine.name for machine in MACHINES if any(b.gpu == machine.name for b in bounds)]
    lines = [
        "Bounds from the disassembly, not measurements: see README.md.",
        "",
        f"| main loop | {' | '.join(gpus)} |",
        f"|---|{'---|' * len(gpus)}",
        *_rows({(one.kernel, one.gpu): _bound_cell(one) for one in bounds}, gpus),
        "",
        f"| registers, spilled bytes, CTAs | {' | '.join(archs)} |",
        f"|---|{'---|' * len(archs)}",
        *_rows({(one.kernel, one.arch): _resource_cell(one) for one in resources}, archs),
    ]
    return "\n".join(lines) + "\n"


def _rows(cells: dict[tuple[str, str], str], columns: Sequence[str]) -> list[str]:
    kernels = sorted({kernel for kernel, _ in cells}, key=_natural)
    lines = []
    for kernel in kernels:
        row = [cells.get((kernel, column), "") for column in columns]
        lines.append(f"| {' | '.join([kernel.removeprefix('dflash_'), *row])} |")
    return lines


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by their value."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _bound_cell(one: Bound) -> str:
    share = f", {100 * one.share_of_copy_bandwidth:.0f} %" if one.bytes else ""
    rate = f"{one.bytes_a_cycle:.1f} B{share}, {one.tflops:.0f} TFLOP/s"
    return f"{one.instructions} instructions, {rate}"


def _resource_cell(one: Resources) -> str:
    return f"{one.registers}, {one.spilled_bytes}, {one.ctas or '?'}"


def find_nvdisasm() -> Path:
    """Return nvdisasm of NVIDIA's wheel, of a CUDA toolkit or on the PATH.

    Raises:
        SystemExit: if there is none.
    """
    try:
        from cuda.pathfinder import find_nvidia_binary_utility

        found = find_nvidia_binary_utility("nvdisasm")
    except ImportError:
        found = None
    if not found:
        raise SystemExit(
            "bounds.py needs nvdisasm, which is not installed here:"
            " pip install '.[bounds]' in the dflash-trt repository"
        )
    return Path(found)


def main() -> None:
    """Print the tables, and write them where the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--archs", nargs="+", default=list(ARCHS), choices=list(ARCHS))
    parser.add_argument(
        "--sources", nargs="+", help="kernel sources, as attention; default: all"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    arguments = parser.parse_args()
    nvdisasm = find_nvdisasm()
    resources: list[Resources] = []
    bounds: list[Bound] = []
    for arch in arguments.archs:
        machines = [machine for machine in MACHINES if machine.arch == arch]
        for variant in variants(arch):
            if arguments.sources and variant.source not in arguments.sources:
                continue
            sys.stderr.write(f"{arch} {variant}\n")
            try:
                made = measure(nvdisasm, compile_kernel(variant, arch), machines)
            except BuildError as error:
                raise SystemExit(str(error)) from error
            resources += made[0]
            bounds += made[1]
    text = tables(resources, bounds)
    sys.stdout.write(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json:
        found = {
            "machines": [asdict(machine) for machine in MACHINES],
            "resources": [asdict(one) for one in resources],
            "bounds": [asdict(one) for one in bounds],
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
