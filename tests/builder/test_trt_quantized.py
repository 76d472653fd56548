"""Real TensorRT-RTX engines of quantized models, built without a GPU: for which archs, and how
large.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.chosen import chosen
from tests.fixtures.quantized import quantized_copy, read_tensors, write_tensors
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.builder.build_engine import BuildReport, build_engine
from trtllm_dflash.builder.external_weights import move_weights, weights_of
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.checkpoint.formats import FORMATS, LINEAR_FORMATS
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.builder import OPSET, GraphBuilder
from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.graph.quantized_linear import TRT_DOMAIN
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.graph.weight_source import WeightSource
from trtllm_dflash.options.build import BuildConfig

pytest.importorskip("tensorrt_rtx")
from trtllm_dflash.builder.optimization_profiles import profiles
from trtllm_dflash.builder.trt import Compiler
from trtllm_dflash.builder.trt_callbacks import BuilderLog

pytestmark = pytest.mark.slow

LOG = BuilderLog()  # one, since TensorRT talks to the first that a process gives it
CASES = list(product(("llama", "qwen3"), FORMATS))
DOWN = "model.layers.1.mlp.down_proj"
DRAFT_VOCAB = np.array([3, 5, 8, 90, 12, 41])


def _compile(directory: Path, model_type: str, name: str) -> tuple[bytes, bytes, bool]:
    """Return an engine of a pair, the bytes of a weight, and whether it was built for sm89.

    The layers and the head of the pair are quantized.
    """
    source = tiny_target(directory / "source", model_type, num_layers=2, dtype="BF16")
    target = quantized_copy(source, directory / "target", name, exclude=("model.embed_tokens",))
    plain_drafter = tiny_drafter(
        directory / "plain", target, variant="mixed", num_layers=1, taps=(0,), dtype="BF16"
    )
    exclude = ("fc", "layers.0.self_attn.o_proj")
    drafter = quantized_copy(plain_drafter, directory / "drafter", name, exclude=exclude)
    options = {"arch": "sm120", "max_seq_len": 64, "plugins": False}
    prepared = resolve_models(BuildConfig(str(target), directory, str(drafter), **options))
    sizes = prepared.resolved
    model = build_step(
        prepared.target,
        prepared.drafter,
        dtype=sizes.dtype,
        cache_len=sizes.cache_len,
        block_size=sizes.block_size,
        draft_vocab=DRAFT_VOCAB,
    )
    weights = weights_of(model)
    mapped = [value for value in weights if isinstance(value.const_value, ir.ExternalTensor)]
    converted = [value for value in weights if value not in mapped]
    move_weights(converted, directory / "converted.safetensors")
    archs = ["sm120", "sm121", *(["sm89"] if name == "fp8" else [])]
    file = io.BytesIO()
    Compiler(LOG, model).compile(archs, profiles(prepared.io, sizes), file, lambda *_: None)
    weight = read_tensors(target / "model.safetensors")[f"{DOWN}.weight"].tobytes()
    return file.getvalue(), weight, "sm89" in archs


@pytest.fixture(scope="module")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Future[tuple[bytes, bytes, bool]]]]:
    """Yield all cases, compiling in two processes: a crash of TensorRT is then a failed test."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield {
            case: pool.submit(_compile, tmp_path_factory.mktemp("case"), *case)
            for case in chosen(request, "model_type", "name")
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.sample(2)
@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_a_quantized_pair_compiles_with_packed_weights(
    model_type: str,
    name: str,
    compiled: dict[tuple[str, str], Future[tuple[bytes, bytes, bool]]],
) -> None:
    """Check target, head, drafter and the draft vocabulary's rows of the head.

    They are for sm120 and sm121, FP8 for sm89 too, and without our kernels. With them:
    `test_an_engine_directory`.
    """
    engine, weight, with_sm89 = compiled[model_type, name].result(timeout=600)
    assert with_sm89 == (name == "fp8")
    values = np.frombuffer(weight, np.uint8).reshape(48, -1)
    if name != "fp8":  # two a byte, so that transposing pairs them anew
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(48, 80)
    assert any(layout in engine for layout in _layouts(values, packed=name != "fp8"))


def _layouts(values: np.ndarray, *, packed: bool) -> list[bytes]:
    """Return the first row of a weight [out, in] and of its transpose, as engines hold them."""
    rows = [values[0], values.T[0]]
    return [(row[::2] | row[1::2] << 4 if packed else row).tobytes() for row in rows]


Case = tuple[str, str, bool]  # arch, format, whether the caches are FP8
ENGINES: list[Case] = [
    *product(("sm120", "sm121"), ("fp8", "nvfp4"), (False, True)),
    ("sm89", "fp8", True),
    ("sm120", "w4a16_nvfp4", True),
]


@pytest.fixture(scope="module")
def reports(
    request: pytest.FixtureRequest,
    two_at_once: Executor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Case, Future[BuildReport]]:
    """Start to build the engines of all tests, with our kernels, which need heads of 64."""

    def build(folder: Path, arch: str, name: str, kv_cache: bool) -> BuildReport:
        source = tiny_target(folder / "source", num_layers=1, head_dim=64)
        target = quantized_copy(source, folder / "target", name, kv_cache=kv_cache)
        return build_engine(
            BuildConfig(
                str(target), folder / "engine", arch=arch, max_seq_len=64, max_num_tokens=8
            )
        )

    return {
        case: two_at_once.submit(build, tmp_path_factory.mktemp("engine"), *case)
        for case in chosen(request, "arch", "name", "kv_cache")
    }


