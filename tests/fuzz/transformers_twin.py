"""Mutated configurations that we accept, against what transformers makes of the same files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.e2e.hugging_face import greedy
from tests.e2e.logits import target_logits
from tests.fixtures.engines import build_here
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import VOCAB, tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from tests.fuzz.checkpoints import mutate_config
from tests.fuzz.outcomes import WrongAnswerError
from trtllm_dflash import Engine
from trtllm_dflash.checkpoint.loader import load_target, warn_of_unmet_settings
from trtllm_dflash.options.build import BuildConfig

BASES: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: tiny_target(path, "llama"),
    "llama tied": lambda path: tiny_target(path, "llama", tied=True, rope="llama3"),
    "llama biased": lambda path: tiny_target(path, "llama", attention_bias=True, mlp_bias=True),
    "qwen2": lambda path: tiny_target(path, "qwen2"),
    "qwen3": lambda path: tiny_target(path, "qwen3", rope="yarn"),
    "qwen3 new": lambda path: tiny_target(path, "qwen3", rope="yarn", rope_style="new"),
    "mistral": lambda path: tiny_target(path, "mistral"),
    "moe": lambda path: tiny_qwen3_moe(path),
    "moe of all": lambda path: tiny_qwen3_moe(path, normalize=False, fused=True),
    "gpt-oss": lambda path: tiny_gpt_oss(path, mxfp4=False),
}
HYBRID_BASES: dict[str, Callable[[Path], Path]] = {
    "qwen3-next": lambda path: tiny_hybrid(path, "qwen3_next"),
    "qwen3.5": lambda path: tiny_hybrid(path, "qwen3_5"),
    "qwen3.5 tied": lambda path: tiny_hybrid(path, "qwen3_5", tied=True),
    "qwen3.5 moe": lambda path: tiny_hybrid(path, "qwen3_5_moe", fused=True),
    "qwen3.5 images": lambda path: tiny_hybrid(path, "qwen3_5_vl"),
    "qwen3.5 images tied": lambda path: tiny_hybrid(path, "qwen3_5_vl", tied=True),
    "qwen3.5 moe images": lambda path: tiny_hybrid(path, "qwen3_5_moe_vl"),
}
IDS = np.random.default_rng(7).integers(0, VOCAB, (1, 40))
NEW_TOKENS = 14
GENERATION: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0, 1.3, 2.0),
    "no_repeat_ngram_size": (0, 1, 2),
    "suppress_tokens": ([], [5, 6, 7, 8], list(range(48))),
    "begin_suppress_tokens": ([], list(range(60))),
    "bad_words_ids": ([[5]], [[token] for token in range(50)]),
    "min_length": (0, 60),
    "min_new_tokens": (0, 9),
    "forced_bos_token_id": (None, 3),
    "forced_eos_token_id": (None, 4, [4]),
    "sequence_bias": ([[[9], 30.0]], None),
    "encoder_repetition_penalty": (1.0, 4.0),
    "encoder_no_repeat_ngram_size": (0, 1),
    "exponential_decay_length_penalty": (None, [2, 9.0]),
    "num_beams": (1, 3),
    "guidance_scale": (None, 1.0, 3.0),
    "renormalize_logits": (True, False),
    "remove_invalid_values": (True,),
    "length_penalty": (2.0,),
    "early_stopping": (True,),
    "diversity_penalty": (1.0,),
    "prompt_lookup_num_tokens": (3,),
    "use_cache": (True, False),
    "cache_implementation": ("dynamic", "static"),
    "temperature": (0.6,),
    "top_k": (1, 20),
    "top_p": (0.5,),
    "typical_p": (0.2,),
    "min_p": (0.1,),
    "epsilon_cutoff": (0.001,),
    "eta_cutoff": (0.001,),
    "max_new_tokens": (5,),
    "max_length": (50,),
    "eos_token_id": (3, [3, 4], [*range(20)]),
    "pad_token_id": (0,),
}


def write_bases(root: Path) -> None:
    """Write every base into root/<name>; mutants share their weights."""
    for name, make in (BASES | HYBRID_BASES).items():
        make(root / name)


def write_twin(root: Path, number: int, directory: Path) -> dict[str, Any]:
    """Write mutant `number` of a base's config.json; return it. Negative ones are of hybrids."""
    random = Random(f"configuration {number}")
    base = root / random.choice(sorted(BASES if number >= 0 else HYBRID_BASES))
    config = mutate_config(json.loads((base / "config.json").read_text()), random)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copyfile(base / "model.safetensors", directory / "model.safetensors")
    return config


