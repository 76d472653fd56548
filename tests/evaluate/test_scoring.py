"""Measurements on engines, against Hugging Face's model and known differences."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.evaluate.conftest import TEXT
from tests.fixtures.quantized import quantized_copy, read_tensors, write_tensors
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter
from trtllm_dflash import Engine
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.evaluate.acceptance import measure_acceptance
from trtllm_dflash.evaluate.evaluator import EvalPrompts, evaluate
from trtllm_dflash.evaluate.logits_session import LogitsSession
from trtllm_dflash.evaluate.result import EngineComparison, Evaluation
from trtllm_dflash.evaluate.target_graph import TargetGraph
from trtllm_dflash.log import ignore_progress
from trtllm_dflash.options.evaluate import EvaluateConfig

WINDOW = 80  # max_seq_len of the engines
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
from trtllm_dflash.evaluate.engine_under_test import AS_THEY_ARE


def measured(engine: Path, text: Path, **options: object) -> Evaluation:
    return evaluate(EvaluateConfig(engine, text=text, num_threads=1, **options))


def difference(engine: Path, against: Path, text: Path) -> EngineComparison:
    comparison = measured(engine, text, against=against).comparison
    assert comparison is not None
    return comparison


def reference_logits(target: Path, token_ids: list[int]) -> list[torch.Tensor]:
    """Logits [n, V] of each window, by Hugging Face's model."""
    model = hugging_face.load_target(target)
    pieces = [token_ids[start : start + WINDOW] for start in range(0, len(token_ids), WINDOW)]
    with torch.no_grad():
        return [model(torch.tensor([piece])).logits[0].double() for piece in pieces]


def ids_of(engine: Path) -> list[int]:
    tokenizer = Engine.load(engine, num_threads=1).tokenizer
    assert tokenizer is not None
    token_ids = tokenizer.encode(TEXT)
    assert 2 * WINDOW + 1 < len(token_ids) < 3 * WINDOW
    return token_ids


def copy_with(source: Path, directory: Path, name: str, factor: float) -> Path:
    """Copy a float32 checkpoint with its tensor `name` times `factor`."""
    shutil.copytree(source, directory)
    tensors = read_tensors(source / "model.safetensors")
    tensors[name] = tensors[name] * np.float32(factor)
    write_tensors(
        directory / "model.safetensors", {key: ("F32", array) for key, array in tensors.items()}
    )
    return directory


def test_perplexity_is_hugging_faces(
    engine: Path, build_cpu: Callable[..., Path], target: Path, text_file: Path
) -> None:
    """In float32, several chunks a window, with a drafter; a plain engine gives the same."""
    token_ids = ids_of(engine)
    total = 0.0
    for start, rows in zip(
        range(0, len(token_ids), WINDOW), reference_logits(target, token_ids), strict=True
    ):
        following = torch.tensor(token_ids[start + 1 : start + len(rows)])
        total += float(torch.nn.functional.cross_entropy(rows[:-1], following, reduction="sum"))
    expected = math.exp(
        total / (len(token_ids) - 3)
    )  # the first token of each window is not predicted
    found = measured(engine, text_file)
    assert found.engine.perplexity == pytest.approx(expected, rel=1e-5)
    assert measured(build_cpu(target), text_file).engine.perplexity == pytest.approx(
        expected, rel=1e-5
    )
    assert found.against is None
    assert found.comparison is None
    assert found.facts["text"]["tokens"] == len(token_ids)
    assert found.facts["text"]["windows"] == 3


