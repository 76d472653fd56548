"""Writes a target as other makers publish it, in a quantized layout of their own packages.

Hugging Face's fine-grained FP8 is quantized by transformers, the rest by compressed-tensors. Where
activations have scales in the checkpoint, these are of the texts that `dflash-trt quantize`
calibrates with. Linears of decoder layers are quantized; nothing else is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

_BLOCK = 128
# Linears that read one input share a global scale, so that an engine can join them.
_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Layout:
    """A published layout: its title, and compressed-tensors' name of it (None: not theirs)."""

    title: str
    preset: str | None = None


LAYOUTS: Mapping[str, Layout] = {
    "hf_fp8": Layout("Hugging Face FP8"),
    "ct_fp8": Layout("compressed-tensors FP8", "FP8"),
    "ct_fp8_dynamic": Layout("compressed-tensors FP8_DYNAMIC", "FP8_DYNAMIC"),
    "ct_fp8_block": Layout("compressed-tensors FP8_BLOCK", "FP8_BLOCK"),
    "ct_nvfp4a16": Layout("compressed-tensors NVFP4A16", "NVFP4A16"),
    "ct_nvfp4": Layout("compressed-tensors NVFP4", "NVFP4"),
}


def write(source: Path, layout: Layout, directory: Path) -> None:
    """Write the target in `source` anew to `directory`, which must not be there."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    linears = {
        name.removesuffix(".weight"): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("model.layers.") and tensors[name].ndim == 2
    }
    directory.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, directory / file.name)
    if layout.preset is None:
        quantized = _by_transformers(linears, directory / "config.json")
    else:
        quantized = _by_compressed_tensors(linears, layout.preset, source, directory)
    for module, stored in quantized:
        tensors |= {f"{module}.{name}": tensor.contiguous() for name, tensor in stored.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _by_transformers(
    linears: Mapping[str, Any], config_file: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tensors of each linear, and state the method in config.json.

    transformers leaves a weight of partial blocks as it is. Zeros fill the last blocks here, which
    change no scale. Their codes are cut off again.
    """
    from compressed_tensors.quantization.utils import maybe_pad_tensor_for_block_quant
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = FineGrainedFP8Config(modules_to_not_convert=["lm_head"])
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=config))
    stated = json.loads(config_file.read_text(encoding="utf-8"))
    stated["quantization_config"] = config.to_dict()
    config_file.write_text(json.dumps(stated, indent=2), encoding="utf-8")
    for module, weight in linears.items():
        whole = maybe_pad_tensor_for_block_quant(weight, (_BLOCK, _BLOCK))
        stored = quantizer.convert({"weight": whole})
        stored["weight"] = stored["weight"][: weight.shape[0], : weight.shape[1]]
        yield module, stored


def _by_compressed_tensors(
    linears: Mapping[str, Any], preset: str, source: Path, directory: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tensors of each linear, and state the method in config.json."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        preset_name_to_scheme,
    )
    from torch.nn import Linear

    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.format = infer_module_format(Linear, scheme).value
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format=scheme.format,
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    ModelCompressor(quantization_config=config).update_config(directory)
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    inputs = {}
    if scheme.input_activations is not None and scheme.input_activations.dynamic is not True:
        inputs = largest_inputs(source)
    for module, weight in linears.items():
        joined = [weight, *(linears[name] for name in _joined(module))]
        state = _scales(weight.float(), joined, scheme.weights)
        state |= _input_scale(inputs.get(module), scheme.input_activations)
        yield module, compressor.compress(state | {"weight": weight.float()}, scheme)


def _joined(module: str) -> Iterator[str]:
    """Yield the other linears that read a linear's input."""
    before, _, last = module.rpartition(".")
    for names in _JOINED:
        if last in names:
            yield from (f"{before}.{name}" for name in names if name != last)


def _scales(weight: Any, joined: list[Any], arguments: Any) -> dict[str, Any]:
    """Return the scales of a weight [out, in] by the package's own rule, one for each part."""
    from compressed_tensors.quantization.utils import (
        calculate_qparams,
        generate_gparam,
        maybe_pad_tensor_for_block_quant,
    )

    rows, columns = weight.shape
    strategy, found = arguments.strategy, {}
    if strategy == "tensor_group":
        found["weight_global_scale"] = generate_gparam(
            min(part.float().min() for part in joined),
            max(part.float().max() for part in joined),
        )
        parts = weight.reshape(rows, columns // arguments.group_size, arguments.group_size)
        low, high = parts.amin(-1), parts.amax(-1)
    elif strategy == "block":
        whole = maybe_pad_tensor_for_block_quant(weight, (_BLOCK, _BLOCK))
        parts = whole.reshape(-1, _BLOCK, whole.shape[1] // _BLOCK, _BLOCK)
        low, high = parts.amin((1, 3)), parts.amax((1, 3))
    elif strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    else:
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    scales, _ = calculate_qparams(low, high, arguments, found.get("weight_global_scale"))
    return found | {"weight_scale": scales}


def _input_scale(largest: Any, arguments: Any) -> dict[str, Any]:
    """Return the scale of a linear's input, of its largest magnitude; {} where none is stored."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    if largest is None:
        return {}
    if arguments.strategy == "tensor_group":
        return {"input_global_scale": generate_gparam(-largest, largest)}
    scales, _ = calculate_qparams(-largest, largest, arguments)
    return {"input_scale": scales}


@cache
def largest_inputs(source: Path) -> dict[str, Any]:
    """Return the largest magnitude of each linear's input, over the calibration texts."""
    import torch
    from transformers import AutoModelForCausalLM

    from trtllm_dflash.options.quantize import QuantizeConfig
    from trtllm_dflash.quantize.plan import plan_quantization

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    found: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, arguments: tuple[Any, ...]) -> None:
            largest = arguments[0].abs().max()
            found[name] = torch.maximum(found.get(name, largest), largest)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            module.register_forward_pre_hook(watch(name))
    asked = QuantizeConfig(target=str(source), output_dir=Path("not-written"), quant="fp8")
    with torch.inference_mode():
        for ids in plan_quantization(asked).sequences:
            model(torch.tensor([ids]))
    return found


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("layouts", type=click.Choice(list(LAYOUTS)), nargs=-1, required=True)
def main(source: Path, output: Path, layouts: tuple[str, ...]) -> None:
    """Quantize the target in SOURCE to each of LAYOUTS, into the folder of its name in OUTPUT."""
    for name in layouts:
        shutil.rmtree(output / name, ignore_errors=True)
        write(source, LAYOUTS[name], output / name)


if __name__ == "__main__":
    main()
