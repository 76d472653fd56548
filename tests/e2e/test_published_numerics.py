"""Checkpoints in other makers' quantized layouts on the CPU, against Hugging Face's model.

That model has the makers' numbers in float32, which tests/checkpoint/test_makers_packages.py
compares with their packages. Tolerances are those of test_quantized_numerics.py, for its reasons.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.logits import target_logits
from tests.e2e.test_quantized_numerics import (
    IDS,
    assert_same_but_for_boundaries,
    forward,
    rounded_input,
)
from tests.fixtures.published import SCHEMES, input_rounder, published_copy, twin_of
from tests.fixtures.quantized import read_tensors
from tests.fixtures.tiny_hybrid import EXCLUSIONS, tiny_hybrid
from tests.fixtures.tiny_models import DENSE_FAMILIES, tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from trtllm_dflash.checkpoint.loader import load_target

PLAIN = {name for name, scheme in SCHEMES.items() if scheme.expected not in ("fp8", "nvfp4")}


def reference(directory: Path, name: str) -> Any:
    """Return Hugging Face's float32 model of a copy's numbers; inputs are rounded as ours are.

    Experts' inputs are not.
    """
    model = hugging_face.load_target(twin_of(directory))
    for full, array in read_tensors(directory / "model.safetensors").items():
        module, _, last = full.rpartition(".")
        if last not in ("input_scale", "input_global_scale") or ".experts." in module:
            continue
        stored = np.float32(array.reshape(-1)[0])
        scale = float(np.float32(1) / stored if last == "input_global_scale" else stored)
        rounder = input_rounder(name, scale)
        if rounder is not None:
            hook = partial(rounded_input, rounder=rounder)
            model.get_submodule(module).register_forward_pre_hook(hook)
    return model


CASES = [
    *(("qwen3", name) for name in SCHEMES),
    *((family, "fine_grained") for family in DENSE_FAMILIES if family != "qwen3"),
    *((family, "fp8_channel") for family in DENSE_FAMILIES if family != "qwen3"),
]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_logits_are_those_of_the_makers_numbers(family: str, name: str, tmp_path: Path) -> None:
    source = tiny_target(tmp_path / "source", family, dtype="BF16", tied=family == "qwen3")
    directory = published_copy(source, tmp_path / "q", name, scale_dtype="BF16")
    theirs = forward(reference(directory, name))
    unquantized = forward(hugging_face.load_target(source))
    assert_same_but_for_boundaries(
        target_logits(directory, IDS), theirs, unquantized, boundaries=name not in PLAIN
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["fine_grained", "fp8", "fp8_channel", "fp8_block", "nvfp4"])
def test_logits_of_a_mixture_of_experts(name: str, tmp_path: Path) -> None:
    source = tiny_qwen3_moe(tmp_path / "source", sizes={"expert_size": 48}, dtype="BF16")
    directory = published_copy(source, tmp_path / "q", name)
    assert len(load_target(directory).formats) == 3 * (4 + 7 * 3)
    theirs = forward(reference(directory, name))
    unquantized = forward(hugging_face.load_target(source))
    assert_same_but_for_boundaries(
        target_logits(directory, IDS), theirs, unquantized, boundaries=name not in PLAIN
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["fine_grained", "fp8_channel"])
@pytest.mark.parametrize("family", ["qwen3_5_vl", "qwen3_5_moe", "qwen3_next"])
def test_logits_of_hybrids(family: str, name: str, tmp_path: Path) -> None:
    """Of those numbers unquantized, bit for bit; test_hybrids.py compares those with Hugging Face.

    Gates of states and routers stay as they are, as in the published files.
    """
    source = tiny_hybrid(tmp_path / "source", family, dtype="BF16")
    kept = []
    for full in read_tensors(source / "model.safetensors"):
        module = full.removesuffix(".weight")
        kept += [module] if any(fnmatchcase(module, row) for row in EXCLUSIONS) else []
    directory = published_copy(source, tmp_path / "q", name, exclude=tuple(kept))
    found = target_logits(directory, IDS)
    np.testing.assert_array_equal(found, target_logits(twin_of(directory), IDS))
    assert np.abs(found - target_logits(source, IDS)).max() > 0.02 * np.abs(found).max()
