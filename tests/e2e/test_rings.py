"""Ring caches end to end: windowed targets give Hugging Face's tokens, windowed drafters the
reference's numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.fixtures.tiny_models import BLOCK, MASK_ID, TARGET, VOCAB, tiny_drafter, tiny_target
from tests.graph.stepper import Stepper, decode
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.engine_dir import ring_cache
from trtllm_dflash.graph.step import build_step

CACHE, CHUNK, LONG = 300, 7, 150
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n) for n in (1, 8, 70)]
# One window for all sliding layers, as in Hugging Face's configs.
WINDOWS = (9, 0, 9, 0, 9)
HIDDEN = "/drafter/RMSNormalization_1/output_0"  # after the drafter's final norm


@pytest.fixture
def smallest_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings without a row to spare."""
    monkeypatch.setattr(ring_cache, "ALIGNMENT", 1)


@pytest.mark.usefixtures("smallest_rings")
def test_a_windowed_target_decodes_as_hugging_face(tmp_path: Path) -> None:
    """Qwen3 with sliding layers, plain and with a drafter whose layers slide too, in prompts and
    answers of any length.

    The checkpoint that Hugging Face reads says so in its config.json, which our loader still
    refuses; the weights of both are the same bytes.
    """
    kinds = ["sliding_attention" if window else "full_attention" for window in WINDOWS]
    sliding: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": max(WINDOWS),
        "layer_types": kinds,
    }
    theirs = hugging_face.load_target(tiny_target(tmp_path / "theirs", "qwen3", config=sliding))
    expected = [hugging_face.greedy(theirs, prompt.tolist(), LONG) for prompt in PROMPTS]
    directory = tiny_target(tmp_path / "ours", "qwen3")
    plain = load_target(directory)
    target = replace(plain, config=replace(plain.config, windows=WINDOWS))
    drafter = load_drafter(tiny_drafter(tmp_path / "drafter", directory, variant="sliding"))
    for checkpoint, block in ((None, 1), (drafter, BLOCK)):
        model = build_step(
            target,
            checkpoint,
            dtype="float32",
            cache_len=CACHE,
            block_size=block,
            ring_width=CHUNK,
        )
        assert decode(model, PROMPTS, count=LONG, chunk=CHUNK, widths=[block]) == expected
    assert len(WINDOWS) == TARGET["layers"]


@pytest.mark.usefixtures("smallest_rings")
@pytest.mark.parametrize(
    "variant", ["sliding", "sliding_bidirectional", "mixed", "mixed_bidirectional"]
)
def test_a_windowed_drafters_rows_equal_the_reference(variant: str, tmp_path: Path) -> None:
    """Behind a prompt that has gone round each ring several times, in chunks. Tolerance:
    test_drafter_numerics.py.
    """
    target_dir = tiny_target(tmp_path / "target", "qwen3")
    drafter_dir = tiny_drafter(tmp_path / "drafter", target_dir, variant=variant)
    model = build_step(
        load_target(target_dir),
        load_drafter(drafter_dir),
        dtype="float32",
        cache_len=CACHE,
        block_size=BLOCK,
        ring_width=CHUNK,
    )
    hidden = next(
        value for node in model.graph for value in node.outputs if value.name == HIDDEN
    )
    hidden.type, hidden.shape = (
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape(["rows_of_block", "hidden"]),
    )
    model.graph.outputs.append(hidden)
    run, prompt = Stepper(model, 1), PROMPTS[2]
    for first in range(0, len(prompt), CHUNK):
        part = prompt[None, first : first + CHUNK]
        got = run.step(slice(0, 1), part, known=part.shape[1], rows=1)

    target, drafter = (
        hugging_face.load_target(target_dir),
        hugging_face.load_drafter(drafter_dir),
    )
    with torch.no_grad():
        states = target(torch.tensor(prompt[None]), output_hidden_states=True).hidden_states
        features = torch.cat([states[layer + 1] for layer in drafter.target_layer_ids], dim=-1)
        block = torch.tensor([[got["next_ids"][0, 0]] + [MASK_ID] * (BLOCK - 1)])
        positions = torch.arange(len(prompt) + BLOCK)[None]
        embedded = target.get_input_embeddings()(block)
        want = drafter(
            target_hidden=features, noise_embedding=embedded, position_ids=positions
        )[0].numpy()
    np.testing.assert_allclose(got[HIDDEN], want, rtol=2e-4, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("variant", ["sliding", "mixed_bidirectional"])
def test_an_engine_with_rings_decodes_as_hugging_face(
    variant: str, engine: EngineFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Slots that are refilled and moved, answers that go round the drafter's rings many times."""
    root = tmp_path_factory.mktemp(f"rings_{variant}")
    directory = tiny_target(root / "target", "llama")
    drafter = tiny_drafter(root / "drafter", directory, variant=variant)
    theirs = hugging_face.load_target(directory)
    prompts = [prompt.tolist() for prompt in (*PROMPTS, PROMPTS[2][:33], PROMPTS[2][5:7])]
    expected = [hugging_face.greedy(theirs, prompt, 100) for prompt in prompts]
    speculative = engine(directory, drafter, max_batch_size=3)
    rows = {port.name: port.shape[2] for port in speculative.config.io if port.cache}
    assert rows["draft_key.0"] == 32  # 6 - 1 + 8 + 4, in whole 16
    assert rows["target_key.0"] == speculative.config.cache_len == 256
    answers = speculative.generate(prompts, max_tokens=100)
    assert [answer.token_ids for answer in answers] == expected
    for prompt, answer in zip(
        prompts, answers, strict=True
    ):  # drafts depend on the drafter's caches, tokens do not
        assert (
            speculative.generate([prompt], max_tokens=100)[0].acceptance_lengths
            == answer.acceptance_lengths
        )
    assert len({length for answer in answers for length in answer.acceptance_lengths}) > 1
    for draft_len in (0, 1):
        answers = speculative.generate(
            prompts[:2], max_tokens=60, draft_len=draft_len or 1, draft=draft_len > 0
        )
        assert [answer.token_ids for answer in answers] == [
            tokens[:60] for tokens in expected[:2]
        ]