def compare_logits(root: Path, number: int, directory: Path) -> str:
    """Load a mutant in both; return "equal", or why there is nothing to compare.

    Raises: WrongAnswerError: for logits that differ by more than rounding.
    """
    config = write_twin(root, number, directory)
    load_target(directory)
    ours = target_logits(directory, IDS)
    loaded = _load_theirs(directory)
    if isinstance(loaded, str):
        return loaded
    import torch

    try:
        with torch.inference_mode():
            theirs = loaded(torch.from_numpy(IDS)).logits.numpy()
    except (TypeError, IndexError) as error:  # of keys that only images need
        return f"transformers fails: {type(error).__name__}"
    difference = float(np.abs(ours - theirs).max())
    if not difference < 1e-3 * float(theirs.std()):
        raise WrongAnswerError(f"logits differ by {difference}: {json.dumps(config)}")
    return "equal"


def _load_theirs(directory: Path) -> Any:
    """Return transformers' model, or why it has none of these weights."""
    import torch
    import transformers

    torch.set_num_threads(1)
    (architecture,) = json.loads((directory / "config.json").read_text())["architectures"]
    try:
        model, loading = getattr(transformers, architecture).from_pretrained(
            directory,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation="eager",
        )
    except Exception as error:  # noqa: BLE001 - any of them is transformers' refusal
        return f"transformers refuses: {type(error).__name__}"
    if loading["missing_keys"] or loading["mismatched_keys"]:
        return "transformers lacks tensors"
    return model.eval()


def compare_tokens(root: Path, number: int, directory: Path) -> str:
    """Build a CPU engine of a mutant; return "equal" if its greedy tokens are transformers'.

    Raises: WrongAnswerError: if they are not, and no warning names a setting of generate.
    """
    config = write_twin(root, number, directory)
    output = directory / "engine"
    build_here(BuildConfig(str(directory), output, max_seq_len=56, max_num_tokens=8))
    model = _load_theirs(directory)
    if isinstance(model, str):
        return model
    (answer,) = Engine.load(output, num_threads=1).generate(IDS.tolist(), max_tokens=NEW_TOKENS)
    target = load_target(directory)
    stops = list(target.config.eos_token_ids) or None
    if answer.token_ids == greedy(model, IDS[0].tolist(), NEW_TOKENS, stops):
        return "equal"
    if not _warnings_of(target):
        raise WrongAnswerError(f"other tokens: {json.dumps(config)}")
    return "named"


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _warnings_of(target: Any) -> list[str]:
    """Return what `build` warns of in a target's settings of generate."""
    records = _Records()
    logger = logging.getLogger("trtllm_dflash")
    logger.addHandler(records)
    try:
        warn_of_unmet_settings(target)
    finally:
        logger.removeHandler(records)
    return records.texts


def compare_generation(root: Path, number: int, directory: Path, engine: Any) -> str:
    """Let transformers' generate follow a mutated generation_config.json, which we name or obey.

    `engine` is our engine of the same weights without stop tokens. Returns what was found.

    Raises: WrongAnswerError: where the greedy tokens differ and no warning names a key.
    """
    import torch

    random = Random(f"generation {number}")
    keys = random.sample(sorted(GENERATION), random.choice((1, 1, 2)))
    settings = {key: random.choice(GENERATION[key]) for key in keys}
    shutil.copytree(root / "llama", directory)
    (directory / "generation_config.json").write_text(json.dumps(settings))
    target = load_target(directory)
    warnings = _warnings_of(target)
    model = _load_theirs(directory)
    ids = torch.from_numpy(IDS)[:, :12]
    lengths = (
        {}
        if "max_new_tokens" in settings or "max_length" in settings
        else {"max_new_tokens": 12}
    )
    try:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths
        )
    except Exception as error:  # noqa: BLE001
        return f"transformers refuses: {type(error).__name__}"
    theirs = out[0, ids.shape[1] :].tolist()
    (answer,) = engine.generate(
        [ids[0].tolist()],
        max_tokens=max(1, len(theirs)),
        stop_token_ids=target.config.eos_token_ids,
    )
    if answer.token_ids == theirs:
        return "equal"
    if not any(f"{key} " in text for key in keys for text in warnings):
        raise WrongAnswerError(f"{answer.token_ids} for {theirs}: {json.dumps(settings)}")
    return "named"
