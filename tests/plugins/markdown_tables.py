"""The table of plugins/README.md, from the declarations. `python -m tests.plugins.markdown_tables`
rewrites it.
"""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.graph.kernel_specs import KernelType
from trtllm_dflash.graph.ops import OPS, OpSpec

PAGE = Path(__file__).parents[2] / "plugins" / "README.md"
_BEGIN, _END = "<!-- plugins -->\n", "<!-- /plugins -->"


def _formats(kind: KernelType) -> str:
    return (
        f" ({kind.name} {', '.join(map(str, kind.formats))})" if len(kind.formats) > 1 else ""
    )


def _row(spec: OpSpec) -> str:
    required = [tensor.name for tensor in spec.plugin_inputs if not tensor.optional]
    optional = [f"[{tensor.name}]" for tensor in spec.plugin_inputs if tensor.optional]
    in_place = [tensor.aliases for tensor in spec.outputs if tensor.aliases]
    sizes = [f"{size.name} {', '.join(map(str, size.values))}" for size in spec.kernel.sizes]
    fields = [f"{name} ({kind.__name__})" for name, kind in spec.plugin_fields.items()]
    types = [
        f"{kind.symbol} {spec.kernel.dtype} or {kind.dtype}{_formats(kind)}"
        for kind in spec.kernel.types
    ]
    cells = (
        f"`{spec.name}`",
        f"[{spec.kernel.source}.cu](kernels/{spec.kernel.source}.cu)",
        "; ".join([spec.kernel.dtype, *types, *sizes]),
        ", ".join([*required, *optional]),
        ", ".join(in_place) or "nothing",
        ", ".join([*fields, "cubin_sha256 (bytes)", "[cubin (bytes)]"]),
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return every operator: its kernel, what that is compiled for, what the plugin takes and
    serializes.
    """
    head = "| operator | kernel | T, and compiled for | inputs | written in place | fields |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_row, OPS.values())]) + "\n"


def rendered(text: str) -> str:
    """`text` with the table made anew."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}{table()}{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
