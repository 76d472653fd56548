"""The tables of trtllm_dflash/graph/README.md, from the declarations. `python -m
tests.graph.markdown_tables` rewrites them.
"""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash.engine_dir.io_tensors import control_inputs, control_outputs, logits_output
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.graph.ops.spec import Tensor

PAGE = Path(__file__).parents[2] / "trtllm_dflash" / "graph" / "README.md"


def ports() -> str:
    """Return the step's inputs and outputs but the caches."""
    rows = ["| port | direction | type | shape | meaning |", "|---|---|---|---|---|"]
    inputs = control_inputs(vocab_size=32)
    outputs = control_outputs("block_size")  # type: ignore[arg-type]
    logits = logits_output("vocab_size")  # type: ignore[arg-type]
    for port in (*inputs, *outputs, logits):
        shape = ", ".join(map(str, port.shape))
        rows.append(
            f"| `{port.name}` | {port.direction} | {port.dtype} | [{shape}] | {port.meaning} |"
        )
    return "\n".join(rows)


def operators() -> str:
    """Return every operator: meaning, inputs, outputs, attributes."""
    parts = []
    for spec in OPS.values():
        rows = [
            f"### {spec.name}",
            "",
            spec.meaning,
            "",
            "| | name | type | shape | meaning |",
            "|---|---|---|---|---|",
        ]
        for kind, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            rows += [
                f"| {kind}{_when(t)} | `{t.name}` | {t.dtype} | {t.shape} | {t.meaning} |"
                for t in tensors
            ]
        for a in spec.attributes:
            kind, default = (
                ("attribute, optional", "") if a.optional else ("attribute", f"= {a.default}")
            )
            kind += ", body only" * a.body_only
            rows.append(
                f"| {kind} | `{a.name}` | {a.onnx_type.name.lower()} | {default} | {a.meaning} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _when(tensor: Tensor) -> str:
    return ", optional" * tensor.optional + ", body only" * tensor.body_only


TABLES = {"ports": ports, "operators": operators}


def rendered(text: str) -> str:
    """`text` with what stands between the markers of each table made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
