"""The first use of an engine and its tokenizer, before anybody waits for it."""

from __future__ import annotations

from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions.load_times import LoadTimes


def warm_up(engine: Engine, times: LoadTimes) -> None:
    """Read the tokenizer's files and run a step of each type; `times` gets how long it took."""
    if engine.tokenizer is not None:
        with times.part("tokenizer"):
            engine.tokenizer.decode(engine.tokenizer.encode("ready"))
    with times.part("first steps"):
        engine.generate([[0]], max_tokens=2, stop_token_ids=())