def test_logits_are_hugging_faces_at_every_position(
    build_cpu: Callable[..., Path], make_target: Callable[..., Path]
) -> None:
    """Row by row, of a tied Qwen3, in chunks of different widths."""
    target = make_target("qwen3", tied=True, tokenizer=True)
    directory = build_cpu(target)
    config, graph = EngineConfig.load(directory), TargetGraph.load(directory / "model.onnx")
    parents = {name: "mlp" if name[0] in "gud" else "self_attn" for name in LINEARS}
    assert set(graph.linears) == {
        f"model.layers.{layer}.{parents[name]}.{name}" for layer in range(5) for name in LINEARS
    }
    session = LogitsSession(directory, config, graph, num_threads=1)
    token_ids = np.arange(40, dtype=np.int64) % 97
    rows = [
        session.step(token_ids[start:end])["lm_head"]
        for start, end in ((0, 16), (16, 17), (17, 30), (30, 40))
    ]
    (expected,) = reference_logits(target, token_ids.tolist())
    np.testing.assert_allclose(
        np.concatenate(rows), expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5", "qwen3_5_moe_vl"])
def test_logits_of_hybrids_are_hugging_faces(
    build_cpu: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """In chunks of different widths, and of a second text after the first.

    The limit is wide: the rule in other chunks differs by more than other layers do.
    """
    target = tiny_hybrid(tmp_path / name, name)
    drafter = tiny_drafter(tmp_path / "drafter", target)
    directory = build_cpu(target, drafter)
    config, graph = EngineConfig.load(directory), TargetGraph.load(directory / "model.onnx")
    session = LogitsSession(directory, config, graph, num_threads=1)
    for seed, ends in ((0, (16, 17, 30, 40)), (1, (3, 19, 20, 33))):
        session.restart()
        token_ids = np.random.default_rng(seed).integers(0, 97, ends[-1])
        rows = [
            session.step(token_ids[start:end])["lm_head"] for start, end in pairwise((0, *ends))
        ]
        (expected,) = reference_logits(target, token_ids.tolist())
        limit = 2e-4 * float(expected.abs().max())
        np.testing.assert_allclose(np.concatenate(rows), expected.numpy(), rtol=0, atol=limit)


def test_divergence_and_agreement_are_as_torch_has_them(
    engine: Path, other_engine: Path, target: Path, other_target: Path, text_file: Path
) -> None:
    token_ids = ids_of(engine)
    ours, theirs = (
        torch.cat(reference_logits(path, token_ids)).log_softmax(-1)
        for path in (target, other_target)
    )
    kl = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    found = difference(engine, other_engine, text_file)
    assert found.positions == len(token_ids)
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.kl_max == pytest.approx(float(kl.max()), rel=1e-4)
    assert found.top1 == pytest.approx(
        float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    )
    assert found.unmatched == ()
    back = difference(other_engine, engine, text_file)
    assert back.top1 == found.top1
    assert back.kl_mean != pytest.approx(found.kl_mean, rel=1e-2)
    assert (1 + back.perplexity_increase) * (1 + found.perplexity_increase) == pytest.approx(1)


def test_comparison_with_itself_shows_no_difference(engine: Path, text_file: Path) -> None:
    found = difference(engine, engine, text_file)
    assert (found.kl_mean, found.kl_max, found.top1, found.perplexity_increase) == (0, 0, 1, 0)
    assert len(found.linear_errors) == 5 * len(LINEARS) + 1
    assert set(found.linear_errors.values()) == {0}


def test_comparison_with_another_drafter_shows_no_difference(
    engine: Path,
    build_cpu: Callable[..., Path],
    make_drafter: Callable[..., Path],
    target: Path,
    tmp_path: Path,
    text_file: Path,
) -> None:
    """Another cache length, other chunks, drafts from a few rows of the head: the same but for the
    order of sums.
    """
    plain = build_cpu(target, max_num_tokens=7, max_seq_len=90)
    found = difference(plain, engine, text_file)
    allowed = tmp_path / "draft_vocab.json"
    allowed.write_text(json.dumps(list(range(5, 60))))
    narrow = build_cpu(target, make_drafter(target), draft_vocab=str(allowed))
    again = difference(narrow, plain, text_file)
    assert again.unmatched == found.unmatched == ()
    assert again.kl_max < 1e-9
    assert found.kl_max < 1e-9
    assert found.top1 == 1
    assert max(found.linear_errors.values()) < 1e-5


@pytest.mark.parametrize("linear", ["self_attn.v_proj", "mlp.down_proj"])
def test_comparison_shows_a_changed_weight_in_its_linear(
    linear: str,
    engine: Path,
    build_cpu: Callable[..., Path],
    target: Path,
    tmp_path: Path,
    text_file: Path,
) -> None:
    """It is off by just the factor; what comes before it, or has the same input, is not off at
    all.
    """
    changed = f"model.layers.2.{linear}"
    copy = copy_with(target, tmp_path / "changed", f"{changed}.weight", 1.03125)
    errors = difference(build_cpu(copy), engine, text_file).linear_errors
    names = list(errors)
    assert errors[changed] == pytest.approx(0.03125, rel=1e-3)
    assert max(errors[name] for name in names[: names.index(changed)]) < 1e-6
    assert min(errors[name] for name in names[names.index(changed) + 1 :]) > 1e-4
    assert names[-1] == "lm_head"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "nvfp4", "w4a16_nvfp4"])
