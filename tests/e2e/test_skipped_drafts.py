"""Steps whose drafter drafts nothing: it goes on later as if it had always drafted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builder.test_makers_drafters import with_sinks
from tests.e2e.conftest import EngineFactory
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.speculators import speculators_drafter
from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import DRAFTER, VOCAB, tiny_drafter, tiny_target
from trtllm_dflash import Engine
from trtllm_dflash.runtime.sessions.base import SlotSampling

Pair = tuple[Path, Path]
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n) for n in (3, 21)]
PLAIN_STEPS, CHUNK = 40, 8


def _v1(root: Path, **options: Any) -> Pair:
    target = tiny_target(root / "target", "qwen3")
    return target, tiny_drafter(root / "drafter", target, **options)


def _dflash2(root: Path) -> Pair:
    target = tiny_target(root / "target", "qwen3")
    return target, tiny_dflash2(root / "drafter", target, variant="mixed")


def _dspark(root: Path) -> Pair:
    target = tiny_target(root / "target", "qwen3")
    return target, speculators_drafter(root / "drafter", target, method="dspark")


def _sinks(root: Path) -> Pair:
    target, drafter = _v1(root)
    return target, with_sinks(drafter)


def _quantized(root: Path, form: str) -> Pair:
    target, drafter = _v1(root)
    o_proj = tuple(f"layers.{layer}.self_attn.o_proj" for layer in range(DRAFTER["layers"]))
    exclude = ("fc", *o_proj)  # o_proj: blocks do not divide its inputs
    return target, quantized_copy(
        drafter, root / "quantized", form, dtype="F32", exclude=exclude
    )


def _hybrid(root: Path) -> Pair:
    target = tiny_hybrid(root / "target", "qwen3_5")
    return target, tiny_drafter(root / "drafter", target)


PAIRS: dict[str, Callable[[Path], Pair]] = {
    "v1": _v1,
    "int8": _v1,
    "rings": lambda root: _v1(root, variant="mixed", window=9),
    "dflash2": _dflash2,
    "dspark": _dspark,
    "hybrid": _hybrid,
    "sinks": _sinks,
    "fp8": lambda root: _quantized(root, "fp8"),
    "nvfp4": lambda root: _quantized(root, "nvfp4"),
    "nvfp4 weights": lambda root: _quantized(root, "w4a16_nvfp4"),
}


@pytest.fixture(params=PAIRS)
def drafting(request: pytest.FixtureRequest, tmp_path: Path, engine: EngineFactory) -> Engine:
    """Return an engine of one kind of drafter."""
    target, drafter = PAIRS[request.param](tmp_path)
    precision = "int8" if request.param == "int8" else None
    return engine(target, drafter, max_batch_size=2, weight_only_precision=precision)


def _after(session: Any, drafts: Sequence[bool], width: int = 1) -> dict[str, np.ndarray]:
    """Return what slots hold behind PROMPTS and steps that draft or do not; the last does."""
    for slot, prompt in enumerate(PROMPTS):
        session.open_slot(slot, SlotSampling(draft_sources=1))
        for first in range(0, len(prompt), CHUNK):
            session.prefill(slot, prompt[first : first + CHUNK], draft=drafts[0])
            session.collect()
    for draft in drafts:
        session.decode(len(PROMPTS), width, draft=draft)
        session.collect()
    return {name: array.copy() for name, array in session._slots.items()}


@pytest.mark.parametrize("width", [1, 4])
def test_drafting_starts_again_as_if_it_had_never_ended(drafting: Engine, width: int) -> None:
    """The caches hold the same, up to rounding; the next drafts are the same.

    Steps of one token are plain ones. Those of four verify what lookup has drafted.
    """
    session: Any = drafting._session
    skipped = [False] * (PLAIN_STEPS // width) + [True]
    always = _after(session, [True] * (PLAIN_STEPS // width + 1))
    found = _after(session, skipped)
    assert session.may_skip_drafter
    if width == 1:
        np.testing.assert_array_equal(found["past_len"], always["past_len"])
        np.testing.assert_array_equal(found["next_ids"], always["next_ids"])
    for name, array in found.items():
        if not name.startswith(("target_key", "target_value", "draft_key", "draft_value")):
            continue
        for slot, length in enumerate(found["past_len"]):
            rows = min(int(length), array.shape[2])
            np.testing.assert_allclose(
                array[slot, :, :rows], always[name][slot, :, :rows], rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9}])
def test_tokens_are_the_same_whatever_drafts(
    drafting: Engine, sampling: dict[str, float]
) -> None:
    """And the drafts behind a prompt are those of one whose every chunk was drafted for."""
    options: dict[str, Any] = {"max_tokens": 60, "stop_token_ids": [], "seed": 7, **sampling}
    prompts = [prompt.tolist() for prompt in PROMPTS]
    expected = [a.token_ids for a in drafting.generate(prompts, draft=False, **options)]
    for more in ({"draft_len": 3}, {"draft_len": "auto"}, {"drafts": "lookup", "draft_len": 2}):
        answers = drafting.generate(prompts, **more, **options)
        assert [answer.token_ids for answer in answers] == expected


def test_lookup_drafts_where_the_drafter_does_not(
    engine: EngineFactory, tmp_path: Path
) -> None:
    """Its blocks are those of a slot that allows nothing else."""
    target, drafter = _v1(tmp_path)
    session: Any = engine(target, drafter, max_batch_size=2)._session
    prompt = np.array([5, 6, 7, 8, 9, 5, 6, 7])
    blocks = []
    for sources, draft in ((2, True), (1, False), (3, False)):
        sampling = SlotSampling(draft_sources=sources)
        session.open_slot(0, sampling)
        session.prefill(0, prompt, draft=draft)
        tally = session.collect().next_tally
        blocks.append((session._slots["next_ids"][0].tolist(), tally.tolist()))
    assert blocks[0] == blocks[1] == blocks[2]
    assert blocks[0][1][0][0] > 0
