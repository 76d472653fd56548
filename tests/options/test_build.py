"""Every number of a build is checked with a sentence, and every default resolves against the
models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_models import BLOCK
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.options.build import DTYPE_BYTES, BuildConfig
from trtllm_dflash.options.resolved_build import ResolvedBuild

Resolve = Callable[..., ResolvedBuild]


@pytest.fixture(scope="module")
def resolve(make_target: Callable[..., Path], make_drafter: Callable[..., Path]) -> Resolve:
    directory = make_target("llama", config={"max_position_embeddings": 512})
    target, drafter = (
        load_target(directory).config,
        load_drafter(make_drafter(directory)).config,
    )

    def make(**sizes: Any) -> ResolvedBuild:
        config = BuildConfig(
            "target", Path("engine"), drafter=sizes.pop("drafter", "drafter"), **sizes
        )
        return config.resolve(target, drafter if config.drafter else None)

    return make


def test_every_arch_has_a_backend_and_known_dtypes() -> None:
    for arch in ARCHS.values():
        assert arch.backend in BACKENDS
        assert arch.dtypes
        assert set(arch.dtypes) <= set(DTYPE_BYTES)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"arch": "sm70"}, r"--arch 'sm70' is not known; choose one of cpu, sm80, sm86"),
        (
            {"dtype": "float8"},
            r"--dtype 'float8' is not known; choose one of auto, float32, bfloat16",
        ),
        (
            {"dtype": "bfloat16"},
            r"--dtype bfloat16 cannot be built for --arch cpu: onnxruntime runs .* in float32",
        ),
        (
            {"dtype": "float32", "arch": "sm120"},
            r"--dtype float32 cannot be built for --arch sm120: tensorrt_rtx",
        ),
        (
            {"plugins": True},
            r"--plugins are CUDA kernels, and --arch cpu is no GPU; leave the option out",
        ),
        *(
            ({"max_batch_size": size}, rf"--max-batch-size is {size}, expected .* 1 to 65536")
            for size in (0, True, 65537, 10**30)
        ),
        *(
            ({"max_seq_len": size}, rf"--max-seq-len is {size}, expected .* 2 to 16777216")
            for size in (1, 2**24 + 1)
        ),
        ({"max_input_len": -5}, r"--max-input-len is -5, expected an integer of at least 1"),
        (
            {"max_num_tokens": 2.5},
            r"--max-num-tokens is 2.5, expected an integer of at least 1",
        ),
        ({"block_size": 1}, r"--block-size is 1, expected an integer of at least 2"),
        ({"draft_len": 0}, r"--draft-len is 0, expected an integer of at least 1"),
        ({"draft_len": "x"}, r"--draft-len is 'x', expected an integer or \"auto\""),
        (
            {"drafter": None, "block_size": 4},
            r"--block-size is about drafts: it needs a drafter",
        ),
        ({"drafter": None, "draft_len": 2}, r"--draft-len is about drafts: it needs a drafter"),
        (
            {"max_seq_len": 513},
            r"--max-seq-len 513 is more than 512, the target's max_position_embeddings",
        ),
        (
            {"max_seq_len": 64, "max_input_len": 64},
            r"--max-input-len 64 is more than 63, max-seq-len - 1",
        ),
        (
            {"max_seq_len": 64, "max_num_tokens": 65},
            r"--max-num-tokens 65 is more than 64, max-seq-len: no step",
        ),
        ({"max_num_tokens": 3}, r"--max-num-tokens 3 is less than the block of 4 tokens"),
        (
            {"block_size": 5},
            r"--block-size 5 is more than the 4 that the drafter was trained with",
        ),
        (
            {"draft_len": 4},
            r"--draft-len 4 is more than 3, block-size - 1: the block's first token is the anchor",
        ),
        ({"block_size": 3, "draft_len": 3}, r"--draft-len 3 is more than 2, block-size - 1"),
    ],
)
def test_wrong_size_is_refused_with_both_values(
    resolve: Resolve, sizes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(**sizes)


def test_defaults_come_from_the_models(resolve: Resolve) -> None:
    sizes = resolve()
    assert (sizes.dtype, sizes.max_batch_size, sizes.max_seq_len, sizes.max_input_len) == (
        "float32",
        1,
        512,
        511,
    )
    assert (sizes.max_num_tokens, sizes.block_size, sizes.draft_len) == (511, BLOCK, BLOCK - 1)
    assert (sizes.auto_draft_len, sizes.to_json()["draft_len"]) == (True, "auto")
    assert resolve(arch="sm120").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arch", "asked", "expected"),
    [
        ("cpu", None, False),
        ("cpu", False, False),
        ("sm120", None, True),
        ("sm89", False, False),
        ("sm90", None, True),
    ],
)
def test_plugins_are_the_default_of_every_gpu(
    resolve: Resolve, arch: str, asked: bool | None, expected: bool
) -> None:
    sizes = resolve(arch=arch, plugins=asked)
    assert sizes.plugins is expected
    assert sizes.to_json()["plugins"] is expected


def test_plain_build_has_no_drafts(resolve: Resolve) -> None:
    sizes = resolve(drafter=None)
    assert (sizes.block_size, sizes.draft_len, sizes.auto_draft_len) == (1, 0, False)
    assert sizes.to_json()["draft_len"] == 0


@pytest.mark.parametrize(
    ("asked", "number", "written"), [("auto", BLOCK - 1, "auto"), (2, 2, 2), (None, 3, "auto")]
)
def test_a_number_of_drafts_is_fixed_by_naming_it(
    resolve: Resolve, asked: int | str | None, number: int, written: int | str
) -> None:
    sizes = resolve(draft_len=asked)
    assert (sizes.draft_len, sizes.to_json()["draft_len"]) == (number, written)
    assert "auto_draft_len" not in sizes.to_json()


@pytest.mark.parametrize(
    ("seq_len", "block", "cache_len"), [(64, 4, 128), (52, 4, 64), (53, 4, 128), (512, 2, 576)]
)
def test_caches_have_room_for_rejected_rows(
    resolve: Resolve, seq_len: int, block: int, cache_len: int
) -> None:
    assert resolve(max_seq_len=seq_len, block_size=block).cache_len == cache_len


@pytest.mark.parametrize(
    ("options", "ring_width"),
    [
        ({}, 20),
        ({"arch": "sm120"}, 20),
        ({"arch": "sm120", "plugins": False}, None),
        ({"arch": "cpu"}, 20),
    ],
)
def test_rings_hold_the_widest_step_where_they_can_be_updated(
    resolve: Resolve, options: dict[str, Any], ring_width: int | None
) -> None:
    assert resolve(max_seq_len=64, max_num_tokens=20, **options).ring_width == ring_width
