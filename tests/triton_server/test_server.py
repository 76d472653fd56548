"""Requests to the real server: every input has its effect, every wrong one its words."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import DEMO
from tests.fixtures.tiny_models import EOS_ID
from tests.patience import PATIENCE, wait_for
from tests.triton_server.client import Client
from tests.triton_server.conftest import local_server
from trtllm_dflash.cli import main
from trtllm_dflash.runtime.engine import Engine

pytestmark = pytest.mark.slow

PROMPT = "The quick brown fox"
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "top_k": 20, "seed": 7}


def answer(oracle: Engine, prompt: str = PROMPT, **options: Any) -> Any:
    (generation,) = oracle.generate([prompt], **options)
    return generation


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_response_and_stream_equal_run(
    client: Client, oracle: Engine, sampling: dict[str, Any]
) -> None:
    expected = answer(oracle, max_tokens=50, **sampling)
    whole = client.generate("tiny", text_input=PROMPT, max_tokens=50, **sampling)
    stream = client.stream(
        "tiny", text_input=PROMPT, max_tokens=50, return_num_output_tokens=True, **sampling
    )
    assert whole.status == stream.status == 200
    assert whole.text == stream.text == expected.text
    assert len(stream.responses) > 2
    assert sum(response["num_output_tokens"] for response in stream.responses) == len(
        expected.token_ids
    )
    drafts = 3 * len(expected.acceptance_lengths)
    accepted = sum(expected.acceptance_lengths) - len(expected.acceptance_lengths)
    for last in (whole.last, stream.last):
        assert last["finish_reason"] == expected.finish_reason
        assert (last["total_draft_tokens"], last["total_accepted_draft_tokens"]) == (
            drafts,
            accepted,
        )
        assert last["acceptance_rate"] == pytest.approx(accepted / drafts)
    assert all("finish_reason" not in response for response in stream.responses[:-1])


@pytest.mark.demo
def test_demo_pair_equals_run(client: Client) -> None:
    question = "Name three fruits."
    shown = CliRunner().invoke(main, ["run", str(DEMO / "cpu"), question, "--max-tokens", "16"])
    assert client.load("demo").status == 200
    try:
        whole = client.generate("demo", text_input=question, chat=True, max_tokens=16)
        stream = client.stream("demo", text_input=question, chat=True, max_tokens=16)
        poem = client.stream("demo", text_input="Write: ☕ 日本 👋🏽", chat=True, max_tokens=16)
    finally:
        client.unload("demo")
    assert whole.text == stream.text == shown.stdout.removesuffix("\n")
    assert whole.last["acceptance_rate"] > 0.2
    assert any(ord(character) > 0xFF for character in poem.text), (
        "nothing that could have been cut"
    )
    assert all("\ufffd" not in response["text_output"] for response in poem.responses[:-1])


def test_inputs_have_their_effects(client: Client, oracle: Engine) -> None:
    full = answer(oracle, max_tokens=40, stop_token_ids=[])

    def text_of(**inputs: Any) -> str:
        return client.generate(
            "tiny", **{"text_input": PROMPT, "max_tokens": 40, "ignore_eos": True} | inputs
        ).text

    assert text_of() == full.text
    assert text_of(max_tokens=7) == answer(oracle, max_tokens=7, stop_token_ids=[]).text
    assert text_of(exclude_input_in_output=False) == PROMPT + full.text
    word = full.text[12:14]
    assert text_of(stop_words=[word, "no such words"]) == full.text[: full.text.index(word)]
    stop = full.token_ids[9]
    until = full.token_ids.index(stop) + 1
    assert oracle.tokenizer is not None
    assert text_of(stop_token_ids=[stop]) == oracle.tokenizer.decode(full.token_ids[:until])
    sampled = {"temperature": 1.3, "seed": 3}
    for change in ({}, {"seed": 4}, {"top_k": 2}, {"top_p": 0.2}, {"temperature": 0.4}):
        options = sampled | change
        assert (
            text_of(**options)
            == answer(oracle, max_tokens=40, stop_token_ids=[], **options).text
        )
    chat = oracle.tokenizer.encode_chat(PROMPT)  # type: ignore[union-attr]
    assert (
        text_of(chat=True) == oracle.generate([chat], max_tokens=40, stop_token_ids=[])[0].text
    )


def test_draft_counts_add_up(client: Client, oracle: Engine) -> None:
    inputs = {"text_input": PROMPT, "max_tokens": 30, "ignore_eos": True}
    expected = answer(oracle, max_tokens=30, stop_token_ids=[]).text
    off = client.generate("tiny", draft=False, **inputs)
    short = client.generate(
        "tiny",
        draft_len=1,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
        **inputs,
    )
    assert off.text == short.text == expected
    assert (off.last["total_draft_tokens"], off.last["acceptance_rate"]) == (0, 0)
    alone = answer(oracle, max_tokens=30, stop_token_ids=[], draft_len=1)
    assert short.last["total_draft_tokens"] == len(alone.acceptance_lengths)
    assert (short.last["num_input_tokens"], short.last["num_output_tokens"]) == (
        len(PROMPT),
        30,
    )
    assert "num_input_tokens" not in off.last


def test_model_stop_tokens_end_an_answer(client: Client, oracle: Engine) -> None:
    """A seed whose sampled answer meets the stop token, and whether it counts."""
    options = {"temperature": 1.5, "max_tokens": 200}
    seed, ended = next(
        (seed, found)
        for seed in range(50)
        if (found := answer(oracle, seed=seed, **options)).finish_reason == "stop"
    )
    assert ended.token_ids[-1] == EOS_ID
    inputs = {"text_input": PROMPT, "max_tokens": 200, "temperature": 1.5, "seed": seed}
    stopped = client.generate("tiny", **inputs)
    assert (stopped.text, stopped.last["finish_reason"]) == (ended.text, "stop")
    assert client.generate("tiny", stop_token_ids=[5], **inputs).last["finish_reason"] == "stop"
    assert client.generate("tiny", ignore_eos=True, **inputs).last["finish_reason"] == "length"


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"temperature": -1.0},
        "temperature is -1.0, expected 0 (greedy) or a finite positive number",
    ),
    ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0 and at most 1"),
    ({"top_k": -3}, "top_k is -3, expected an integer of at least 0"),
    ({"max_tokens": 0}, "max_tokens is 0, expected an integer of at least 1"),
    ({"max_tokens": -(2**31)}, "max_tokens is -2147483648"),
    ({"draft_len": 4}, "draft_len is 4, and this engine takes 0 to 3"),
    ({"draft": False, "draft_len": 1}, "give either draft: false or draft_len, not both"),
    ({"stop_words": [""]}, "stop_words holds '', expected texts that are not empty"),
    ({"stop_token_ids": [-1]}, "stop_token_ids is -1"),
    (
        {"frequency_penalty": 101.0},
        "frequency_penalty is 101.0, expected a number from -100 to",
    ),
    (
        {"repetition_penalty": 0.0},
        "repetition_penalty is 0.0, expected a finite number above 0",
    ),
    ({"text_input": ""}, "the prompt is empty: there is no token to continue from"),
    (
        {"text_input": "x" * 1501},
        "the prompt has 1501 tokens, and prompts of this engine hold at most 1500",
    ),
]


@pytest.mark.parametrize(
    ("inputs", "words"), WRONG, ids=[next(reversed(inputs)) for inputs, _ in WRONG]
)
def test_wrong_inputs_are_refused(client: Client, inputs: dict[str, Any], words: str) -> None:
    for ask in (client.generate, client.stream):
        reply = ask("tiny", **{"text_input": PROMPT} | inputs)
        assert reply.status == 400
        assert words in reply.error
    assert client.generate("tiny", text_input=PROMPT, max_tokens=3).status == 200


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("max_token", 5, "max_tokens"),
        ("temprature", 1.5, "temperature"),
        ("stop", "x", "stop_words"),
        ("repetition_penality", 1.5, "repetition_penalty"),
        ("parameters", {"top-p": 0.5}, "top_p"),
    ],
)
def test_unknown_keys_are_refused(client: Client, key: str, value: object, near: str) -> None:
    """JSON keys that are no inputs; each is one failure."""
    failed = "dflash_failed_requests_total"
    before = client.settled_metrics("tiny")[failed]
    for ask in (client.generate, client.stream):
        reply = ask("tiny", text_input=PROMPT, **{key: value})
        assert reply.status == 400
        assert f"is not an input of this model; did you mean {near}?" in reply.error
    wait_for(lambda: client.metrics("tiny")[failed] == before + 2)


def test_names_of_tensorrt_llm_are_taken(client: Client, oracle: Engine) -> None:
    sampled = answer(oracle, max_tokens=12, temperature=1.5, seed=7).text
    reply = client.generate(
        "tiny",
        text_input=PROMPT,
        max_new_tokens=12,
        temperature=1.5,
        random_seed=7,
        end_id=EOS_ID,
        beam_width=1,
        bad_words=[""],
    )
    assert (reply.error, reply.text) == ("", sampled)
    (word,) = answer(oracle, max_tokens=1).text.split()[:1] or ("a",)
    expected = answer(oracle, max_tokens=12, bad_words=[word]).text
    reply = client.generate("tiny", text_input=PROMPT, max_tokens=12, bad_words=[word])
    assert (reply.error, reply.text) == ("", expected)


def test_metrics_add_up(client: Client) -> None:
    before = client.settled_metrics("tiny")
    replies = [
        client.stream("tiny", text_input=PROMPT, max_tokens=20, ignore_eos=True)
        for _ in range(3)
    ]
    client.generate("tiny", text_input="")

    def gained() -> dict[str, float]:
        return {name: value - before[name] for name, value in client.metrics("tiny").items()}

    wait_for(
        lambda: (
            gained()["dflash_requests_total"] == 3
            and gained()["dflash_failed_requests_total"] == 1
        )
    )
    now = gained()
    assert now["dflash_input_tokens_total"] == 3 * len(PROMPT)
    assert now["dflash_output_tokens_total"] == 60
    assert now["dflash_later_tokens_total"] == 57
    assert now["dflash_first_tokens_total"] == 3
    assert now["dflash_draft_proposed_total"] == sum(
        reply.last["total_draft_tokens"] for reply in replies
    )
    assert now["dflash_draft_accepted_total"] == sum(
        reply.last["total_accepted_draft_tokens"] for reply in replies
    )
    assert 0 < now["dflash_queue_seconds_total"] < now["dflash_first_token_seconds_total"]
    assert now["dflash_later_token_seconds_total"] > 0
    for name in ("queue_time", "time_to_first_token", "time_per_output_token"):
        assert now[f"dflash_{name}_seconds_count"] == 3
        assert now[f"dflash_{name}_seconds_bucket"] == 3  # the last one holds all
    shown = client.metrics("tiny")
    assert shown["dflash_ready"] == 1
    tau = 1 + shown["dflash_draft_accepted_total"] / shown["dflash_steps_total"]
    assert shown["dflash_tokens_per_step"] == pytest.approx(tau)
    assert (shown["dflash_slots"], shown["dflash_cache_positions"]) == (8, 8 * 2000)


def test_grpc_streams_as_the_openai_frontend_sends_them(
    server: Any, client: Client, oracle: Engine
) -> None:
    """The tensors of Triton's OpenAI frontend, [1, 1] each; one response or a stream, usage that
    adds up.
    """
    frontend = {
        "max_tokens": 30,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "temperature": 0.7,
        "seed": 5,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    prompts = [PROMPT, "Hello", "a" * 90]
    frontend["stop_words"] = ["</s>", "\n"]
    requests = []
    for prompt in prompts:
        for stream in (True, False):
            inputs = frontend | {"text_input": prompt, "stream": stream}
            requests.append({"model": "tiny", "inputs": inputs})
    results = ask_by_grpc(server, requests)
    for prompt, pair in zip(
        prompts, zip(results[::2], results[1::2], strict=True), strict=True
    ):
        expected = answer(oracle, prompt, max_tokens=30, temperature=0.7, seed=5)
        for result in pair:
            assert result["error"] is None
            assert (
                "".join(response["text_output"] for response in result["responses"])
                == expected.text
            )
            assert sum(
                response["num_output_tokens"] for response in result["responses"]
            ) == len(expected.token_ids)
            assert {response["num_input_tokens"] for response in result["responses"]} == {
                len(prompt)
            }
            assert result["final"] == [False] * (len(result["final"]) - 1) + [True]
        assert len(pair[1]["responses"]) == 1


def test_grpc_errors_and_cancellation(server: Any, client: Client, oracle: Engine) -> None:
    endless = {"text_input": PROMPT, "max_tokens": 1900, "stream": True, "ignore_eos": True}
    before = client.settled_metrics("tiny")["dflash_cancelled_requests_total"]
    wrong, unknown, named, cancelled = ask_by_grpc(
        server,
        [
            {"model": "tiny", "inputs": {"text_input": PROMPT, "temperature": -1.0}},
            {"model": "tiny", "inputs": {"text_input": PROMPT}, "parameters": {"max_token": 5}},
            {
                "model": "tiny",
                "inputs": {"text_input": PROMPT},
                "parameters": {"max_tokens": 5},
            },
            {"model": "tiny", "inputs": endless, "cancel_after": 3},
        ],
    )
    assert "temperature is -1.0, expected 0 (greedy)" in wrong["error"]
    assert (
        "max_token is not an input of this model; did you mean max_tokens?"
        in (unknown["error"])
    )
    (whole,) = named["responses"]
    assert whole["text_output"] == answer(oracle, max_tokens=5).text
    assert len(cancelled["responses"]) == 3
    wait_for(lambda: client.metrics("tiny")["dflash_cancelled_requests_total"] == before + 1)


def ask_by_grpc(server: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    python, script = local_server.VENV / "bin" / "python", "tests/triton_server/grpc_client.py"
    command = [str(python), script, f"127.0.0.1:{server.grpc}"]
    done = subprocess.run(
        command,
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=local_server.ROOT,
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results
