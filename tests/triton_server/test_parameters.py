"""Request parameters, TensorRT-LLM's names, and what becomes of any exception: without a server."""

from __future__ import annotations

import logging
import subprocess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.metric_table import METRICS
from trtllm_dflash.runtime.outputs import EngineStats, FinishInfo
from trtllm_dflash.triton_server.io_table import ALL_INPUTS, INPUTS, TENSORRT_LLM_INPUTS
from trtllm_dflash.triton_server.metrics import Metrics
from trtllm_dflash.triton_server.model import TritonPythonModel
from trtllm_dflash.triton_server.model_control import unloads_on_demand
from trtllm_dflash.triton_server.parameters import nearest_input
from trtllm_dflash.triton_server.request import GenerationRequest

EOS = (95, 7)
TEXT = {"text_input": np.array([[b"hi"]], np.object_)}


def read(**parameters: Any) -> GenerationRequest:
    """Read a request of one text, with parameters."""
    return GenerationRequest.from_tensors(TEXT, EOS, parameters)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_token", "max_tokens"),
        ("temprature", "temperature"),
        ("topP", "top_p"),
        ("top-p", "top_p"),
        ("Max-Tokens", "max_tokens"),
        ("sampling_param_max_tokens", "max_tokens"),
        ("stop", "stop_words"),
        ("prompt", "text_input"),
        ("service_tier", None),
        ("", None),
    ],
)
def test_unknown_parameter_is_refused(name: str, near: str | None) -> None:
    """By name, with the nearest known one, and with all of them."""
    assert nearest_input(name) == near
    with pytest.raises(UsageError) as error:
        read(**{name: 1})
    text = str(error.value)
    assert text.startswith(f"{name} is not an input of this model")
    assert (f"; did you mean {near}?" in text) is (near is not None)
    assert all(field.name in text for field in INPUTS)


@pytest.mark.parametrize("name", ["max_tokens" * 100_000, "max\ntokens"])
def test_an_odd_name_is_one_short_line(name: str) -> None:
    with pytest.raises(UsageError, match=r"^'max.{,130}' is not an input|^'max.{,130}… is not"):
        read(**{name: 1})


def test_parameters_of_triton_pass() -> None:
    given = {
        "triton_enable_empty_final_response": True,
        "sequence_id": 4,
        "timeout": 5,
        "id": "7",
        "binary_data_output": True,
        "headers": "x",
        "User-Agent": "curl",
        "content-length": "12",
        "Host": "localhost",
        "x-request-id": "9",
    }
    assert read(**given) == read()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
        ({"random_seed": 7}, {"seed": 7, "temperature": 0.0}),
        (
            {"runtime_top_p": 0.5, "runtime_top_k": 3, "temperature": 0},
            {"top_p": 0.5, "top_k": 3, "temperature": 0.0},
        ),
        ({"min_length": 2}, {"min_tokens": 2}),
        ({"return_log_probs": True}, {"logprobs": 0}),
        ({"return_log_probs": False}, {}),
        ({"end_id": 95, "pad_id": 0, "beam_width": 1}, {}),
        ({"end_id": -1}, {"stop_token_ids": ()}),
        ({"seed": 3, "random_seed": 3}, {"seed": 3, "temperature": 0.0}),
        ({"bad_words": "", "early_stopping": False}, {}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"temperature": 1}, {"temperature": 1.0}),
    ],
)
def test_names_of_tensorrt_llm_have_their_meaning(
    given: dict[str, Any], options: dict[str, Any]
) -> None:
    assert read(**given).options == options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"end_id": 5}, "end_id is 5, and this model's own stop tokens are 95, 7. Send stop_"),
        ({"beam_width": 4}, "beam_width is 4, and this model takes only 1"),
        ({"bad_words": "x" * 300}, "bad_words holds a text of 300 characters"),
        (
            {"repetition_penalty": 0},
            "repetition_penalty is 0.0, expected a finite number above 0",
        ),
        ({"return_context_logits": True}, "takes only false"),
        ({"seed": 3, "random_seed": 4}, "seed is given twice, under two names"),
        ({"max_tokens": "5"}, "max_tokens is '5', expected an integer"),
        ({"max_tokens": True}, "max_tokens is True, expected an integer"),
        ({"max_tokens": 5.0}, "max_tokens is 5.0, expected an integer"),
        ({"stream": 1}, "stream is 1, expected true or false"),
        ({"stop_words": 1}, "stop_words is 1, expected a text"),
        ({"text_input": "x"}, "text_input is both an input and a parameter"),
        ({"top_p": 0.5}, "top_p has no effect without temperature: send it as well"),
        ({"top_k": 3, "n": 2}, "top_k and n have no effect without temperature"),
        ({"n": 0, "temperature": 1.0}, "n is 0, expected an integer from 1"),
        ({"logprobs": 21}, "logprobs is 21, expected an integer from 0 to 20"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9, more than max_tokens"),
    ],
)
def test_wish_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(**given)


