"""The drafts of `speculators`' own classes for the tiny drafters of tests/fixtures/speculators.py.

`python -m tests.makers.speculators_drafts` writes them to speculators_drafts.json beside this file,
with the layout in which the maker saves such a drafter. It needs speculators 0.9.0, torch and
transformers. Their versions are in the file. speculators cannot be a dependency of the tests: it
asks for an older transformers than they use.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tests.fixtures.speculators import speculators_drafter
from tests.fixtures.tiny_models import VOCAB, tiny_target

RECORD = Path(__file__).with_suffix(".json")
PACKAGES = ("speculators", "torch", "transformers")
# Shorter than the window below: speculators counts it from the anchor, we from each row.
LENGTHS = (2, 5, 9, 13, 14, 15)
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in LENGTHS]
WINDOW = 24
CASES: Mapping[str, dict[str, Any]] = {
    "own vocabulary": {},
    "whole vocabulary": {"draft_ids": None, "taps": (3, 0, 1)},
    "from the anchor": {"config": {"sample_from_anchor": True}},
    # The maker has no DFlash 2 over a part of the vocabulary.
    "DFlash 2": {"method": "dflash2", "draft_ids": None, "non_causal": True},
    # With fewer tokens than the candidates of a row, which are 64 here and all tokens there.
    "DSpark": {"method": "dspark"},
    "DSpark behind the anchor": {"method": "dspark", "config": {"sample_from_anchor": False}},
    "sliding": {"variant": "mixed", "window": WINDOW, "yarn": True},
    "sliding, not causal": {
        "variant": "mixed",
        "window": WINDOW,
        "non_causal": True,
        "attention_bias": True,
    },
}
_VERSIONS = ("transformers_version", "speculators_version")


def write_case(case: str, directory: Path) -> tuple[Path, Path]:
    """Write the target and the drafter of a case; return both folders."""
    target = tiny_target(directory / "target", "qwen3")
    return target, speculators_drafter(directory / "drafter", target, **CASES[case])


def layout(directory: Path) -> dict[str, Any]:
    """Return the keys of config.json and the tensors in a folder, each with type and shape."""
    from safetensors import safe_open

    tensors = {}
    with safe_open(directory / "model.safetensors", "numpy") as file:
        for name in sorted(file.keys()):
            part = file.get_slice(name)
            tensors[name] = [part.get_dtype(), *part.get_shape()]
    return {"config": json.loads((directory / "config.json").read_text()), "tensors": tensors}


def same_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json without versions, and without what is about the maker's code."""
    kept = {key: value for key, value in config.items() if key not in (*_VERSIONS, "auto_map")}
    body = kept["transformer_layer_config"]
    kept["transformer_layer_config"] = {
        key: value for key, value in body.items() if key not in _VERSIONS
    }
    return kept


def drafts(target: Path, drafter: Path) -> list[list[int]]:
    """Return the maker's drafts behind each prompt and the target's next token.

    The maker reads the embedding, and the head where there is no other, from the target that
    config.json names.
    """
    from speculators.model import SpeculatorModel

    from tests.e2e import hugging_face

    config = json.loads((drafter / "config.json").read_text())
    config["speculators_config"]["verifier"]["name_or_path"] = str(target)
    (drafter / "config.json").write_text(json.dumps(config))
    model = SpeculatorModel.from_pretrained(drafter).eval()
    verifier = hugging_face.load_target(target)
    return [_drafts_behind(model, *_features(verifier, prompt)) for prompt in PROMPTS]


def _features(verifier: Any, prompt: list[int]) -> tuple[Any, list[int]]:
    """Return the target's hidden states by number, and the prompt with its next token."""
    import torch

    with torch.inference_mode():
        out = verifier(torch.tensor([prompt]), output_hidden_states=True)
    return out.hidden_states, [*prompt, int(out.logits[0, -1].argmax())]


def _drafts_behind(model: Any, states: Any, tokens: list[int]) -> list[int]:
    """Return the drafts behind the last token, which is the anchor.

    The maker's pass is that of training: a sequence, of which the loss mask selects the anchors.
    It is padded by a block, since no anchor is taken nearer to its end.
    """
    import torch

    anchor, size = len(tokens) - 1, model.block_size
    length = anchor + 1 + size
    picked = torch.cat([states[number] for number in model.target_layer_ids], dim=-1)
    features = torch.zeros(1, length, picked.shape[-1])
    features[:, :anchor] = picked
    ids = torch.tensor([tokens + [0] * size])
    mask = torch.zeros(1, length)
    mask[0, anchor] = 1
    last = torch.zeros(1, length, model.hidden_size)
    documents = torch.zeros(1, length, dtype=torch.long)
    with torch.inference_mode():
        hidden, logits, *_ = model._backbone_forward(
            features, ids, mask, last, documents, max_anchors=1
        )
    first = 0 if model.config.sample_from_anchor else 1
    return _choices(model, hidden[:, first:size], logits[:, first:size], tokens[anchor])


def _choices(model: Any, hidden: Any, logits: Any, anchor: int) -> list[int]:
    """Return the drafts of rows hidden [1, N, H] with their logits [1, N, Vd], one by one."""
    import torch

    before, drafts = torch.tensor([anchor]), []
    with torch.inference_mode():
        for row in range(logits.shape[1]):
            scores = logits[:, row]
            if hasattr(model, "markov_head"):
                embedded = model.markov_head.prev_embeddings(before)
                scores = scores + model.markov_head.markov_w2(embedded)
            place = scores.argmax(-1)
            if hasattr(model, "candidate_selector"):
                place = _selected(model.candidate_selector, scores, hidden[:, row], before)
            before = place if model.d2t is None else place + model.d2t[place]
            drafts.append(int(before))
    return drafts


def _selected(selector: Any, scores: Any, hidden: Any, before: Any) -> Any:
    """Return DFlash 2's choice [1] for a row: the best of its candidates behind a token."""
    candidates, edges = selector.select(scores, hidden, before)
    return candidates.gather(-1, edges.argmax(-1)[:, None])[:, 0]


def record() -> dict[str, Any]:
    """Return what is recorded, computed by the maker's classes."""
    cases = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            target, drafter = write_case(case, Path(folder))
            cases[case] = {
                "layout": _saved_by_maker(drafter, Path(folder) / "saved"),
                "drafts": drafts(target, drafter),
            }
    return {"versions": {name: version(name) for name in PACKAGES}, "cases": cases}


def _saved_by_maker(drafter: Path, directory: Path) -> dict[str, Any]:
    """Return the layout of the same drafter, made and saved by the maker's classes."""
    from speculators.config import SpeculatorModelConfig
    from speculators.model import SpeculatorModel

    config = SpeculatorModelConfig.from_pretrained(drafter)
    SpeculatorModel.registered_model_class_from_config(config)(config).save_pretrained(
        directory
    )
    saved = layout(directory)
    return {**saved, "config": same_keys(saved["config"])}


def main() -> None:
    """Write the record."""
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
