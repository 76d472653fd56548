"""Real TensorRT-RTX engines of checkpoints in other makers' quantized layouts, without a GPU."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.chosen import chosen
from tests.fixtures.published import SCHEMES, published_copy, twin_of
from tests.fixtures.quantized import read_tensors
from tests.fixtures.tiny_models import tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from trtllm_dflash.builder.build_engine import BuildReport, build_engine, plan_build
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.options.build import BuildConfig

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.slow

UP = "model.layers.0.mlp.up_proj"
EXPERT = "model.layers.0.mlp.experts.1"
EXPERTS = {"layers": 1, "head_dim": 64, "hidden": 64, "expert_size": 64, "experts": 3}
Case = tuple[str, str, bool]  # arch, scheme, whether the target has experts
WITHOUT_KERNELS = ("sm89", "fine_grained", False)
ENGINES: list[Case] = [
    ("sm89", "fp8_channel", False),
    ("sm120", "fp8_channel", False),
    ("sm89", "fp8", False),
    ("sm120", "nvfp4", False),
    ("sm120", "nvfp4a16", False),
    ("sm121", "fp8_channel", False),
    ("sm121", "fp8_tensor", False),
    ("sm121", "nvfp4", False),
    ("sm80", "fine_grained", False),
    ("sm89", "fine_grained", False),
    ("sm121", "fp8_block", False),
    ("sm80", "fine_grained", True),
    ("sm120", "fine_grained", True),
    ("sm121", "fp8_channel", True),
    ("sm120", "nvfp4", True),
]


@pytest.fixture(scope="module")
def reports(
    request: pytest.FixtureRequest,
    two_at_once: Executor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Case, Future[BuildReport]]:
    """Start to build the engines with our kernels, which need heads of 64, and one without."""

    def build(
        folder: Path, arch: str, name: str, experts: bool, plugins: bool = True
    ) -> BuildReport:
        source = (
            tiny_qwen3_moe(folder / "source", sizes=EXPERTS, dtype="BF16")
            if experts
            else tiny_target(folder / "source", num_layers=1, head_dim=64, dtype="BF16")
        )
        target = published_copy(source, folder / "target", name)
        sizes = {"max_seq_len": 64, "max_num_tokens": 8}
        config = BuildConfig(
            str(target), folder / "engine", arch=arch, plugins=plugins, **sizes
        )
        return build_engine(config)

    folder = tmp_path_factory.mktemp("without")
    without = two_at_once.submit(build, folder, *WITHOUT_KERNELS, plugins=False)
    return {("without", "", False): without} | {
        case: two_at_once.submit(build, tmp_path_factory.mktemp("engine"), *case)
        for case in chosen(request, "arch", "name", "experts")
    }


@pytest.mark.sample(4)
@pytest.mark.parametrize(("arch", "name", "experts"), ENGINES)
def test_an_engine_directory(
    arch: str, name: str, experts: bool, reports: dict[Case, Future[BuildReport]]
) -> None:
    """Its engine holds the codes as they are stored."""
    report = reports[arch, name, experts].result(timeout=600)
    assert manifest.check(report.directory, deep=True) == []
    expected = SCHEMES[name].expected
    formats = {expected.upper()}
    if experts and expected == "nvfp4":
        formats.add("W4A16_NVFP4")
    assert EngineConfig.load(report.directory).quantized_linears.keys() == formats
    target = report.directory.parent / "target"
    engine = _bytes_of(report.directory)
    if expected == "fp8_block" or (experts and expected != "nvfp4"):
        stored = read_tensors(target / "model.safetensors")
        name = f"{EXPERT}.down_proj.weight" if experts else f"{UP}.weight"
        assert engine.count(stored[name].tobytes()) == 1
    elif not experts:
        assert any(row in engine for row in _rows(target, expected))


def test_blocks_without_our_kernels(reports: dict[Case, Future[BuildReport]]) -> None:
    """The engine holds their numbers, rounded to BF16, and its summary says so."""
    report = reports["without", "", False].result(timeout=600)
    target = report.directory.parent / "target"
    twin = read_tensors(twin_of(target) / "model.safetensors")[f"{UP}.weight"]
    rounded = twin.astype(ml_dtypes.bfloat16)
    engine = _bytes_of(report.directory)
    assert rounded[0].tobytes() in engine or rounded.T[0].tobytes() in engine
    config = BuildConfig(
        str(target), Path("e"), arch="sm89", plugins=False, max_seq_len=64, max_num_tokens=8
    )
    weights = dict(summary_rows(plan_build(config)))["weights"]
    assert "FP8_BLOCK as bfloat16: --no-plugins leaves out what multiplies them" in weights


def _bytes_of(directory: Path) -> bytes:
    files = (path for path in directory.iterdir() if path.suffix not in (".json", ".md"))
    return b"".join(path.read_bytes() for path in files)


def _rows(target: Path, expected: str) -> list[bytes]:
    """Return the first row of a weight [out, in] and of its transpose, as engines hold them."""
    stored = read_tensors(target / "model.safetensors")
    if expected in ("fp8", "w8a16_fp8"):
        codes = stored[f"{UP}.weight"].view(np.uint8)
        return [codes[0].tobytes(), codes.T[0].tobytes()]
    packed = stored[f"{UP}.weight_packed"]
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    rows = [values[0], values.T[0]]
    return [(row[::2] | row[1::2] << 4).astype(np.uint8).tobytes() for row in rows]
