"""What a tokenizer answers to a few calls, through our `Tokenizer` and through transformers itself.

transformers runs in a process of its own, which is forked for each directory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

TEXTS = (
    "Hello, world!",
    "a  b\n\tc",
    "héllo – 日本語 🙂",
    "<s>x</s>",
    "",
    "<|user|>hi<|assistant|>",
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
IDS = ([72, 105], [256, 72, 257, 105], [0xE6, 0x97, 0xA5], [260, 261, 262], [5], [])


def calls() -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Yield calls of our `Tokenizer`: name, method, argument, options."""
    for text in TEXTS:
        yield f"encode {text}", "encode", text, {"special_tokens": False}
    for ids in IDS:
        for skip in (True, False):
            yield f"decode {ids} {skip}", "decode", ids, {"skip_special_tokens": skip}
    yield "chat", "encode_chat", MESSAGES, {}


def our_answers(directory: Path) -> dict[str, Any]:
    """Return the answer to each call; a refusal in our words is a dict with "error".

    Other exceptions are let through.
    """
    tokenizer = Tokenizer(directory)
    answers: dict[str, Any] = {}
    for name, method, argument, options in calls():
        try:
            answers[name] = getattr(tokenizer, method)(argument, **options)
        except DFlashError as error:
            answers[name] = {"error": str(error)}
    tokenizer.close()
    return answers


class Reference:
    """Asks transformers; use it as a context manager."""

    def __enter__(self) -> Reference:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def answers(self, directory: Path) -> dict[str, Any]:
        """Return transformers' answer to each call; an error is a dict with "error"."""
        self._pipe.send(str(directory))
        answers: dict[str, Any] = json.loads(self._pipe.recv())
        return answers


def _serve(pipe: Any) -> None:
    import transformers
    from transformers import PreTrainedTokenizerFast  # noqa: F401 - before the forks

    transformers.logging.set_verbosity_error()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # panics write there
    with suppress(EOFError):
        while True:
            pipe.send(_in_a_fork(pipe.recv()))


def _in_a_fork(directory: str) -> str:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        with suppress(BaseException), os.fdopen(writing, "w") as file:
            file.write(json.dumps(_reference_answers(directory)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    died = {name: {"error": "the process ended"} for name, *_ in calls()}
    return text or json.dumps(died)


def _reference_answers(directory: str) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, 20)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return {name: {"error": type(error).__name__} for name, *_ in calls()}
    answers: dict[str, Any] = {}

    def note(name: str, function: Any, *arguments: Any, **named: Any) -> None:
        try:
            answers[name] = function(*arguments, **named)
        except BaseException as error:  # noqa: BLE001 - as above
            answers[name] = {"error": type(error).__name__}

    for text in TEXTS:
        note(f"encode {text}", tokenizer.encode, text, add_special_tokens=False)
    for ids in IDS:
        for skip in (True, False):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
            note(f"decode {ids} {skip}", tokenizer.decode, ids, **options)
    rendered = {"tokenize": False, "add_generation_prompt": True}
    note("chat", tokenizer.apply_chat_template, MESSAGES, **rendered)
    chat = answers["chat"]
    if isinstance(chat, str):
        note("chat", tokenizer.encode, chat, add_special_tokens=False)
    return answers
