"""Real engines of one DFlashMoE node in each format, built without a GPU; and what the plugin
refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.nvrtc")
from tests.plugins.cubins import MOE_KEYS, compiled
from tests.plugins.moe_graphs import compile_moe, moe_model, refused_moe
from tests.plugins.moe_reference import FORMATS, Case, fitting, gpt_oss, inputs
from tests.plugins.plugin_graphs import parser_processes
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.ops import MOE
from trtllm_dflash.graph.plugin_nodes import kernel_variants

pytestmark = pytest.mark.slow

FAKE = {key: str(key).encode() * 100 for key in MOE_KEYS}


def _case(weight_format: int) -> Case:
    return fitting(gpt_oss(Case(7, weight_format, 96, 160, experts=5, top_k=3)))


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with parser_processes(2) as processes:
        yield processes


@pytest.mark.parametrize(
    ("weight_format", "arch"),
    [*product(FORMATS, ("sm120",)), (1, "sm89"), (2, "sm80"), (3, "sm80"), (3, "sm121")],
)
def test_an_engine_of_every_format(
    weight_format: int, arch: str, pool: Executor, tmp_path: Path
) -> None:
    """The weights are in it as the checkpoint has them, once; it has this plugin and nothing that
    moves them.
    """
    key, case = MOE_KEYS[weight_format], _case(weight_format)
    code = compiled(key, arch).code
    found = pool.submit(compile_moe, case, tmp_path, arch, {key: code}).result(timeout=600)
    (layer,) = found.layers
    assert layer.plugin == ("DFlashMoE", "1", "trtllm_dflash")
    assert layer.fields == {
        **{k: np.float32(v).item() for k, v in case.fields.items()},
        "cubin_sha256": hashlib.sha256(code).digest(),
        "cubin": code,
    }
    stored = inputs(case).keys() - {"x", "router_logits"}
    assert (layer.num_inputs, layer.num_outputs) == (6 + (0, 2, 4, 2)[weight_format], 1)
    assert layer.num_inputs == 2 + len(stored)
    assert found.weights_in_engine == stored
    assert {kind for kind, _ in found.engine_layers} <= {"Myelin", "PluginV3"}
    assert len(found.engine_layers) == 1


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_node_needs_the_kernel_of_its_format(weight_format: int, tmp_path: Path) -> None:
    model, _ = moe_model(_case(weight_format), tmp_path)
    assert kernel_variants(model) == {MOE_KEYS[weight_format]: 1}
    assert (
        str(MOE_KEYS[weight_format])
        == ("moe", *(f"moe, weight_format {n}" for n in (1, 2, 3)))[weight_format]
    )


def test_what_the_plugin_refuses_is_told(pool: Executor, tmp_path: Path) -> None:
    given = inputs(_case(1))

    def told(weight_format: int, **changes: np.ndarray | None) -> str:
        return pool.submit(refused_moe, _case(weight_format), tmp_path, FAKE, changes).result(
            timeout=600
        )

    assert told(1) == ""
    bytes_ = given["gate_up"].view(np.int8)
    assert "DFlashMoE: gate_up is INT8, expected INT32" in told(1, gate_up=bytes_)
    assert "DFlashMoE: gate_up is INT32, expected BF16" in told(0, gate_up=given["gate_up"])
    assert "gate_up is [5, 320, 11], expected [E, J, H]: H is 88, and H is 96 in x" in told(
        1, gate_up=np.ascontiguousarray(given["gate_up"][..., :11])
    )
    short = np.ascontiguousarray(given["down_scale"][:, 1:])
    assert "down_scale is [5, 119], expected [E, 120], four scales in each" in told(
        1, down_scale=short
    )
    words = (
        "experts of weight_format 2 have gate_up_scale, down_scale, gate_up_scale_2, down_scale_2;"
        " got gate_up_scale"
    )
    assert words in told(2, down_scale=None)


def test_a_format_without_a_kernel_is_refused_before_tensorrt(tmp_path: Path) -> None:
    class Other(Case):
        @property
        def fields(self) -> dict[str, int | float]:
            return super().fields | {"weight_format": 4}

    with pytest.raises(
        GraphError,
        match=r"DFlashMoE\): there is no kernel for weight_format 4, only for 0, 1, 2, 3",
    ):
        moe_model(Other(7, 1, 96, 160, experts=5, top_k=3), tmp_path)


def test_the_body_refuses_codes() -> None:
    with pytest.raises(
        GraphError,
        match="DFlashMoE: a body multiplies numbers; codes and their scales are for its",
    ):
        MOE.function(8)
