"""Real TensorRT-RTX engines of checkpoints in other makers' quantized layouts, without a GPU."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.published import SCHEMES, published_copy, twin_of
from tests.fixtures.quantized import read_tensors
from tests.fixtures.tiny_models import tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from trtllm_dflash.builder.build_engine import BuildReport, build_engine
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.options.build import BuildConfig

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.slow

UP = "model.layers.0.mlp.up_proj"
EXPERTS = {"layers": 1, "head_dim": 64, "hidden": 64, "expert_size": 64, "experts": 3}
Case = tuple[str, str, bool]  # arch, scheme, whether the target has experts
ENGINES: list[Case] = [
    ("sm89", "fp8_channel", False),
    ("sm120", "fp8_channel", False),
    ("sm89", "fp8", False),
    ("sm120", "nvfp4", False),
    ("sm120", "nvfp4a16", False),
    ("sm80", "fine_grained", False),
    ("sm89", "fine_grained", False),
    ("sm120", "fine_grained", True),
    ("sm120", "nvfp4", True),
]


@pytest.fixture(scope="module")
def reports(
    two_at_once: Executor, tmp_path_factory: pytest.TempPathFactory
) -> dict[Case, Future[BuildReport]]:
    """Start to build all of ENGINES, with our kernels, which need heads of 64."""

    def build(folder: Path, arch: str, name: str, experts: bool) -> BuildReport:
        source = (
            tiny_qwen3_moe(folder / "source", sizes=EXPERTS, dtype="BF16")
            if experts
            else tiny_target(folder / "source", num_layers=1, head_dim=64, dtype="BF16")
        )
        target = published_copy(source, folder / "target", name)
        config = BuildConfig(
            str(target), folder / "engine", arch=arch, max_seq_len=64, max_num_tokens=8
        )
        return build_engine(config)

    return {
        case: two_at_once.submit(build, tmp_path_factory.mktemp("engine"), *case)
        for case in ENGINES
    }


@pytest.mark.parametrize(("arch", "name", "experts"), ENGINES)
def test_an_engine_directory(
    arch: str, name: str, experts: bool, reports: dict[Case, Future[BuildReport]]
) -> None:
    """Its engine holds the codes as they are stored; of blocks the numbers, rounded to BF16."""
    report = reports[arch, name, experts].result(timeout=600)
    assert manifest.check(report.directory, deep=True) == []
    expected = SCHEMES[name].expected
    formats = {expected.upper()}
    if experts and expected == "nvfp4":
        formats.add("W4A16_NVFP4")
    assert EngineConfig.load(report.directory).quantized_linears.keys() == formats
    if not experts:
        engine = b"".join(
            path.read_bytes()
            for path in report.directory.iterdir()
            if path.suffix not in (".json", ".md")
        )
        assert any(row in engine for row in _rows(report.directory.parent / "target", expected))


def _rows(target: Path, expected: str) -> list[bytes]:
    """Return the first row of a weight [out, in] and of its transpose, as engines hold them."""
    if expected == "fp8_block":
        twin = read_tensors(twin_of(target) / "model.safetensors")[f"{UP}.weight"]
        whole = twin.astype(ml_dtypes.bfloat16)
        return [whole[0].tobytes(), whole.T[0].tobytes()]
    stored = read_tensors(target / "model.safetensors")
    if expected in ("fp8", "w8a16_fp8"):
        codes = stored[f"{UP}.weight"].view(np.uint8)
        return [codes[0].tobytes(), codes.T[0].tobytes()]
    packed = stored[f"{UP}.weight_packed"]
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    rows = [values[0], values.T[0]]
    return [(row[::2] | row[1::2] << 4).astype(np.uint8).tobytes() for row in rows]
