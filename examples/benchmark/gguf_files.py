"""The demo target as GGUF files for llama.cpp, with the weights of demo/target in other types.

python gguf_files.py OUTPUT_DIR

Vocabulary and sizes are those of the GGUF file that the target comes from. Its 4-bit weights are
dequantized and rounded to BF16, which gives the numbers of demo/target. They are stored as F32 or
BF16, or rounded to Q8_0 or Q4_0 by the package gguf, as llama.cpp does. With Q4_0 the table of
embedding and head is Q8_0, as llama.cpp keeps it in more than 4 bits, too.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import click
import gguf
import ml_dtypes
import numpy as np

TYPES = ("F32", "BF16", "Q8_0", "Q4_0")
_TABLE = "token_embd.weight"
_WRITTEN_ANYWAY = ("GGUF.", "general.architecture")
_CONVERTER = Path(__file__).parent.parent / "demo_pair" / "convert_target.py"


def _source() -> Path:
    """Return the GGUF file that demo/target is made from."""
    spec = spec_from_file_location("convert_target", _CONVERTER)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["convert_target"] = module
    spec.loader.exec_module(module)
    found: Path = module.find_gguf()
    return found


def _copy_fields(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for name, field in reader.fields.items():
        if name.startswith(_WRITTEN_ANYWAY) or name == "general.file_type":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)


def write_gguf(path: Path, weight_type: str) -> None:
    """Write the target with linears of `weight_type`; norms are F32."""
    reader = gguf.GGUFReader(_source())
    writer = gguf.GGUFWriter(path, "llama")
    _copy_fields(reader, writer)
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        weight = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
        chosen = "Q8_0" if (tensor.name, weight_type) == (_TABLE, "Q4_0") else weight_type
        if weight.ndim < 2 or chosen == "F32":
            writer.add_tensor(tensor.name, weight)
            continue
        stored = gguf.GGMLQuantizationType[chosen]
        options: dict[str, Any] = {"raw_dtype": stored}
        writer.add_tensor(tensor.name, gguf.quantize(weight, stored), **options)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@click.command()
@click.argument("output_dir", type=Path)
def main(output_dir: Path) -> None:
    """Write a file of each type to OUTPUT_DIR, if it is not there."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for weight_type in TYPES:
        path = output_dir / f"{weight_type}.gguf"
        if not path.is_file():
            partial = path.with_suffix(".partial")
            write_gguf(partial, weight_type)
            partial.rename(path)
        click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
