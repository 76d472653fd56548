"""TensorRT-RTX engines of hybrid targets, built without a GPU, of every family, arch and format.

Without our kernels an engine is for all archs at once, which costs as much as for one. With them
every two choices occur together; `DFLASH_ALL_HYBRIDS=1` builds all three together.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.nvrtc")
from tests.fixtures.chosen import chosen
from tests.fixtures.pairwise import Case, pairwise
from tests.fixtures.tiny_hybrid import quantized_hybrid, tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter
from tests.graph.test_moe_layer import share_scales
from tests.plugins.plugin_graphs import layer_log, parser_processes
from trtllm_dflash.builder.external_weights import move_weights, weights_of
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.worker import _make_model
from trtllm_dflash.graph.plugin_nodes import kernel_variants
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.trt_plugins.nvrtc import compile_kernel

pytestmark = pytest.mark.slow

PLAIN = "plain"
NAMES, ARCHS = ("qwen3_next", "qwen3_5", "qwen3_5_moe"), ("sm89", "sm120", "sm121")
FORMATS = ("bf16", "fp8", "nvfp4")
# What our kernels have, and what blocks of 16 divide. Three delta nets and one attention.
SIZES = {
    "hidden": 64,
    "layers": 4,
    "head_dim": 64,
    "key_heads": 1,
    "value_heads": 3,
    "key_dim": 128,
    "value_dim": 128,
    "expert_size": 32,
    "shared_size": 64,
}


# Kinds of an engine's layers among which none copies a cache: TensorRT's fused layers, our kernels,
# and the constants that these read.
NO_COPIES = {"Myelin", "PluginV3", "Constant", "NoOp", "ShapeHostToDevice"}


def _archs(form: str) -> tuple[str, ...]:
    """Return the archs that have a format's arithmetic."""
    return ARCHS[1:] if form == "nvfp4" else ARCHS


def _all_three() -> Iterator[Case]:
    for name, form in product(NAMES, FORMATS):
        for arch in _archs(form):
            yield {"name": name, "form": form, "arch": arch}


def _cases() -> list[Case]:
    """Return the builds; every other one has a drafter."""
    choices = {"name": NAMES, "form": FORMATS, "arch": ARCHS}
    with_kernels = pairwise(choices, lambda case: case["arch"] in _archs(case["form"]))
    if os.environ.get("DFLASH_ALL_HYBRIDS") == "1":
        with_kernels = list(_all_three())
    cases = [
        {"name": case["name"], "form": case["form"], "archs": (case["arch"],), "kernels": True}
        for case in with_kernels
    ]
    for name, form in product(NAMES, FORMATS):
        cases.append({"name": name, "form": form, "archs": _archs(form), "kernels": False})
    variants = (PLAIN, "mixed")
    return [case | {"variant": variants[index % 2]} for index, case in enumerate(cases)]


CASES = _cases()


def _label(case: Case) -> str:
    kernels = "kernels" if case["kernels"] else "native"
    return "-".join([case["name"], case["form"], *case["archs"], kernels, case["variant"]])


@dataclass(frozen=True)
class Built:
    """An engine's bytes and what its network and its profiles have.

    `aliases` are the caches' outputs and the inputs whose memory they are; `kinds` the kinds of
    layers that the engine runs; `plugins` those of the network by operator.
    """

    num_bytes: int
    caches: frozenset[str]
    aliases: Mapping[str, str]
    kinds: frozenset[str]
    plugins: tuple[str, ...]


def _models(directory: Path, case: Case) -> dict[str, Any]:
    name, form = case["name"], case["form"]
    if form == "bf16":
        target = tiny_hybrid(directory / "target", name, dtype="BF16", sizes=SIZES)
    else:
        fp8_caches = form == "fp8" and case["kernels"]
        target = quantized_hybrid(
            directory / "target", name, form, sizes=SIZES, kv_cache=fp8_caches
        )
        share_scales(target)
    drafter = None
    if case["variant"] != PLAIN:
        drafter = tiny_drafter(
            directory / "drafter",
            target,
            variant=case["variant"],
            num_layers=1,
            taps=(1,),
            head_dim=64,
            dtype="BF16",
        )
    return {"target": str(target), "drafter": drafter and str(drafter)}


def _build(directory: Path, case: Case) -> Built:
    """Build a case in this process, which must have the builder's environment."""
    from trtllm_dflash.builder.optimization_profiles import profiles
    from trtllm_dflash.builder.trt import Compiler

    config = BuildConfig(
        **_models(directory, case),
        output_dir=directory,
        arch=case["archs"][-1],
        plugins=case["kernels"],
        max_batch_size=3,
        max_seq_len=64,
    )
    models = resolve_models(config)
    model = _make_model(models)
    converted = [
        value
        for value in weights_of(model)
        if not isinstance(value.const_value, ir.ExternalTensor)
    ]
    move_weights(converted, directory / "converted.safetensors")
    kernels = {
        key: compile_kernel(key, case["archs"][0]).code for key in kernel_variants(model)
    }
    log, file = layer_log(), io.BytesIO()
    compiler = Compiler(log, model, kernels)
    log.layers.clear()
    compiler.compile(case["archs"], profiles(models.io, models.resolved), file, lambda *_: None)
    caches = frozenset(port.name for port in models.io if port.cache and not port.aliases)
    aliases, plugins = _in_place(compiler._network)
    kinds = frozenset(kind for kind, _ in log.layers)
    return Built(len(file.getvalue()), caches, aliases, kinds, plugins)


def _in_place(network: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return which outputs of a network are the memory of which input, and its plugins' names."""
    import tensorrt_rtx as trt

    aliases, plugins = {}, []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.KV_CACHE_UPDATE:
            aliases[layer.get_output(0).name] = layer.get_input(0).name
        if layer.type != trt.LayerType.PLUGIN_V3:
            continue
        layer.__class__ = trt.IPluginV3Layer
        plugins.append(layer.plugin.plugin_name)
        for index in range(layer.num_outputs):
            source = layer.plugin.get_aliased_input(index)
            if source >= 0:
                aliases[layer.get_output(index).name] = layer.get_input(source).name
    return aliases, tuple(plugins)


@pytest.fixture(scope="module")
def builds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, Future[Built]]]:
    """Start to build the engines of all tests, two at a time."""
    with parser_processes(2) as pool:
        yield {
            index: pool.submit(_build, tmp_path_factory.mktemp("hybrid"), CASES[index])
            for (index,) in chosen(request, "index")
        }


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("index", "case"),
    list(enumerate(CASES)),
    ids=map(_label, CASES),
)
def test_states_and_windows_are_updated_in_place(
    index: int, case: Case, builds: dict[int, Future[Built]]
) -> None:
    """Each cache's output is its input's memory, and no layer of the engine copies one."""
    built = builds[index].result(timeout=1200)
    assert built.num_bytes > 100_000
    recurrent = {f"target_{part}.{layer}" for part in ("window", "state") for layer in range(3)}
    assert recurrent | {"target_key.3", "target_value.3"} <= built.caches
    assert built.aliases == {f"{name}.out": name for name in built.caches}
    assert built.kinds <= NO_COPIES
    expected = ["DFlashGatedDelta"] * 3 + ["DFlashVerifyAttention"]
    if case["kernels"]:
        assert [name for name in built.plugins if name in expected] == expected
        assert ("DFlashMoE" in built.plugins) == (case["name"] != "qwen3_5")
    else:
        assert built.plugins == ()
