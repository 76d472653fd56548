"""Evaluating: refuse early, read the text, answer the prompts, say what was missed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from trtllm_dflash.engine_dir.manifest import text_digest
from trtllm_dflash.errors import UsageError
from trtllm_dflash.evaluate.acceptance import Acceptance, check_prompts, measure_acceptance
from trtllm_dflash.evaluate.engine_under_test import Subject, check_same_vocabulary
from trtllm_dflash.evaluate.result import EngineResult, Evaluation, missed_limits
from trtllm_dflash.evaluate.scoring import read
from trtllm_dflash.evaluate.text import Text, read_text, windows
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.log import Progress, ignore_progress
from trtllm_dflash.options.evaluate import LIMITS, EvaluateConfig
from trtllm_dflash.runtime.sessions.base import Int64

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "transformers", "tokenizers")


@dataclass(frozen=True)
class Questions:
    """Prompts to draft for, as text (in the chat format where `chat`) or token ids; `name` says
    where they stand.
    """

    name: str
    prompts: tuple[str | list[int], ...]
    chat: bool = True


@dataclass(frozen=True)
class _Material:
    """What the engines are to read and to answer, in token ids."""

    text: Text
    windows: list[Int64]
    prompts: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))


def evaluate(
    config: EvaluateConfig,
    questions: Questions | None = None,
    *,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> Evaluation:
    """All numbers of an engine, and of `config.against` beside it; `argv` (default: the process's)
    is recorded.

    Raises: DFlashError: if an engine cannot be evaluated, the two cannot be compared, or text or
    prompts cannot be used.
    """
    subjects = [Subject.open(path) for path in (config.engine, config.against) if path is not None]
    if config.min_tau is not None:
        _require_drafts(subjects[0], questions)
    material = _material(config, subjects, questions)
    reading = read(subjects, material.windows, num_threads=config.num_threads, progress=progress)
    results = [
        EngineResult(
            directory=subject.directory,
            weights=subject.weights,
            drafter=subject.drafter,
            kv_caches=subject.kv_caches,
            perplexity=perplexity,
            acceptance=_acceptance(subject, material, config, progress),
            source=subject.facts(),
        )
        for subject, perplexity in zip(subjects, reading.perplexities, strict=True)
    ]
    return Evaluation(
        engine=results[0],
        against=results[1] if len(results) > 1 else None,
        comparison=reading.comparison,
        failures=tuple(missed_limits(config, reading.comparison, results[0].acceptance)),
        facts=_facts(config, material, questions, sys.argv if argv is None else argv),
    )


def _require_drafts(subject: Subject, questions: Questions | None) -> None:
    if questions is None or not questions.prompts:
        raise UsageError(
            "--min-tau is a limit on τ, which is measured on prompts: give --prompts FILE"
        )
    if not subject.config.speculates:
        raise UsageError(
            f"--min-tau: {subject.directory} has no drafter, so it has no τ. Leave it out."
        )


def _material(
    config: EvaluateConfig, subjects: Sequence[Subject], questions: Questions | None
) -> _Material:
    """Text and prompts in token ids, after every check that needs no weights."""
    text, first = read_text(config.text), subjects[0]
    token_ids, chat = first.encode(text.text), questions.chat if questions else False
    prompts = [
        first.encode(prompt, chat=chat) if isinstance(prompt, str) else prompt
        for prompt in (questions.prompts if questions else ())
    ]
    for other in subjects[1:]:
        check_same_vocabulary(first, other, {text.text: token_ids}, chat=False)
        asked = zip(questions.prompts, prompts, strict=True) if questions else ()
        check_same_vocabulary(
            first,
            other,
            {prompt: ids for prompt, ids in asked if isinstance(prompt, str)},
            chat=chat,
        )
    for subject in subjects:
        check_prompts(prompts, subject.config, config.max_tokens)
    size = min(subject.config.max_seq_len for subject in subjects)
    return _Material(text, windows(token_ids[: config.text_tokens], size, name=text.name), prompts)


def _acceptance(
    subject: Subject, material: _Material, config: EvaluateConfig, progress: Progress
) -> Acceptance | None:
    if not material.prompts or not subject.config.speculates:
        return None
    return measure_acceptance(
        subject.directory,
        material.prompts,
        max_tokens=config.max_tokens,
        num_threads=config.num_threads,
        progress=progress,
    )


def _facts(
    config: EvaluateConfig, material: _Material, questions: Questions | None, argv: Sequence[str]
) -> Mapping[str, Any]:
    text = material.text
    asked = None
    if questions is not None:
        digest = text_digest(repr(material.prompts).encode())
        asked = {"name": questions.name, "token_ids_sha256": digest, "chat": questions.chat}
        asked |= {"count": len(material.prompts), "max_tokens": config.max_tokens}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "versions": versions_of(_PACKAGES),
        "text": {
            "name": text.name,
            "sha256": text_digest(text.text.encode()),
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
