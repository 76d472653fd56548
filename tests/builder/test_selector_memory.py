"""What a candidate selector takes of an engine: the plan against the graph, and its growth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_dflash2 import RANK, tiny_dflash2
from tests.fixtures.tiny_models import VOCAB, tiny_drafter, tiny_target
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.builder.resolve import ResolvedModels, resolve_models
from trtllm_dflash.builder.selector_memory import SelectorMemory
from trtllm_dflash.checkpoint.formats import Holds
from trtllm_dflash.engine_dir.inspection import inspect_engine
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.models.dflash2 import SelectorConfig
from trtllm_dflash.options.build import BuildConfig


@pytest.mark.parametrize("listed", [None, 12])
@pytest.mark.parametrize("rows", [VOCAB - 7, VOCAB, VOCAB + 30])
def test_codebooks_of_the_graph_are_those_of_the_plan(
    rows: int, listed: int | None, tmp_path: Path
) -> None:
    models = _resolved(tmp_path, rows, listed)
    sizes = models.resolved
    model = build_step(
        models.target,
        models.drafter,
        dtype="float32",
        cache_len=sizes.cache_len,
        block_size=sizes.block_size,
        draft_vocab=models.draft_vocab,
    )
    books = {
        name: value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if "codebook" in name and value.const_value is not None
    }
    memory = models.selector_memory
    assert memory is not None
    used = 2 * rows * RANK * 4 + memory.copied_bytes(4)
    assert sum(books.values()) == used
    assert models.weight_bytes - _without_selector(models) == memory.copied_bytes(4)


def test_scratch_grows_with_slots_and_drafts() -> None:
    selector = SelectorConfig(rank=256, top_k=16)
    memory = SelectorMemory(selector, places=248320, stored=248320, is_listed=False)
    kernel = [memory.kernel_scratch(slots, 7) for slots in (1, 2, 9)]
    assert kernel == sorted(set(kernel))
    assert memory.body_scratch(1, 7, 2) < memory.body_scratch(1, 15, 2)
    # The kernel's is that of the candidates of 31 chunks, and no logit again.
    assert kernel[0] == 7 * 16 * 8 * 31 + 7 * 16 * 8
    assert memory.body_scratch(1, 7, 2) > 7 * 248320 * 4


def test_a_plan_has_the_selectors_scratch(tmp_path: Path) -> None:
    models = _resolved(tmp_path, VOCAB, None)
    memory = models.selector_memory
    assert memory is not None
    plan = MemoryPlan.of(models)
    drafts = models.resolved.block_size - 1
    scratch = memory.body_scratch(models.resolved.max_batch_size, drafts, 4)
    assert plan.step_bytes() > 2 * scratch > 0


def _resolved(directory: Path, rows: int, listed: int | None) -> ResolvedModels:
    target = tiny_target(directory / "target", "qwen3")
    drafter = tiny_dflash2(directory / "drafter", target, codebook_rows=rows, mask_token_id=5)
    (directory / "vocab.json").write_text(json.dumps(list(range(listed or 0))))
    vocab = None if listed is None else str(directory / "vocab.json")
    return resolve_models(
        BuildConfig(str(target), directory / "e", str(drafter), draft_vocab=vocab)
    )


def _without_selector(models: ResolvedModels) -> int:
    """Return the bytes of all stored weights, and of the head's rows again."""
    stored = sum(model.weight_bytes(4, Holds.NOTHING) for model in models.checkpoints.values())
    hidden = models.target.config.hidden_size
    return stored + (0 if models.draft_vocab is None else len(models.draft_vocab) * hidden * 4)


def test_inspect_says_how_an_engine_drafts(tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", "qwen3")
    v1, v2 = tiny_drafter(tmp_path / "v1", target), tiny_dflash2(tmp_path / "v2", target)
    for drafter, words in ((v1, "the likeliest token"), (v2, "one of the 7 likeliest")):
        directory = tmp_path / f"engine_{drafter.name}"
        build_here(BuildConfig(str(target), directory, str(drafter), max_seq_len=64))
        (_, overview), *_ = inspect_engine(directory).sections()
        (line,) = [line for line in overview if line.split()[0] == "drafts"]
        assert words in line
