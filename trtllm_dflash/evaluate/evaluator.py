"""Evaluating: check everything early, predict the text, answer the prompts, check the limits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from trtllm_dflash.engine_dir.manifest import bytes_digest
from trtllm_dflash.errors import UsageError
from trtllm_dflash.evaluate.acceptance import (
    PromptAcceptance,
    check_prompts,
    measure_acceptance,
)
from trtllm_dflash.evaluate.engine_under_test import EvaluatedEngine, check_same_vocabulary
from trtllm_dflash.evaluate.result import EngineResult, Evaluation, missed_limits
from trtllm_dflash.evaluate.scoring import score
from trtllm_dflash.evaluate.text import EvalText, read_text, windows
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.log import Progress, ignore_progress
from trtllm_dflash.options.evaluate import LIMITS, EvaluateConfig
from trtllm_dflash.runtime.sessions.base import Int64
from trtllm_dflash.runtime.text.chat_format import ChatFormat, PromptContent, is_token_ids
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "transformers", "tokenizers")


@dataclass(frozen=True)
class EvalPrompts:
    """Prompts on which acceptance is measured, and how they are put; `name` is their file."""

    name: str
    prompts: tuple[PromptContent, ...]
    chat_format: ChatFormat = field(default_factory=ChatFormat)


@dataclass(frozen=True)
class _EvalInputs:
    """The text and the prompts in token ids."""

    text: EvalText
    windows: list[Int64]
    prompts: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all windows."""
        return sum(map(len, self.windows))


def evaluate(
    config: EvaluateConfig,
    prompts: EvalPrompts | None = None,
    *,
    progress: Progress = ignore_progress,
    argv: Sequence[str] | None = None,
) -> Evaluation:
    """Measure an engine, and `config.against` beside it.

    `argv`, which is recorded, defaults to the process's.

    Raises:
        DFlashError: if an engine cannot be evaluated, the two cannot be compared, or the text or
            prompts cannot be used.
    """
    paths = [config.engine] if config.against is None else [config.engine, config.against]
    engines = [EvaluatedEngine.open(path) for path in paths]
    if config.min_acceptance_length is not None:
        _require_drafts(engines[0], prompts)
    inputs = _encode_inputs(config, engines, prompts)
    scores = score(engines, inputs.windows, num_threads=config.num_threads, progress=progress)
    results = []
    for engine, perplexity in zip(engines, scores.perplexities, strict=True):
        acceptance = _acceptance(engine, inputs, config, progress)
        results.append(_engine_result(engine, perplexity, acceptance))
    failures = missed_limits(config, scores.comparison, results[0].acceptance)
    argv = sys.argv if argv is None else argv
    return Evaluation(
        engine=results[0],
        against=results[1] if len(results) > 1 else None,
        comparison=scores.comparison,
        failures=tuple(failures),
        facts=_facts(config, inputs, prompts, engines[0].tokenizer, argv),
    )


def _require_drafts(engine: EvaluatedEngine, prompts: EvalPrompts | None) -> None:
    """Raise UsageError where the acceptance length cannot be measured."""
    if prompts is None or not prompts.prompts:
        raise UsageError(
            "--min-acceptance-length is a limit on τ, which is measured on prompts: give --prompts"
            " FILE"
        )
    if not engine.config.speculates:
        raise UsageError(
            f"--min-acceptance-length: {engine.directory} has no drafter, so it has no τ. Leave it"
            " out."
        )


def _encode_inputs(
    config: EvaluateConfig, engines: Sequence[EvaluatedEngine], prompts: EvalPrompts | None
) -> _EvalInputs:
    """Encode text and prompts, after every check that needs no weights."""
    first = engines[0]
    text = read_text(config.text)
    token_ids = first.encode(text.text)
    encoded = _encode_prompts(first, prompts)
    for other in engines[1:]:
        check_same_vocabulary(first, other, [(text.text, token_ids)])
        if prompts is not None:
            pairs = zip(prompts.prompts, encoded, strict=True)
            texts = [(prompt, ids) for prompt, ids in pairs if not is_token_ids(prompt)]
            check_same_vocabulary(first, other, texts, prompts.chat_format)
    for engine in engines:
        check_prompts(encoded, engine.config, config.max_tokens)
    size = min(engine.config.max_seq_len for engine in engines)
    pieces = windows(token_ids[: config.text_tokens], size, name=text.name)
    return _EvalInputs(text, pieces, encoded)


def _encode_prompts(engine: EvaluatedEngine, prompts: EvalPrompts | None) -> list[list[int]]:
    """Return the prompts' token ids; those given as ids stay."""
    if prompts is None:
        return []
    return [
        cast("list[int]", prompt)
        if is_token_ids(prompt)
        else engine.encode(prompt, prompts.chat_format)
        for prompt in prompts.prompts
    ]


def _acceptance(
    engine: EvaluatedEngine, inputs: _EvalInputs, config: EvaluateConfig, progress: Progress
) -> PromptAcceptance | None:
    """Measure the acceptance length; None without prompts or a drafter."""
    if not inputs.prompts or not engine.config.speculates:
        return None
    return measure_acceptance(
        engine.directory,
        inputs.prompts,
        max_tokens=config.max_tokens,
        num_threads=config.num_threads,
        progress=progress,
    )


def _engine_result(
    engine: EvaluatedEngine, perplexity: float, acceptance: PromptAcceptance | None
) -> EngineResult:
    """Return the results of one engine."""
    return EngineResult(
        directory=engine.directory,
        weights=engine.weights,
        drafter=engine.drafter,
        kv_caches=engine.kv_caches,
        perplexity=perplexity,
        acceptance=acceptance,
        source=engine.facts(),
    )


def _facts(
    config: EvaluateConfig,
    inputs: _EvalInputs,
    prompts: EvalPrompts | None,
    tokenizer: Tokenizer | None,
    argv: Sequence[str],
) -> Mapping[str, Any]:
    """Return the provenance of an evaluation."""
    given = asdict(config)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "versions": versions_of(_PACKAGES),
        "text": {
            "name": inputs.text.name,
            "sha256": bytes_digest(inputs.text.text.encode()),
            "tokens": inputs.num_tokens,
            "windows": len(inputs.windows),
        },
        "prompts": _prompt_facts(config, inputs, prompts, tokenizer),
        "limits": {name: given[name] for name in LIMITS if given[name] is not None},
    }


def _prompt_facts(
    config: EvaluateConfig,
    inputs: _EvalInputs,
    prompts: EvalPrompts | None,
    tokenizer: Tokenizer | None,
) -> Mapping[str, Any] | None:
    """Return the facts of the prompts; None without."""
    if prompts is None:
        return None
    return {
        "name": prompts.name,
        "token_ids_sha256": bytes_digest(repr(inputs.prompts).encode()),
        **prompts.chat_format.facts(tokenizer),
        "count": len(inputs.prompts),
        "max_tokens": config.max_tokens,
    }
