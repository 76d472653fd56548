"""The plain engine beside a DFlash engine: the same caches, also where they are FP8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import ignore_progress
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.profile.plain_engine import plain_engine

pytestmark = pytest.mark.slow

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build(kv_cache_dtype, drafts=…)`: an engine of a target with scales for FP8 caches."""
    root = tmp_path_factory.mktemp("scaled")
    source = tiny_target(root / "source", "qwen3", num_layers=2)
    target = quantized_copy(source, root / "target", "fp8", kv_cache=True)
    drafter = tiny_drafter(root / "drafter", source, num_layers=1, taps=(0,))

    def make(kv_cache_dtype: str, *, drafts: bool) -> Path:
        output = root / f"{kv_cache_dtype}_{drafts}"
        pair: dict[str, Any] = {"drafter": str(drafter)} if drafts else {}
        if not output.exists():
            build_engine(
                BuildConfig(
                    str(target), output, max_seq_len=64, kv_cache_dtype=kv_cache_dtype, **pair
                )
            )
        return output

    return make


@pytest.mark.parametrize(("kv_cache_dtype", "algo"), [("auto", "FP8"), ("float32", None)])
def test_plain_engine_is_built_with_the_same_caches(
    kv_cache_dtype: str, algo: str | None, build: Build
) -> None:
    engine = build(kv_cache_dtype, drafts=True)
    config = EngineConfig.load(engine)
    assert config.kv_cache_quant_algo == algo
    with plain_engine(
        engine, config, given=None, target=None, progress=ignore_progress
    ) as plain:
        assert EngineConfig.load(plain).kv_cache_quant_algo == algo


def test_plain_engine_with_other_caches_is_refused(build: Build) -> None:
    for ours, theirs, words in (
        ("fp8", "float32", "caches are float32 there and fp8 in .* --kv-cache-dtype fp8,"),
        ("float32", "fp8", "caches are fp8 there and float32 in .* --kv-cache-dtype float32,"),
        ("fp8", "fp8", None),
    ):
        engine, given = build(ours, drafts=True), build(theirs, drafts=False)
        chosen = plain_engine(
            engine,
            EngineConfig.load(engine),
            given=given,
            target=None,
            progress=ignore_progress,
        )
        if words is None:
            with chosen as plain:
                assert plain == given
            continue
        with pytest.raises(UsageError, match=words), chosen:
            pass
