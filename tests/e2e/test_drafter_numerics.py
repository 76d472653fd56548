"""The drafter's pass in our graph against the reference package's, row by row, for every mask
variant.

τ cannot tell causal from bidirectional attention in the block; the numbers can.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.fixtures.sampling import new_slots, no_adjustments, sampling_arrays
from tests.fixtures.tiny_models import (
    BLOCK,
    DRAFTER_VARIANTS,
    MASK_ID,
    VOCAB,
    tiny_drafter,
    tiny_target,
)
from tests.fixtures.tiny_moe import tiny_gpt_oss
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.step import build_step

CACHE = 64
HIDDEN = "/drafter/RMSNormalization_1/output_0"  # after the drafter's final norm


def _step_with_hidden(target: Path, drafter: Path) -> tuple[object, list[str]]:
    """Return a session of the step and its outputs' names.

    The drafter's final hidden rows [B·T, hidden] are one of them.
    """
    import onnxruntime

    model = build_step(
        load_target(target),
        load_drafter(drafter),
        dtype="float32",
        cache_len=CACHE,
        block_size=BLOCK,
    )
    for initializer in model.graph.initializers.values():
        initializer.const_value = ir.Tensor(
            np.ascontiguousarray(initializer.const_value.numpy())
        )
    hidden = next(
        value for node in model.graph for value in node.outputs if value.name == HIDDEN
    )
    hidden.type, hidden.shape = (
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape(["rows_of_block", "hidden"]),
    )
    model.graph.outputs.append(hidden)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # caches are copied here, which it would warn about
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session, [output.name for output in session.get_outputs()]


def _prompt_step(
    session: object, names: list[str], prompts: np.ndarray
) -> dict[str, np.ndarray]:
    batch, width = prompts.shape
    ports = {port.name: port for port in session.get_inputs()}
    feeds = {
        "input_ids": prompts,
        "num_known": np.full(batch, width, np.int32),
        "past_len": np.zeros(batch, np.int32),
        "kv_positions": np.arange(width + BLOCK),
        **sampling_arrays(batch),
        **new_slots(batch),
        **no_adjustments(batch, 1, ports["token_mask"].shape[2]),
        "decided": np.arange(1),
        "noise_key": np.zeros((batch, 4), np.int64),
        "block_rows": np.arange(BLOCK),
    }
    for port in session.get_inputs():
        if port.name not in feeds:
            feeds[port.name] = np.full([batch, *port.shape[1:]], 1e3, np.float32)
    return dict(zip(names, session.run(names, feeds), strict=True))


def _reference_hidden(
    target_dir: Path, drafter_dir: Path, prompt: np.ndarray, anchor: int, *, scale: float = 1.0
) -> np.ndarray:
    """Return the reference drafter's final hidden rows [T, hidden] for a prompt and its anchor.

    The embeddings are multiplied by `scale`, as the package's generation does.
    """
    target, drafter = (
        hugging_face.load_target(target_dir),
        hugging_face.load_drafter(drafter_dir),
    )
    ids = torch.tensor(prompt[None])
    with torch.no_grad():
        states = target(ids, output_hidden_states=True).hidden_states
        features = torch.cat([states[layer + 1] for layer in drafter.target_layer_ids], dim=-1)
        block = torch.tensor([[anchor] + [MASK_ID] * (BLOCK - 1)])
        positions = torch.arange(len(prompt) + BLOCK)[None]
        embedded = target.get_input_embeddings()(block)
        return drafter(
            target_hidden=features, noise_embedding=embedded * scale, position_ids=positions
        )[0].numpy()


@pytest.mark.parametrize("variant", DRAFTER_VARIANTS)
def test_hidden_rows_equal_the_reference(variant: str, tmp_path: Path) -> None:
    """float32 on both sides: 3 layers of sums of at most 112 terms, so about 1e-5 relative to
    values of order 1.
    """
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_drafter(
        tmp_path / "drafter",
        target,
        variant=variant,
        yarn=variant == "full",
        attention_bias=variant == "mixed",
    )
    prompts = np.random.default_rng(4).integers(0, VOCAB, (2, 13))
    got = _prompt_step(*_step_with_hidden(target, drafter), prompts)
    hidden = got[HIDDEN].reshape(2, BLOCK, -1)
    for row in range(2):
        want = _reference_hidden(target, drafter, prompts[row], got["next_ids"][row, 0])
        np.testing.assert_allclose(hidden[row], want, rtol=2e-4, atol=2e-5 * np.abs(want).max())


def test_gpt_oss_drafters_equal_the_reference(tmp_path: Path) -> None:
    """Biases on q, k, v and o, yarn, more layers than taps, and features of a target with windows,
    sinks and experts.

    The tolerance is that above; the layers are eight, as gpt-oss's drafters have them.
    """
    target = tiny_gpt_oss(tmp_path / "target")
    same_numbers = tiny_gpt_oss(tmp_path / "plain", mxfp4=False)
    drafter = tiny_drafter(
        tmp_path / "drafter",
        target,
        attention_bias=True,
        yarn=True,
        num_layers=8,
        taps=(1, 0, 2),
    )
    prompts = np.random.default_rng(4).integers(0, VOCAB, (2, 13))
    got = _prompt_step(*_step_with_hidden(target, drafter), prompts)
    hidden = got[HIDDEN].reshape(2, BLOCK, -1)
    for row in range(2):
        want = _reference_hidden(same_numbers, drafter, prompts[row], got["next_ids"][row, 0])
        np.testing.assert_allclose(hidden[row], want, rtol=2e-4, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("place", ["top", "dflash_config"])
def test_scaled_embeddings_equal_the_reference(place: str, tmp_path: Path) -> None:
    """Drafters of Gemma's targets have the key, with a cap of the logits, which is no matter."""
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_drafter(tmp_path / "drafter", target)
    config = json.loads((drafter / "config.json").read_text())
    section = config if place == "top" else config["dflash_config"]
    section |= {"input_embedding_scale": 7.25, "final_logit_softcapping": 30.0}
    (drafter / "config.json").write_text(json.dumps(config))
    prompts = np.random.default_rng(4).integers(0, VOCAB, (1, 13))
    got = _prompt_step(*_step_with_hidden(target, drafter), prompts)
    hidden = got[HIDDEN].reshape(1, BLOCK, -1)
    anchor = got["next_ids"][0, 0]
    want = _reference_hidden(target, drafter, prompts[0], anchor, scale=7.25)
    np.testing.assert_allclose(hidden[0], want, rtol=2e-4, atol=2e-5 * np.abs(want).max())
    unscaled = _reference_hidden(target, drafter, prompts[0], anchor)
    assert np.abs(want - unscaled).max() > 0.05 * np.abs(want).max()


def test_causal_differs_from_bidirectional_beyond_the_tolerance(tmp_path: Path) -> None:
    """The test above would see a swapped mask: it changes the hidden rows."""
    target = tiny_target(tmp_path / "target", "qwen3")
    prompts = np.random.default_rng(4).integers(0, VOCAB, (1, 13))
    hidden = {}
    for variant in ("full", "causal"):
        drafter = tiny_drafter(tmp_path / variant, target, variant=variant)
        hidden[variant] = _prompt_step(*_step_with_hidden(target, drafter), prompts)[HIDDEN]
    difference = np.abs(hidden["full"] - hidden["causal"]).max() / np.abs(hidden["full"]).max()
    assert difference > 0.05
