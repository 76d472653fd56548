"""Tiny hybrid targets for the end-to-end tests, each written once, with Hugging Face's answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e import hugging_face
from tests.e2e.oracle_session import OracleSession
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import MASK_ID, VOCAB
from trtllm_dflash import Engine

# name -> whether it has experts; all that we read, with and without a vision part
NAMES = {
    "qwen3_next": True,
    "qwen3_5": False,
    "qwen3_5_moe": True,
    "qwen3_5_vl": False,
    "qwen3_5_moe_vl": True,
}
NEW_TOKENS = 24
BLOCK = 16  # the most drafts that an oracle must know behind an answer
# Lengths around a chunk and around the convolution's window: one token, less than the window, the
# window, one more than a chunk of 8, several chunks.
PROMPTS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (1, 3, 4, 9, 37)]
PROMPTS[1][2] = MASK_ID


@dataclass(frozen=True)
class HybridTarget:
    """A target on disk; `fused`: a layer's experts are one tensor."""

    root: Path
    name: str
    tied: bool
    fused: bool = False

    @cached_property
    def directory(self) -> Path:
        """Write the checkpoint, and return its directory."""
        folder = self.root / f"{self.name}_{self.tied}_{self.fused}"
        return tiny_hybrid(folder, self.name, tied=self.tied, fused=self.fused)

    @cached_property
    def model(self) -> Any:
        """Return Hugging Face's model in float32."""
        return hugging_face.load_target(self.directory)

    @cached_property
    def texts(self) -> list[list[int]]:
        """Return `generate`'s answers to PROMPTS, a block longer than the tests' own."""
        count = NEW_TOKENS + BLOCK
        return [hugging_face.greedy(self.model, prompt, count) for prompt in PROMPTS]

    @cached_property
    def expected(self) -> list[list[int]]:
        """Return what an engine must answer to PROMPTS."""
        return [text[:NEW_TOKENS] for text in self.texts]


class HybridTargets:
    """All targets of a test session, by their choices."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[Any, ...], HybridTarget] = {}

    def __call__(self, name: str, *, tied: bool, fused: bool = False) -> HybridTarget:
        """Return a target; it is written when its directory is first asked for."""
        key = (name, tied, fused)
        if key not in self._made:
            self._made[key] = HybridTarget(self._root, *key)
        return self._made[key]


def answers(
    engine: Engine, prompts: list[list[int]] = PROMPTS, **options: Any
) -> list[list[int]]:
    """Return the tokens of the engine's answers."""
    chosen = {"max_tokens": NEW_TOKENS, "stop_token_ids": [], **options}
    return [item.token_ids for item in engine.generate(prompts, **chosen)]


def with_oracle(
    engine: Engine, texts: list[list[int]] | None, *, seed: int = 0, chunk: int | None = None
) -> tuple[Engine, OracleSession]:
    """Return the same engine with an oracle's drafts; `texts` answer PROMPTS.

    None: with its drafter's own drafts. `chunk` is the width of a prompt's chunks.
    """
    pairs = zip(PROMPTS, texts, strict=True) if texts else ()
    whole = [prompt + text for prompt, text in pairs]
    session = OracleSession(engine._session, whole, VOCAB, seed=seed, chunk=chunk)
    return Engine(engine.config, session), session
