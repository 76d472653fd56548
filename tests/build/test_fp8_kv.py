"""What a build with FP8 caches costs, and which builds cannot have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import tiny_drafter, tiny_target
from trtllm_dflash.build.prepare import Prepared, check_fp8_kv, prepare
from trtllm_dflash.config.build import ARCHS, BuildConfig
from trtllm_dflash.errors import UsageError

SIZES = {"max_seq_len": 64, "max_batch_size": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("pair")
    target = tiny_target(directory / "target", "llama", num_layers=2, head_dim=64)
    return {"target": str(target), "drafter": str(tiny_drafter(directory / "drafter", target, taps=(0,), head_dim=64))}


def _prepared(models: dict[str, str], arch: str, *, fp8: bool, plugins: bool | None = None) -> Prepared:
    made = prepare(BuildConfig(**models, output_dir=Path("out"), arch=arch, plugins=plugins, **SIZES))
    return replace(made, kv_scales={0: (1.0, 1.0), 1: (1.0, 1.0)}) if fp8 else made


def _bytes(prepared: Prepared, owner: str) -> int:
    slots = [port for port in prepared.ports if port.cache == owner and port.direction == "input"]
    return sum(port.item_bytes * int(port.shape[1]) * int(port.shape[2]) * int(port.shape[3]) for port in slots)


def test_fp8_halves_the_targets_caches_and_not_the_drafters(models: dict[str, str]) -> None:
    plain, fp8 = (_prepared(models, "sm120", fp8=fp8) for fp8 in (False, True))
    assert {port.dtype for port in fp8.ports if port.cache == "target"} == {"float8e4m3fn"}
    assert {port.dtype for port in fp8.ports if port.cache == "drafter"} == {"bfloat16"}
    assert 2 * _bytes(fp8, "target") == _bytes(plain, "target")
    assert _bytes(fp8, "drafter") == _bytes(plain, "drafter")
    for prepared in (plain, fp8):
        assert prepared.cache_bytes_per_slot == _bytes(prepared, "target") + _bytes(prepared, "drafter")


def test_on_a_cpu_codes_are_numbers_of_its_type(models: dict[str, str]) -> None:
    plain, fp8 = (_prepared(models, "cpu", fp8=fp8) for fp8 in (False, True))
    assert fp8.ports == plain.ports
    check_fp8_kv(fp8.resolved)


def test_archs_without_fp8_and_engines_without_plugins_are_refused(models: dict[str, str]) -> None:
    assert [name for name, arch in ARCHS.items() if not arch.has_fp8] == ["sm80", "sm86"]
    resolved = _prepared(models, "sm120", fp8=True).resolved
    check_fp8_kv(resolved)
    for arch in ("sm80", "sm86"):
        with pytest.raises(UsageError, match=f"cannot be built for --arch {arch}, which has no FP8; cpu, sm89, sm120"):
            check_fp8_kv(replace(resolved, arch=arch))
    words = "need our kernels: TensorRT-RTX by itself updates only caches of float32.*leave --no-plugins out"
    with pytest.raises(UsageError, match=words):
        check_fp8_kv(replace(resolved, plugins=False))
