"""Tiny targets quantized by `quantize`, calibrated with the same ids as ModelOpt in the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_models import VOCAB
from trtllm_dflash.options.quantize import QuantizeConfig


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    if find_spec("torch"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ids_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration sequences as JSON lines of token ids."""
    from tests.quantize import modelopt

    path = tmp_path_factory.mktemp("calibration") / "ids.jsonl"
    rows = [{"prompt": ids[0].tolist()} for ids in modelopt.calibration_ids(VOCAB)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def quantized(
    make_target: Callable[..., Path], ids_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`quantized(model_type, format, kv_cache_dtype=None, **options of tiny_target)` ->
    directory, made once.
    """
    from trtllm_dflash.quantize.pipeline import quantize

    made: dict[str, Path] = {}

    def make(
        model_type: str, form: str, kv_cache_dtype: str | None = None, **options: Any
    ) -> Path:
        target = make_target(model_type, **options)
        key = repr((target, form, kv_cache_dtype))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("quantized") / form
            quantize(
                QuantizeConfig(
                    str(target),
                    made[key],
                    form,
                    kv_cache_dtype=kv_cache_dtype,
                    calib_file=ids_file,
                )
            )
        return made[key]

    return make


@pytest.fixture
def config(
    make_target: Callable[..., Path], ids_file: Path, tmp_path: Path
) -> Callable[..., QuantizeConfig]:
    """`config(**changes)` -> QuantizeConfig of the tiny Llama into tmp_path/quantized."""

    def make(**changes: Any) -> QuantizeConfig:
        small: dict[str, Any] = {
            "quant": "fp8",
            "calib_file": ids_file,
            "output_dir": tmp_path / "quantized",
        }
        return QuantizeConfig(**({"target": str(make_target("llama"))} | small | changes))

    return make
