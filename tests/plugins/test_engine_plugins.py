"""Real engines with our plugins, built without a GPU; and what a plugin refuses is an error
message, not an exit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.nvrtc")
from tests.fixtures.tiny_models import DRAFTER_VARIANTS, WINDOW, tiny_drafter, tiny_target
from tests.plugins.cubins import (
    ADJUST_KEY,
    ARGMAX_KEY,
    FP8_KEYS,
    KEYS,
    LOOKUP_KEY,
    compiled,
    compiling,
)
from tests.plugins.plugin_graphs import (
    SIZES,
    Compiled,
    compile_pair,
    op_model,
    parser_processes,
    refusal,
)
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS

pytestmark = pytest.mark.slow

ARCHS = ("sm89", "sm120", "sm121")
PLAIN = "plain"
PAIRS = list(product(("llama", "qwen3"), (PLAIN, *DRAFTER_VARIANTS)))
FP8_PAIRS = [("llama", "mixed"), ("qwen3", PLAIN)]
# Different ones, so that the kernel of one model is not the other's. Few tiles are compiled for
# 256.
TARGET_DIM, DRAFTER_DIM = 64, 256
ACCEPT, TARGET, DRAFTER = (
    KEYS[0],
    *(KernelVariant("attention", (("head_dim", n),)) for n in (TARGET_DIM, DRAFTER_DIM)),
)
FP8_TARGET = FP8_KEYS[0]
FAKE = {
    key: str(key).encode() * 100
    for key in (ACCEPT, ADJUST_KEY, ARGMAX_KEY, LOOKUP_KEY, TARGET, DRAFTER, FP8_TARGET)
}
FP8 = "fp8 "  # before an arch: with the target's caches in FP8
SCALES = {0: (0.25, 0.013), 1: (1.0, 0.5)}
EngineOf = Callable[[str, str, str], Compiled]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with parser_processes(2) as processes:
        yield processes


def _models(directory: Path, model_type: str, variant: str) -> dict[str, Any]:
    same: dict[str, Any] = {"num_layers": 2, "dtype": "BF16"}
    target = tiny_target(directory / "target", model_type, head_dim=TARGET_DIM, **same)
    if variant == PLAIN:
        return {"target": str(target), "drafter": None}
    drafter = tiny_drafter(
        directory / "drafter", target, variant=variant, taps=(0,), head_dim=DRAFTER_DIM, **same
    )
    return {"target": str(target), "drafter": str(drafter)}


@pytest.fixture(scope="module")
def engine_of(pool: Executor, tmp_path_factory: pytest.TempPathFactory) -> EngineOf:
    """`engine_of(model_type, variant, arch)` compiles a pair.

    With FP8 before the arch, the target's caches are FP8. The arch "" has no plugins.
    """

    @cache
    def kernels(arch: str) -> dict[KernelVariant, bytes]:
        for key in FAKE:
            compiling(key, arch)
        return {key: compiled(key, arch).code for key in FAKE}

    @cache
    def models(model_type: str, variant: str) -> tuple[dict[str, Any], Path]:
        directory = tmp_path_factory.mktemp("pair")
        return _models(directory, model_type, variant), directory

    def compile_one(model_type: str, variant: str, arch: str) -> Compiled:
        bare = arch.removeprefix(FP8)
        given = *models(model_type, variant), bare or "sm120", kernels(bare) if bare else {}
        scales = (SCALES,) if arch != bare else ()
        return pool.submit(compile_pair, *given, *scales).result(timeout=600)

    return compile_one


def _expected_fields(variant: str, fp8: bool = False) -> dict[str, dict[str, float]]:
    """Return the fields of every plugin layer by its name: the mask of each drafter layer is the
    variant's.
    """
    is_causal, others_slide, last_slides = DRAFTER_VARIANTS.get(variant, (None, False, False))
    scales = {size: float(np.float32(size**-0.5)) for size in (TARGET_DIM, DRAFTER_DIM)}
    target = {
        "scale": scales[TARGET_DIM],
        "window_size": 0,
        "ring": 0,
        "head_dim": TARGET_DIM,
        "fp8_cache": int(fp8),
    }
    fields: dict[str, dict[str, float]] = {}
    for layer, pair in SCALES.items():
        worth = dict(
            zip(
                ("key_scale", "value_scale"),
                map(float, np.float32(pair if fp8 else (0, 0))),
                strict=True,
            )
        )
        fields[f"/target/layers.{layer}/DFlashVerifyAttention"] = target | worth
    fields["/adjust/DFlashAdjust"] = {}
    fields["/accept/DFlashAccept"] = {}
    for layer, slides in enumerate((others_slide, last_slides) if variant != PLAIN else ()):
        causal = is_causal if is_causal is not None else slides
        fields[f"/drafter/layers.{layer}/DFlashDraftAttention"] = {
            "scale": scales[DRAFTER_DIM],
            "window_size": WINDOW if slides else 0,
            "ring": int(slides),  # of 80 rows where the others have 128
            "causal": int(causal),
            "head_dim": DRAFTER_DIM,
        }
    if variant != PLAIN:
        fields["/drafter/DFlashArgmax"] = {}
        fields["/lookup/DFlashLookup"] = {}
    return fields


@pytest.mark.sample(9)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("model_type", "variant"), PAIRS)
def test_every_target_and_mask_variant_has_its_plugins(
    model_type: str, variant: str, arch: str, engine_of: EngineOf
) -> None:
    _check_engine(engine_of(model_type, variant, arch), variant, arch, fp8=False)


@pytest.mark.sample(3)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("model_type", "variant"), FP8_PAIRS)
def test_the_targets_caches_may_be_fp8(
    model_type: str, variant: str, arch: str, engine_of: EngineOf
) -> None:
    """Bound as FP8 and written in place; each layer has its scales and the kernel of FP8 caches."""
    _check_engine(engine_of(model_type, variant, FP8 + arch), variant, arch, fp8=True)


def _check_engine(found: Compiled, variant: str, arch: str, *, fp8: bool) -> None:
    target = FP8_TARGET if fp8 else TARGET
    layers = {layer.name: layer for layer in found.layers}
    expected = _expected_fields(variant, fp8)
    assert list(layers) == list(expected)
    keys = {"target": target, "accept": ACCEPT, "drafter": DRAFTER, "lookup": LOOKUP_KEY}
    keys["adjust"] = ADJUST_KEY
    cubins = {key: compiled(key, arch).code for key in FAKE}  # all that its build is given
    holder = next(name for name in expected if "Attention" in name)
    for name, fields in expected.items():
        layer, operator = layers[name], name.split("/")[-1]
        assert layer.plugin == (operator, "1", "trtllm_dflash")
        is_argmax = operator == "DFlashArgmax"
        key = ARGMAX_KEY if is_argmax else keys[name.split("/")[1]]
        digest = hashlib.sha256(cubins[key]).digest()
        others = [cubin for other, cubin in cubins.items() if other != key]
        held = {f"other_cubin_{number}": cubin for number, cubin in enumerate(others, 1)}
        held = {"cubin": cubins[key], **held} if name == holder else {}
        assert layer.fields == {**fields, "cubin_sha256": digest, **held}
        spec = OPS[operator]
        num_inputs = sum(not tensor.optional for tensor in spec.plugin_inputs)
        assert (layer.num_inputs, layer.num_outputs) == (num_inputs, len(spec.outputs))
        in_place = (-1, 3, 4) if "Attention" in operator else (-1,) * len(spec.outputs)
        in_place = (-1, 1) if operator == "DFlashAdjust" else in_place
        assert layer.aliased_inputs == in_place
    caches = {
        name: kind
        for name, kind in found.inputs.items()
        if "_key." in name or "_value." in name
    }
    assert caches == {name: "FP8" if fp8 and "target" in name else "BF16" for name in caches}
    counts = {ACCEPT: 1, ADJUST_KEY: 1, target: 2} | (
        {} if variant == PLAIN else {DRAFTER: 2, ARGMAX_KEY: 1, LOOKUP_KEY: 1}
    )
    assert found.kernels == counts
    assert found.cubins_in_engine
    assert "kv_positions" not in found.inputs
    assert {"decided", "noise_key", "target_key.1"} <= set(found.inputs)
    in_place = [name for name in expected if "Attention" in name or "Adjust" in name]
    _check_engine_layers(found, in_place)


def _check_engine_layers(found: Compiled, in_place: list[str]) -> None:
    """Check that the engine runs TensorRT's fused layers and, between them, what is in place.

    So nothing copies a cache, and nothing comes from the host. A NoOp does nothing.
    """
    assert {kind for kind, _ in found.engine_layers} - {"NoOp"} == {"Myelin", "PluginV3"}
    plugins = {name for kind, name in found.engine_layers if kind == "PluginV3"}
    assert plugins == {name + profile for name in in_place for profile in ("", " [profile 1]")}


def test_without_plugins_there_is_none(engine_of: EngineOf) -> None:
    found = engine_of("llama", "mixed", "")
    assert found.layers == ()
    assert found.kernels == {}
    assert "kv_positions" in found.inputs


VERIFY, DRAFT = "DFlashVerifyAttention", "DFlashDraftAttention"


def test_a_graph_of_one_plugin_compiles(pool: Executor) -> None:
    assert pool.submit(refusal, VERIFY, {}, FAKE, {}).result(timeout=600) == ""
    assert pool.submit(refusal, DRAFT, {}, FAKE, {}).result(timeout=600) == ""
    assert pool.submit(refusal, "DFlashAccept", {}, FAKE, {}).result(timeout=600) == ""


def test_a_graph_of_one_plugin_with_fp8_caches_compiles(pool: Executor) -> None:
    changes = {"dtypes": dict.fromkeys(("key_cache", "value_cache"), "float8e4m3fn")}
    told = pool.submit(
        refusal, VERIFY, changes | {"key_scale": 0.5, "value_scale": 2.0}, FAKE, {}
    ).result(timeout=600)
    assert told == ""


def test_sinks_are_one_more_input(pool: Executor) -> None:
    sinks = {"shapes": {"sinks": (SIZES["Hq"],)}}
    assert pool.submit(refusal, VERIFY, sinks, FAKE, {}).result(timeout=600) == ""
    words = pool.submit(refusal, VERIFY, {"shapes": {"sinks": (4,)}}, FAKE, {}).result(
        timeout=600
    )
    assert f"{VERIFY}: sinks is [4], expected [Hq]: Hq is 4, and Hq is 6 in q" in words


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (VERIFY, {"dtypes": {"q": "float32"}}, f"{VERIFY}: q is FLOAT, expected BF16"),
        (
            VERIFY,
            {"dtypes": {"positions": "int32"}},
            f"{VERIFY}: positions is INT32, expected INT64",
        ),
        (
            VERIFY,
            {"dtypes": {"value_cache": "float8e4m3fn"}},
            f"{VERIFY}: key_cache is BF16, expected FP8",
        ),
        (
            VERIFY,
            {"dtypes": {"key_cache": "float32"}},
            f"{VERIFY}: key_cache is FLOAT, expected BF16",
        ),
        (
            DRAFT,
            {"dtypes": {"key_cache": "float8e4m3fn"}},
            f"{DRAFT}: key_cache is FP8, expected BF16",
        ),
        (
            "DFlashAccept",
            {"dtypes": {"logits": "bfloat16"}},
            "DFlashAccept: logits is BF16, expected FLOAT",
        ),
        (
            VERIFY,
            {"shapes": {"k": (2, 5, 2, 64)}},
            f"{VERIFY}: k is [2, 5, 2, 64], expected [B, S, Hkv, D]: S is 5, and S is 3 in q",
        ),
        (
            VERIFY,
            {"shapes": {"value_cache": (2, 2, 32, 96)}},
            (
                f"{VERIFY}: value_cache is [2, 2, 32, 96], expected [B, Hkv, cache_len, D]: D is"
                " 96, and D is 64 in the kernel's head_dim"
            ),
        ),
        (
            DRAFT,
            {"shapes": {"positions": (2, 4)}},
            (
                f"{DRAFT}: positions is [2, 4], expected [B, S+T]: S+T is 4, and S is 3 in k, T is"
                " 4 in q"
            ),
        ),
        (
            DRAFT,
            {"shapes": {"k": (2, 7, 128)}},
            f"{DRAFT}: k is [2, 7, 128], expected [B, S+T, Hkv, D]",
        ),
    ],
)
def test_what_the_parser_gives_a_plugin_wrongly_is_told(
    name: str, changes: dict[str, Any], words: str, pool: Executor
) -> None:
    told = pool.submit(refusal, name, changes, FAKE, {}).result(timeout=600)
    assert told.startswith(
        f"BuildError: TensorRT-RTX cannot parse the step graph:\n  {words}\n"
    )


def test_a_shape_that_only_a_profile_gets_wrong_is_told(pool: Executor) -> None:
    """Here TensorRT itself would abort, or go on as if nothing had been said."""
    shapes = {"q": ("batch", 3, 6, 64), "positions": ("others", 3)}
    profile = {"q": ((2, 3, 6, 64),) * 3, "positions": ((2, 3), (2, 3), (4, 3))}
    told = pool.submit(refusal, VERIFY, {"shapes": shapes}, FAKE, profile).result(timeout=600)
    assert told.startswith("BuildError: TensorRT-RTX could not compile the step for sm120:\n")
    assert f"{VERIFY}: positions is [4, 3], expected [B, S]: B is 4, and B is 2 in q" in told


def test_heads_that_make_no_groups_are_told(pool: Executor) -> None:
    told = pool.submit(refusal, VERIFY, {"shapes": {"q": (2, 3, 5, 64)}}, FAKE, {}).result(
        timeout=600
    )
    assert "attention needs query heads in groups: got 5 of them for 2 key heads" in told


def test_a_ring_that_is_too_small_is_told(pool: Executor) -> None:
    """Three rows of a step, and a window of 30, fit into 32 rows; a window of 31 does not."""
    rings = ({"ring": 1, "window_size": window} for window in (30, 31, 0))
    told = [pool.submit(refusal, VERIFY, ring, FAKE, {}).result(timeout=600) for ring in rings]
    assert told[0] == ""
    assert (
        "attention over a ring cache of 32 rows, with window_size 31 and 3 rows in the step: it"
        " needs" in told[1]
    )
    assert "with window_size 0 and 3 rows in the step: it needs a window and" in told[2]


def test_a_kernel_or_field_that_is_not_there_is_told(pool: Executor) -> None:
    told = pool.submit(refusal, VERIFY, {}, {ACCEPT: b"x"}, {}).result(timeout=600)
    assert f"{VERIFY}: no kernel was compiled for attention, head_dim 64" in told
    told = pool.submit(refusal, VERIFY, {}, FAKE, {}, "window_size").result(timeout=600)
    assert (
        f"{VERIFY}: its field window_size is missing, got fp8_cache, head_dim, holds_kernels,"
        " key_scale, ring, scale, value_scale" in told
    )


def test_a_head_dim_without_a_kernel_is_refused_before_tensorrt() -> None:
    caches = dict.fromkeys(("key_cache", "value_cache"), (2, 2, 32, 80))
    words = (
        r"DFlashVerifyAttention\): there is no kernel for head_dim 80, only for 64, 96, 128, 256;"
        r" .* --no-plugins"
    )
    with pytest.raises(GraphError, match=words):
        op_model(
            VERIFY,
            shapes={"q": (2, 3, 6, 80), "k": (2, 3, 2, 80), "v": (2, 3, 2, 80), **caches},
        )
    unknown = dict.fromkeys(caches, (2, 2, 32, "size"))
    with pytest.raises(
        GraphError, match="no input's shape says its head_dim, which a kernel needs"
    ):
        op_model(
            VERIFY,
            shapes={
                "q": (2, 3, 6, "size"),
                "k": (2, 3, 2, "size"),
                "v": (2, 3, 2, "size"),
                **unknown,
            },
        )
