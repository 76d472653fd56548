"""Checkpoints of Qwen3.5 with a vision part, as transformers saves them: ours give its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.e2e.hybrids import NEW_TOKENS, PROMPTS, answers
from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_models import HIDDEN, VOCAB, tiny_drafter
from trtllm_dflash.checkpoint.loader import load_target

pytestmark = pytest.mark.slow

TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "full_attention_interval": 3,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
}
DENSE = {"intermediate_size": 80}
MOE = {
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16,
}


def _model(experts: bool, tied: bool, tied_inside: bool) -> Any:
    """Return a random model, of numbers that vary as a trained model's do."""
    torch.manual_seed(3)
    prefix = "Qwen3_5Moe" if experts else "Qwen3_5"
    text = TEXT | (MOE if experts else DENSE) | {"tie_word_embeddings": tied_inside}
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text, vision_config=VISION, tie_word_embeddings=tied
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(0, 1)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.normal_(
                    0, 0.6 if "conv1d" in name else 1.3 / parameter.shape[-1] ** 0.5
                )
            elif "A_log" not in name:
                parameter.normal_(0, 0.5)
    return model


def _add_mtp_layer(directory: Path) -> None:
    """Add the tensors of a layer for multi-token prediction, which transformers drops."""
    path = directory / "model.safetensors"
    tensors = {name: ("F32", array) for name, array in read_tensors(path).items()}
    last = "model.language_model.layers.2."
    layer = {name: stored for name, stored in tensors.items() if name.startswith(last)}
    assert any("self_attn" in name for name in layer)
    for name, stored in layer.items():
        tensors[f"mtp.layers.0.{name.removeprefix(last)}"] = stored
    tensors["mtp.fc.weight"] = ("F32", np.ones((HIDDEN, 2 * HIDDEN), np.float32))
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        tensors[f"mtp.{name}.weight"] = ("F32", np.ones(HIDDEN, np.float32))
    write_tensors(path, tensors)


@pytest.mark.parametrize(
    ("experts", "tied", "tied_inside"),
    [(False, True, False), (False, False, False), (True, True, True), (True, False, False)],
)
def test_a_saved_model_with_vision_and_mtp_tensors(
    experts: bool, tied: bool, tied_inside: bool, engine: EngineFactory, tmp_path: Path
) -> None:
    """The outer `tie_word_embeddings` decides, also where the inner one says otherwise."""
    model = _model(experts, tied, tied_inside)
    expected = [hugging_face.greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len({tuple(text) for text in expected}) == len(PROMPTS)
    model.save_pretrained(tmp_path / "target")
    _add_mtp_layer(tmp_path / "target")
    stored = read_tensors(tmp_path / "target" / "model.safetensors")
    for part in ("model.visual.", "mtp.", "model.language_model."):
        assert any(name.startswith(part) for name in stored)
    assert ("lm_head.weight" in stored) != tied
    target = load_target(tmp_path / "target")
    assert target.config.tie_word_embeddings == tied
    assert not [name for name in target.tensors if "visual" in name or "mtp" in name]
    drafter = tiny_drafter(tmp_path / "drafter", tmp_path / "target", variant="mixed")
    assert answers(engine(tmp_path / "target", drafter)) == expected
    assert answers(engine(tmp_path / "target", None)) == expected