def test_aliases_are_of_inputs() -> None:
    for field in TENSORRT_LLM_INPUTS:
        if field.alias_of is not None:
            own = ALL_INPUTS[field.alias_of]
            assert (field.dtype, field.size) == (own.dtype, own.size)
    assert len(ALL_INPUTS) == len(INPUTS) + len(TENSORRT_LLM_INPUTS)


class Recorder:
    """Triton's module of utilities, as far as metrics go: it keeps what they get."""

    def __init__(self) -> None:
        values: dict[str, list[float]] = {}
        self.values = values

        class Family:
            COUNTER, GAUGE, HISTOGRAM = range(3)

            def __init__(self, name: str, **_: Any) -> None:
                self.name = name

            def Metric(self, **_: Any) -> Any:  # noqa: N802
                seen = values.setdefault(self.name, [])
                return SimpleNamespace(
                    increment=seen.append, set=seen.append, observe=seen.append
                )

        self.MetricFamily = Family


def test_histograms_observe_each_answer_once() -> None:
    triton = Recorder()
    metrics = Metrics(triton, {})
    stats = EngineStats(0, 1, 0, 10, 0)
    metrics.add(FinishInfo("stop", 3, 5, 2, 6, 2, 0.25, 0.5, 2.5))
    metrics.add(FinishInfo("cancelled", 3, 0, 0, 0, 0, 0.75, None, 0.75))
    metrics.publish(stats)
    metrics.publish(stats, ready=False)
    assert triton.values["dflash_queue_time_seconds"] == [0.25, 0.75]
    assert triton.values["dflash_time_to_first_token_seconds"] == [0.5]
    assert triton.values["dflash_time_per_output_token_seconds"] == [0.5]
    assert triton.values["dflash_ready"] == [1.0, 0.0]
    for metric in METRICS:
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.observes is not None)


@pytest.mark.parametrize(
    ("words", "unloads"),
    [
        (("--model-control-mode=explicit",), True),
        (("--model-control-mode", "explicit"), True),
        (("--model-control-mode=poll",), False),
        (("explicit",), False),
        ((), False),
    ],
)
def test_model_knows_if_its_server_unloads(words: tuple[str, ...], unloads: bool) -> None:
    """From the command line of the server, or of one above it."""
    command = ["sh", "-c", "echo up; read _", "sh", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert unloads_on_demand(server.pid) is unloads


def test_any_exception_is_told_in_words(caplog: pytest.LogCaptureFixture) -> None:
    """One client gets our words, the log the traceback, and the failure is counted once."""
    sent: list[Any] = []
    failures: list[int] = []
    model = TritonPythonModel()
    model._triton = SimpleNamespace(
        TritonError=type("Error", (), {"INTERNAL": 1, "__new__": lambda _, *given: given}),
        InferenceResponse=lambda error: error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    metrics: Any = SimpleNamespace(add_failure=lambda _: failures.append(1))
    model._metrics = metrics

    def broken() -> Any:
        raise SystemExit("a panic at /secret/path")

    sender = SimpleNamespace(send=lambda response, flags: sent.append((response, flags)))
    good = SimpleNamespace(get_response_sender=lambda: sender, inputs=broken)
    bad = SimpleNamespace(get_response_sender=broken)
    with caplog.at_level(logging.ERROR):
        model.execute([bad, good])
    (((text, code), flags),) = sent
    assert text == "this request failed inside the server (SystemExit); its log says where."
    assert (code, flags, failures) == (1, 1, [1])
    assert "a panic at /secret/path" in caplog.text
