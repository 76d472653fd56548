"""Evaluating: refuse early, read the text, answer the prompts, say what was missed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from trtllm_dflash.engine_dir.manifest import bytes_digest
from trtllm_dflash.errors import UsageError
from trtllm_dflash.evaluate.acceptance import PromptAcceptance, check_prompts, measure_acceptance
from trtllm_dflash.evaluate.engine_under_test import EvaluatedEngine, check_same_vocabulary
from trtllm_dflash.evaluate.result import EngineResult, Evaluation, missed_limits
from trtllm_dflash.evaluate.scoring import score
from trtllm_dflash.evaluate.text import EvalText, read_text, windows
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.log import Progress, ignore_progress
from trtllm_dflash.options.evaluate import LIMITS, EvaluateConfig
from trtllm_dflash.runtime.sessions.base import Int64

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "transformers", "tokenizers")


@dataclass(frozen=True)
class EvalPrompts:
    """Prompts to draft for, as text (in the chat format where `chat`) or token ids; `name` says
    where they stand.
    """

    name: str
    prompts: tuple[str | list[int], ...]
    chat: bool = True


@dataclass(frozen=True)
class _EvalInputs:
    """What the engines are to read and to answer, in token ids."""

    text: EvalText
    windows: list[Int64]
    prompts: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))


def evaluate(
    config: EvaluateConfig,
    questions: EvalPrompts | None = None,
    *,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> Evaluation:
    """All numbers of an engine, and of `config.against` beside it; `argv` (default: the process's)
    is recorded.

    Raises: DFlashError: if an engine cannot be evaluated, the two cannot be compared, or text or
    prompts cannot be used.
    """
    engines = [
        EvaluatedEngine.open(path) for path in (config.engine, config.against) if path is not None
    ]
    if config.min_acceptance_length is not None:
        _require_drafts(engines[0], questions)
    material = _material(config, engines, questions)
    reading = score(engines, material.windows, num_threads=config.num_threads, progress=progress)
    results = [
        EngineResult(
            directory=engine.directory,
            weights=engine.weights,
            drafter=engine.drafter,
            kv_caches=engine.kv_caches,
            perplexity=perplexity,
            acceptance=_acceptance(engine, material, config, progress),
            source=engine.facts(),
        )
        for engine, perplexity in zip(engines, reading.perplexities, strict=True)
    ]
    return Evaluation(
        engine=results[0],
        against=results[1] if len(results) > 1 else None,
        comparison=reading.comparison,
        failures=tuple(missed_limits(config, reading.comparison, results[0].acceptance)),
        facts=_facts(config, material, questions, sys.argv if argv is None else argv),
    )


def _require_drafts(engine: EvaluatedEngine, questions: EvalPrompts | None) -> None:
    if questions is None or not questions.prompts:
        raise UsageError(
            "--min-acceptance-length is a limit on τ, which is measured on prompts: give --prompts FILE"
        )
    if not engine.config.speculates:
        raise UsageError(
            f"--min-acceptance-length: {engine.directory} has no drafter, so it has no τ. Leave it out."
        )


def _material(
    config: EvaluateConfig, engines: Sequence[EvaluatedEngine], questions: EvalPrompts | None
) -> _EvalInputs:
    """Text and prompts in token ids, after every check that needs no weights."""
    text, first = read_text(config.text), engines[0]
    token_ids, chat = first.encode(text.text), questions.chat if questions else False
    prompts = [
        first.encode(prompt, chat=chat) if isinstance(prompt, str) else prompt
        for prompt in (questions.prompts if questions else ())
    ]
    for other in engines[1:]:
        check_same_vocabulary(first, other, {text.text: token_ids}, chat=False)
        asked = zip(questions.prompts, prompts, strict=True) if questions else ()
        check_same_vocabulary(
            first,
            other,
            {prompt: ids for prompt, ids in asked if isinstance(prompt, str)},
            chat=chat,
        )
    for engine in engines:
        check_prompts(prompts, engine.config, config.max_tokens)
    size = min(engine.config.max_seq_len for engine in engines)
    return _EvalInputs(
        text, windows(token_ids[: config.text_tokens], size, name=text.name), prompts
    )


def _acceptance(
    engine: EvaluatedEngine, material: _EvalInputs, config: EvaluateConfig, progress: Progress
) -> PromptAcceptance | None:
    if not material.prompts or not engine.config.speculates:
        return None
    return measure_acceptance(
        engine.directory,
        material.prompts,
        max_tokens=config.max_tokens,
        num_threads=config.num_threads,
        progress=progress,
    )


def _facts(
    config: EvaluateConfig,
    material: _EvalInputs,
    questions: EvalPrompts | None,
    argv: Sequence[str],
) -> Mapping[str, Any]:
    text = material.text
    asked = None
    if questions is not None:
        digest = bytes_digest(repr(material.prompts).encode())
        asked = {"name": questions.name, "token_ids_sha256": digest, "chat": questions.chat}
        asked |= {"count": len(material.prompts), "max_tokens": config.max_tokens}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "versions": versions_of(_PACKAGES),
        "text": {
            "name": text.name,
            "sha256": bytes_digest(text.text.encode()),
            "tokens": material.num_tokens,
            "windows": len(material.windows),
        },
        "prompts": asked,
        "limits": {
            name: value
            for name, value in asdict(config).items()
            if name in LIMITS and value is not None
        },
    }