def test_comparison_of_a_quantized_engine_in_every_linear(
    name: str,
    build_cpu: Callable[..., Path],
    target: Path,
    engine: Path,
    tmp_path: Path,
    text_file: Path,
) -> None:
    quantized = build_cpu(quantized_copy(target, tmp_path / name, name, dtype="F32"))
    found = measured(quantized, text_file, against=engine)
    comparison = found.comparison
    assert comparison is not None
    assert comparison.unmatched == ()
    assert len(comparison.linear_errors) == 5 * len(LINEARS) + 1
    assert min(comparison.linear_errors.values()) > 0.005
    assert 1e-4 < comparison.kl_mean < 5
    assert 0.1 < comparison.top1 < 1
    assert (
        found.engine.weights
        == {"fp8": "FP8", "nvfp4": "NVFP4", "w4a16_nvfp4": "W4A16_NVFP4"}[name]
    )
    assert found.against is not None
    assert found.against.weights == "float32"


def test_comparison_of_engines_of_different_sizes(
    engine: Path,
    build_cpu: Callable[..., Path],
    make_target: Callable[..., Path],
    text_file: Path,
) -> None:
    found = difference(
        build_cpu(make_target("llama", tokenizer=True, num_layers=2)), engine, text_file
    )
    assert len(found.linear_errors) == 2 * len(LINEARS) + 1
    assert len(found.unmatched) == 3 * len(LINEARS)
    assert found.kl_mean > 0


def test_acceptance_length_is_the_mean_of_all_steps(
    engine: Path, other_engine: Path, text_file: Path
) -> None:
    prompts = ("hello", [7, 8, 9], "how are you")
    config = EvaluateConfig(
        engine, against=other_engine, text=text_file, max_tokens=25, num_threads=1
    )
    found = evaluate(config, EvalPrompts("some", prompts, AS_THEY_ARE))
    answers = Engine.load(engine, num_threads=1).generate(
        prompts, max_tokens=25, drafts="dflash"
    )
    lengths = [length for answer in answers for length in answer.acceptance_lengths]
    assert found.engine.acceptance is not None
    assert dataclasses.astuple(found.engine.acceptance) == (
        3,
        3,
        len(lengths),
        sum(lengths),
        np.mean(lengths),
    )
    assert found.against is not None
    assert found.against.acceptance is None  # it has no drafter
    chat = evaluate(config, EvalPrompts("some", prompts)).facts["prompts"]
    assert chat["count"] == 3
    assert chat["token_ids_sha256"] != found.facts["prompts"]["token_ids_sha256"]


def test_acceptance_of_an_engine_that_chooses_is_of_blocks(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own steps depend on times, and a result must not."""
    asked: list[Any] = []
    config = dataclasses.replace(EngineConfig.load(engine), auto_draft_len=True)
    monkeypatch.setattr(EngineConfig, "load", lambda _: config)
    stream = Engine.stream

    def watched(self: Engine, prompts: Any, **options: Any) -> Any:
        asked.append(options["draft_len"])
        return stream(self, prompts, **options)

    monkeypatch.setattr(Engine, "stream", watched)
    options: dict[str, Any] = {"max_tokens": 9, "num_threads": 1}
    found = measure_acceptance(engine, [[3, 4]], progress=ignore_progress, **options)
    assert asked == [found.draft_len] == [3]


def test_text_tokens_cuts_the_text(engine: Path, text_file: Path) -> None:
    found = measured(engine, text_file, text_tokens=WINDOW + 1)
    assert found.facts["text"] | {"tokens": WINDOW, "windows": 1} == found.facts["text"]
    assert found.engine.perplexity != measured(engine, text_file).engine.perplexity
