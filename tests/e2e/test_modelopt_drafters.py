"""Drafters that ModelOpt makes and exports: their drafts are its own classes', one by one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory
from tests.fixtures.tiny_models import HIDDEN, MASK_ID, VOCAB, tiny_target
from tests.graph.stepper import Stepper
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.pair_checks import check_pair
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.models.dflash2 import MAX_CANDIDATES

pytestmark = pytest.mark.slow

BLOCK, WINDOW, NEW_TOKENS = 4, 24, 20
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (2, 5, 9, 13, 14)]
SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 112,
    "rms_norm_eps": 1e-6,
}
# Options of ModelOpt's DFlash.
CASES: dict[str, dict[str, Any]] = {
    "sinks": {"dflash_attention_sink": True},
    "sinks, causal, with a window": {
        "dflash_attention_sink": True,
        "dflash_draft_attention": "causal",
        "dflash_swa_window_size": WINDOW,
    },
    "DSpark": {
        "architecture": {
            "projector_type": "dspark",
            "markov_rank": 24,
            "use_confidence_head": True,
        }
    },
    "FP8": {},
}


@pytest.fixture(autouse=True)
def _attention_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the function that ModelOpt compiles for sinks as it is, which saves a minute."""
    from modelopt.torch.speculative.plugins import modeling_dflash

    monkeypatch.setattr(
        modeling_dflash, "_compiled_sink_attention", modeling_dflash._sink_attention_impl
    )


def modelopts_target(directory: Path) -> Path:
    """Write a target with the base of RoPE that ModelOpt's module has, whatever its target's is.

    Its export states the target's base, which with transformers 5.24 is not the module's.
    """
    return tiny_target(directory, "qwen3", config={"rope_theta": 10000.0})


def export(
    target_dir: Path, directory: Path, options: dict[str, Any], *, fp8: bool
) -> list[list[int]]:
    """Make a random drafter of these options and export it; return its drafts, in ModelOpt.

    With `fp8` the linears of its layers are quantized. An export leaves packed weights in the
    module, so it drafts before.
    """
    import modelopt.torch.speculative as mtsp
    from modelopt.torch.export import export_speculative_decoding

    torch.manual_seed(5)
    model = hugging_face.load_target(target_dir)
    settings = {
        "dflash_block_size": BLOCK,
        "dflash_mask_token_id": MASK_ID,
        "dflash_use_torch_compile": False,
        "dflash_architecture_config": SIZES | options.pop("architecture", {}),
        **options,
    }
    mtsp.convert(model, [("dflash", settings)])
    module = model.dflash_module
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("attention_sink_bias"):
                parameter.copy_(torch.linspace(-2, 3, parameter.numel()))
            elif parameter.ndim > 1:
                parameter.normal_(std=1.4 * parameter.shape[1] ** -0.5)
    # ModelOpt makes it with an argument that transformers 5.24 has no more.
    module.rotary_emb = Qwen3RotaryEmbedding(config=module._rotary_config)
    if fp8:
        quantize(model)
    drafts = [their_drafts(model, prompt) for prompt in PROMPTS]
    export_speculative_decoding(model, export_dir=directory)
    return drafts


def quantize(model: Any) -> None:
    """Quantize the linears of a drafter's layers to FP8, calibrated on the prompts."""
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
    for name in ("model.*", "lm_head*", "*fc*"):
        config["quant_cfg"].append({"quantizer_name": name, "enable": False})
    mtq.quantize(model, config, lambda _: [their_drafts(model, prompt) for prompt in PROMPTS])


def their_drafts(model: Any, prompt: list[int]) -> list[int]:
    """Return the drafts of ModelOpt's module behind a prompt and the target's next token."""
    module = model.dflash_module
    with torch.no_grad():
        out = model._base_model(torch.tensor([prompt]), output_hidden_states=True)
        logits = model._base_model_lm_head(out.last_hidden_state)
        anchor = int(logits[0, -1].argmax())
        features = torch.cat([out.hidden_states[i + 1] for i in model.target_layer_ids], dim=-1)
        ids = torch.tensor([[anchor] + [MASK_ID] * (BLOCK - 1)])
        embedded = model._base_model_embeddings(ids)
        total = len(prompt) + BLOCK
        mask = None
        if model.dflash_draft_attention == "causal":
            rows, columns = torch.arange(BLOCK)[:, None] + len(prompt), torch.arange(total)
            mask = torch.zeros(1, 1, BLOCK, total).masked_fill(columns > rows, -torch.inf)
        hidden = module(
            noise_embedding=embedded,
            target_hidden=features,
            position_ids=torch.arange(total)[None],
            attention_mask=mask,
        )
        return their_choices(model, hidden, anchor)


def their_choices(model: Any, hidden: torch.Tensor, anchor: int) -> list[int]:
    """Return the tokens that ModelOpt's module drafts from its final rows [1, R, hidden].

    A Markov head adds its bias to all tokens, and we to the likeliest ones: they are the candidates
    here as well.
    """
    logits = model._base_model_lm_head(hidden)[0]
    if not hasattr(model.dflash_module, "markov_step"):
        return logits[1:].argmax(-1).tolist()
    before, drafts = torch.tensor([anchor]), []
    for row in range(len(logits)):
        bias, _ = model.dflash_module.markov_step(before, hidden[:, row])
        candidates = logits[row].topk(MAX_CANDIDATES).indices
        before = candidates[(logits[row] + bias[0])[candidates].argmax()][None]
        drafts.append(int(before))
    return drafts


def our_drafts(target_dir: Path, drafter_dir: Path) -> list[list[int]]:
    """Return the drafts of our step behind each prompt."""
    target = load_target(target_dir)
    drafter = check_pair(target, load_drafter(drafter_dir))
    block = drafter.config.block_size
    model = build_step(target, drafter, dtype="float32", cache_len=32, block_size=block)
    stepper = Stepper(model, slots=len(PROMPTS))
    drafts = []
    for slot, prompt in enumerate(PROMPTS):
        rows = np.array([prompt])
        found = stepper.step(slice(slot, slot + 1), rows, known=len(prompt), rows=1)
        drafts.append(found["next_ids"][0, 1:].tolist())
    return drafts


@pytest.mark.parametrize("case", CASES)
def test_drafts_are_modelopts(case: str, engine: EngineFactory, tmp_path: Path) -> None:
    """Windows are longer than the prompts here: ModelOpt counts them from the anchor, we by row."""
    target = modelopts_target(tmp_path / "target")
    options = copy.deepcopy(CASES[case])
    theirs = export(target, tmp_path / "drafter", options, fp8=case == "FP8")
    drafter = load_drafter(tmp_path / "drafter")
    assert drafter.config.hidden_size == HIDDEN
    if case == "DSpark":
        assert drafter.config.markov_rank == 24
        assert drafter.config.block_size == BLOCK + 1
        assert "confidence_proj.weight" in drafter.ignored
    elif case == "FP8":
        assert len(drafter.formats) == 7 * SIZES["num_hidden_layers"]
    else:
        assert drafter.tensors["layers.1.self_attn.attention_sink_bias"].shape == (9,)
    assert our_drafts(target, tmp_path / "drafter") == theirs
    reference = hugging_face.load_target(target)
    expected = [hugging_face.greedy(reference, prompt, NEW_TOKENS) for prompt in PROMPTS]
    out = engine(target, tmp_path / "drafter").generate(PROMPTS, max_tokens=NEW_TOKENS)
    assert [item.token_ids for item in out] == expected
