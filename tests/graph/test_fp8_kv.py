"""The target's caches in FP8: the step's ports, its nodes, what is refused, and that tokens do not
depend on chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.sampling import new_slots, no_adjustments, sampling_arrays
from tests.fixtures.tiny_models import BLOCK, VOCAB
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.kv_scales import KvScales, check_kv_scales
from trtllm_dflash.graph.plugin_nodes import kernel_variants
from trtllm_dflash.graph.step import build_step

LAYERS, CACHE = 2, 64
SCALES: KvScales = {0: (0.013, 0.011), 1: (0.02, 0.25)}
MakePair = Callable[..., Path]


def _step(make_target: MakePair, make_drafter: MakePair, **options: Any) -> ir.Model:
    directory = make_target("qwen3", num_layers=LAYERS, head_dim=64)
    drafter = make_drafter(directory, num_layers=2, taps=(0,), variant="mixed", head_dim=64)
    return build_step(
        load_target(directory),
        load_drafter(drafter),
        cache_len=CACHE,
        block_size=BLOCK,
        **options,
    )


def test_plugin_nodes_have_fp8_caches_and_scales(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    model = _step(make_target, make_drafter, dtype="bfloat16", plugins=True, kv_scales=SCALES)
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = str(value.name)
        if name.startswith("target_"):
            assert value.dtype == ir.DataType.FLOAT8E4M3FN
        elif name.startswith(("draft_key", "draft_value")):
            assert value.dtype == ir.DataType.BFLOAT16
    nodes = [
        node
        for node in model.graph
        if node.domain == OPS_DOMAIN and "Attention" in node.op_type
    ]
    verify = [node for node in nodes if node.op_type == "DFlashVerifyAttention"]
    for layer, node in enumerate(verify):
        found = [node.attributes[name].as_float() for name in ("key_scale", "value_scale")]
        np.testing.assert_array_equal(np.float32(found), np.float32(SCALES[layer]))
        assert node.attributes["fp8_cache"].as_int() == 1
    assert all("fp8_cache" not in node.attributes for node in nodes if node not in verify)
    fp8, plain = (
        KernelVariant("attention", (("head_dim", 64), *more))
        for more in ((("fp8_cache", 1),), ())
    )
    ours = {KernelVariant(name): 1 for name in ("accept", "adjust", "argmax", "lookup")}
    assert kernel_variants(model) == ours | {fp8: LAYERS, plain: 2}
    assert str(fp8) == "attention, head_dim 64, fp8_cache 1"


def test_without_fp8_both_models_share_a_kernel(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    model = _step(make_target, make_drafter, dtype="bfloat16", plugins=True)
    assert kernel_variants(model) == {
        KernelVariant("accept"): 1,
        KernelVariant("adjust"): 1,
        KernelVariant("argmax"): 1,
        KernelVariant("lookup"): 1,
        KernelVariant("attention", (("head_dim", 64),)): 4,
    }


def test_the_body_holds_codes_as_numbers(make_target: MakePair, make_drafter: MakePair) -> None:
    model = _step(make_target, make_drafter, dtype="float32", kv_scales=SCALES)
    assert {value.dtype for value in model.graph.inputs if "_key." in str(value.name)} == {
        ir.DataType.FLOAT
    }


@pytest.mark.parametrize(
    ("scales", "options", "words"),
    [
        (
            SCALES,
            {"dtype": "bfloat16", "plugins": False},
            "FP8 caches need our plugins: TensorRT updates only caches of",
        ),
        (
            {0: (1, 1)},
            {},
            r"need the scales of every layer with .*: missing are \[1\], unknown \[\]",
        ),
        ({**SCALES, 5: (1, 1)}, {}, r"missing are \[\], unknown \[5\]"),
        (
            {0: (1, 1), 1: (1, 0)},
            {},
            "value scale of layer 1's FP8 cache is 0, expected a finite number above 0",
        ),
        ({0: (float("nan"), 1), 1: (1, 1)}, {}, "key scale of layer 0's FP8 cache is nan"),
        ({0: (float("inf"), 1), 1: (1, 1)}, {}, "key scale of layer 0's FP8 cache is inf"),
        ({0: (-0.5, 1), 1: (1, 1)}, {}, "key scale of layer 0's FP8 cache is -0.5"),
    ],
)
def test_what_no_cache_can_have_is_refused(
    scales: KvScales, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(GraphError, match=words):
        check_kv_scales(
            scales, range(LAYERS), **({"dtype": "float32", "plugins": False} | options)
        )


class _Run:
    """A step in ONNX Runtime with the caches of one sequence."""

    def __init__(self, model: ir.Model) -> None:
        import onnxruntime

        for initializer in model.graph.initializers.values():
            initializer.const_value = ir.Tensor(
                np.ascontiguousarray(initializer.const_value.numpy())
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # caches are copied here, which it would warn about
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options
        )
        self._names = [output.name for output in self._session.get_outputs()]
        ports = [
            port
            for port in self._session.get_inputs()
            if "_key." in port.name or "_value." in port.name
        ]
        self.caches = {port.name: np.zeros([1, *port.shape[1:]], np.float32) for port in ports}
        self.caches |= new_slots(1) | {"history": np.zeros((1, 1, CACHE, 1), np.float32)}
        (mask,) = [port for port in self._session.get_inputs() if port.name == "token_mask"]
        self._words = mask.shape[2]
        self._past = 0

    def prompt(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        feeds = {
            "input_ids": tokens[np.newaxis],
            "num_known": np.array([len(tokens)], np.int32),
            "past_len": np.array([self._past], np.int32),
            "kv_positions": np.arange(self._past + len(tokens) + BLOCK),
            **sampling_arrays(1),
            **no_adjustments(1, 1, self._words),
            "decided": np.arange(1),
            "noise_key": np.zeros((1, 4), np.int64),
            "block_rows": np.arange(BLOCK),
        }
        found = dict(
            zip(self._names, self._session.run(self._names, feeds | self.caches), strict=True)
        )
        for name in self.caches:
            if f"{name}.out" in found:
                self.caches[name] = found[f"{name}.out"]
        self.caches["tally"] = found["next_tally"]
        self._past += len(tokens)
        return found


def test_tokens_do_not_depend_on_where_a_prompt_is_cut(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    """Whole, in pieces, token by token: the same codes in the target's caches, and the same next
    block.

    A code may differ where a sum in another order crosses the middle between two of them: none does
    here.
    """
    tokens = np.random.default_rng(4).integers(0, VOCAB - 5, 24)
    blocks, caches = [], []
    for pieces in ([24], [10, 14], [1] * 24, [23, 1]):
        run = _Run(_step(make_target, make_drafter, dtype="float32", kv_scales=SCALES))
        parts = np.split(tokens, np.cumsum(pieces)[:-1])
        blocks.append([run.prompt(part)["next_ids"] for part in parts][-1])
        caches.append(
            {
                name: cache[:, :, :24]
                for name, cache in run.caches.items()
                if name.startswith("target")
            }
        )
    for block, cache in zip(blocks, caches, strict=True):
        np.testing.assert_array_equal(block, blocks[0])
        for name, array in cache.items():
            np.testing.assert_array_equal(array, caches[0][name], err_msg=name)
            codes = array.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            np.testing.assert_array_equal(array, codes)
            assert np.abs(array).max() > 1


def test_fp8_caches_change_what_is_computed_and_not_by_much(
    make_target: MakePair, make_drafter: MakePair
) -> None:
    """Against caches of float32: keys of the first layer, which nothing quantized precedes, are its
    codes' values.
    """
    tokens = np.random.default_rng(4).integers(0, VOCAB - 5, 24)
    plain, quantized = (
        _Run(_step(make_target, make_drafter, dtype="float32", **more))
        for more in ({}, {"kv_scales": SCALES})
    )
    for run in (plain, quantized):
        run.prompt(tokens)
    for index, kind in enumerate(("key", "value")):
        scale, exact = np.float32(SCALES[0][index]), plain.caches[f"target_{kind}.0"]
        expected = (
            np.clip(exact / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        )
        np.testing.assert_array_equal(quantized.caches[f"target_{kind}.0"], expected)
        assert not np.array_equal(
            quantized.caches[f"target_{kind}.1"], plain.caches[f"target_{kind}.1"]
        )
