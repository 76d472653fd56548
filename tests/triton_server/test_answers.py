"""What answers carry besides text, on the real server: samples, seeds, log probabilities."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.patience import wait_for
from tests.triton_server.client import Client
from trtllm_dflash.runtime.engine import Engine

pytestmark = pytest.mark.slow

PROMPT = "The quick brown fox"
SAMPLED: dict[str, Any] = {"temperature": 1.3, "max_tokens": 20}


def test_fresh_seed_is_reported_and_repeats(client: Client) -> None:
    answers = [client.generate("tiny", text_input=PROMPT, **SAMPLED) for _ in range(4)]
    assert len({reply.text for reply in answers}) > 1
    for reply in answers:
        seed = reply.last["seed"]
        again = client.stream("tiny", text_input=PROMPT, seed=seed, **SAMPLED)
        assert again.text == reply.text
        assert again.last["seed"] == seed
    assert "seed" not in client.generate("tiny", text_input=PROMPT, max_tokens=2).last


def test_n_answers_come_together_or_as_a_stream(client: Client) -> None:
    inputs = {"text_input": PROMPT, "n": 3, "seed": 5, **SAMPLED}
    whole = client.generate("tiny", return_num_output_tokens=True, **inputs)
    assert whole.last["sample_index"] == [0, 1, 2]
    texts = whole.last["text_output"]
    assert len(set(texts)) > 1
    assert len(whole.last["num_output_tokens"]) == 3
    stream = client.stream("tiny", **inputs)
    parts = ["", "", ""]
    for response in stream.responses:
        parts[response["sample_index"]] += response["text_output"]
    assert parts == texts
    ends = [response for response in stream.responses if "finish_reason" in response]
    assert sorted(end["sample_index"] for end in ends) == [0, 1, 2]
    for index, seed in enumerate(whole.last["seed"]):
        alone = client.generate("tiny", text_input=PROMPT, seed=seed, **SAMPLED)
        assert alone.text == texts[index]


def test_logprobs_are_those_of_python(client: Client, oracle: Engine) -> None:
    (expected,) = oracle.generate([PROMPT], max_tokens=6, logprobs=2)
    inputs = {"text_input": PROMPT, "max_tokens": 6, "logprobs": 2}
    assert expected.logprobs is not None
    for reply in (client.generate("tiny", **inputs), client.stream("tiny", **inputs)):
        rows = [row for response in reply.responses for row in json.loads(response["logprobs"])]
        assert [row["token_id"] for row in rows] == expected.token_ids
        for row, entry in zip(rows, expected.logprobs, strict=True):
            assert row["logprob"] == pytest.approx(entry.logprob, abs=1e-4)
            assert [token for token, _ in row["top"]] == [token for token, _ in entry.top]


def test_conversation_equals_python(client: Client, oracle: Engine) -> None:
    assert oracle.tokenizer is not None
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "ab"}]
    ids = oracle.tokenizer.encode_chat(messages)
    (expected,) = oracle.generate([ids], max_tokens=9)
    given = (
        {"messages": json.dumps(messages)},
        {"text_input": "ab", "system": "Be."},
        {"messages": json.dumps(messages[1:]), "system": "Be."},
    )
    for inputs in given:
        assert client.generate("tiny", max_tokens=9, **inputs).text == expected.text
    wrong = client.generate("tiny", messages='["ab"]')
    assert wrong.status == 400
    assert "message" in wrong.error


SPECIAL_MODEL = """
import threading
import time
from pathlib import Path
from trtllm_dflash.triton_server.model import TritonPythonModel as Model


class TritonPythonModel(Model):
    def initialize(self, args):
        super().initialize(args)
        thread = self._server._engine_thread
        sweep, chat = thread._sweep, self._tokenizer.encode_chat
        folder = Path(__file__).parent
        self._dies = threading.Event()

        def dies():
            if self._dies.is_set():
                raise MemoryError("no more of it")
            sweep()

        def slow(messages, **options):
            if messages[0]["content"] == "die":
                self._dies.set()
                threading.Event().wait(2.0)
            (folder / "begun").touch()
            while messages[0]["content"] != "die" and not (folder / "go on").exists():
                time.sleep(0.01)
            return chat(messages, **options)

        thread._sweep = dies
        self._tokenizer.encode_chat = slow
"""


@pytest.fixture
def special(client: Client, repository: Path) -> Iterator[Path]:
    """Serve a model whose chats are slow, and whose engine thread can be made to die."""
    model = shutil.copytree(repository / "tiny", repository / "special")
    config = (model / "config.pbtxt").read_text().replace('"tiny"', '"special"')
    (model / "config.pbtxt").write_text(config)
    (model / "1" / "model.py").write_text(SPECIAL_MODEL)
    assert client.load("special").status == 200
    yield model
    client.unload("special")
    shutil.rmtree(model)


def test_slow_chats_make_only_chats_wait(client: Client, special: Path, oracle: Engine) -> None:
    (expected,) = oracle.generate(["ab"], max_tokens=3)
    with ThreadPoolExecutor(4) as pool:
        chats = [
            pool.submit(client.generate, "special", text_input="ab", chat=True, max_tokens=3)
            for _ in range(3)
        ]
        wait_for((special / "1" / "begun").exists)
        plain = client.generate("special", text_input="ab", max_tokens=3)
        assert not any(chat.done() for chat in chats)
        (special / "1" / "go on").touch()
        assert plain.text == expected.text
        assert {chat.result().status for chat in chats} == {200}


def test_model_without_engine_thread_is_not_ready(client: Client, special: Path) -> None:
    """Its requests end in words, and the server takes it out of service."""
    assert client.is_ready("special")
    reply = client.stream("special", text_input="die", chat=True, max_tokens=50)
    assert reply.error
    assert "Traceback" not in reply.error
    wait_for(lambda: not client.is_ready("special"))
    assert client.generate("tiny", text_input="ab", max_tokens=2).status == 200
    wait_for(lambda: client.load("special").status == 200)
    assert client.generate("special", text_input="ab", max_tokens=2).status == 200