@pytest.mark.sample(4)
@pytest.mark.parametrize(("arch", "name", "kv_cache"), ENGINES)
def test_an_engine_directory(
    arch: str, name: str, kv_cache: bool, reports: dict[Case, Future[BuildReport]]
) -> None:
    """With FP8 caches its kernels are others."""
    report = reports[arch, name, kv_cache].result(timeout=600)
    assert manifest.check(report.directory, deep=True) == []
    facts = manifest.load(report.directory)
    assert facts["arch"] == arch
    attention = "attention, head_dim 64" + (", fp8_cache 1" if kv_cache else "")
    assert [(kernel["kernel"], kernel["arch"]) for kernel in facts["kernels"]] == [
        ("accept", arch),
        ("adjust", arch),
        (attention, arch),
    ]
    ports = EngineConfig.load(report.directory).io
    caches = {
        port.dtype for port in ports if port.name.startswith(("target_key", "target_value"))
    }
    assert caches == {"float8e4m3fn" if kv_cache else "bfloat16"}


@dataclass(frozen=True)
class Linear:
    """One linear on its own, as a model for the compiler."""

    rows: int
    columns: int

    def model(self, directory: Path, name: str) -> ir.Model:
        """y [N, out] = x [N, in] · weightᵀ in a format, or in BF16 for "plain"."""
        random = np.random.default_rng(0)
        codes = random.integers(0, 126, (self.rows, self.columns), dtype=np.uint8)
        scale = ("F32", np.float32(0.002))
        tensors = {"weight": ("BF16", codes / 64), "input_scale": scale}
        if name in ("fp8", "w8a16_fp8"):
            scales = np.full((self.rows, 1), 0.002) if name == "w8a16_fp8" else scale[1]
            tensors |= {
                "weight": ("F8_E4M3", codes.view(ml_dtypes.float8_e4m3fn)),
                "weight_scale": ("F32", scales),
            }
        elif name != "plain":
            block_scales = random.random((self.rows, self.columns // 16)) + 1
            tensors |= {
                "weight": ("U8", codes[:, ::2]),
                "weight_scale": ("F8_E4M3", block_scales),
            }
            tensors |= {"weight_scale_2": scale}
        write_tensors(directory / "x", {f"m.{key}": stored for key, stored in tensors.items()})
        g = GraphBuilder()
        x = ir.Value(
            name="x",
            shape=ir.Shape(["n", self.columns]),
            type=ir.TensorType(ir.DataType.BFLOAT16),
        )
        formats = {} if name == "plain" else {"m": LINEAR_FORMATS[name]}
        weights = WeightSource(
            "model", read_tensor_infos(directory / "x"), ir.DataType.BFLOAT16, formats
        )
        y = LayerBuilder(g, weights, ir.DataType.BFLOAT16, norm_eps=0.0).linear(x, "m")
        y.name, y.type, y.shape = "y", x.type, ir.Shape(["n", self.rows])
        imports = {"": OPSET, TRT_DOMAIN: 1}
        initializers = list(g.initializers.values())
        graph = ir.Graph(
            [x],
            [y],
            nodes=g.nodes,
            initializers=initializers,
            opset_imports=imports,
            name="linear",
        )
        return ir.Model(graph, ir_version=11)

    def engine(self, directory: Path, name: str, archs: tuple[str, ...] = ("sm120",)) -> bytes:
        """Return the model, compiled."""
        file, columns = io.BytesIO(), self.columns
        shapes = [{"x": ((1, columns), (8, columns), (64, columns))}]
        Compiler(LOG, self.model(directory, name)).compile(archs, shapes, file, lambda *_: None)
        return file.getvalue()


@pytest.mark.parametrize(
    ("name", "at_most"),
    [("fp8", 0.52), ("w8a16_fp8", 0.52), ("nvfp4", 0.30), ("w4a16_nvfp4", 0.30)],
)
def test_what_a_large_linear_takes_of_its_bf16_bytes(
    name: str, at_most: float, tmp_path: Path
) -> None:
    """The whole engine, some 0.3 MB of kernels included."""
    linear = Linear(4096, 2048)
    size = linear.rows * linear.columns * 2
    assert len(linear.engine(tmp_path, "plain")) > size
    assert len(linear.engine(tmp_path, name)) <= at_most * size


@pytest.mark.parametrize(
    ("name", "arch"),
    [("nvfp4", "sm89"), ("w4a16_nvfp4", "sm89"), ("fp8", "sm80"), ("w8a16_fp8", "sm80")],
)
def test_who_has_the_arithmetic_is_what_the_builder_says(
    name: str, arch: str, tmp_path: Path
) -> None:
    """The table that refuses a build beforehand agrees with TensorRT-RTX."""
    assert arch not in LINEAR_FORMATS[name].archs
    with pytest.raises(BuildError, match="HW-specific datatypes"):
        Linear(64, 48).engine(tmp_path, name, (arch,))
