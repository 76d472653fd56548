"""A server of this process, on a free port, in a thread."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn

from tests.patience import PATIENCE, wait_for
from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.http_server.app import create_app
from trtllm_dflash.http_server.asking import Defaults
from trtllm_dflash.http_server.guards import Rules
from trtllm_dflash.http_server.scrape import Scrape
from trtllm_dflash.http_server.served_model import ServedModel
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer


def engine_of_bytes(tokenizer: Path, **sizes: Any) -> Engine:
    """Return an engine on a fake session whose tokens are bytes."""
    roomy = {"max_input_len": 150, "max_seq_len": 240} | sizes
    config = fake_config(vocab_size=tiny.VOCAB_SIZE, **roomy)
    return Engine(config, FakeSession(config), Tokenizer(tokenizer))


class Running:
    """Serves engines by name until its block is left; every slot must be free then."""

    def __init__(self, engines: dict[str, Engine], **options: Any) -> None:
        self.scrape = Scrape()
        waiting = options.pop("max_waiting", 128)
        self.models = {
            name: ServedModel(name, engine, self.scrape.of_model(name), max_waiting=waiting)
            for name, engine in engines.items()
        }
        rules = Rules(
            api_key=options.pop("api_key", None),
            local=options.pop("local", True),
            max_body_bytes=options.pop("max_body_bytes", 1 << 20),
        )
        defaults = Defaults(
            temperature=options.pop("temperature", 0.0),
            timeout_seconds=options.pop("timeout_seconds", None),
            follows_checkpoint=options.pop("follows_checkpoint", True),
        )
        app = create_app(self.models, self.scrape, defaults=defaults, rules=rules, **options)
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none")
        )
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Running:
        self._thread.start()
        wait_for(lambda: self._server.started)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        try:
            if error is None:
                for model in self.models.values():
                    wait_for(lambda model=model: model.stats.slots_in_use == 0)
        finally:
            self._server.should_exit = True
            self._thread.join()
            for model in self.models.values():
                model.close()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def chat(self, text: str = "hi", **body: Any) -> httpx.Response:
        """Ask the first model; a body's fields may replace the messages."""
        messages = [{"role": "user", "content": text}]
        name = next(iter(self.models))
        return self.post(
            "/v1/chat/completions", **{"model": name, "messages": messages, **body}
        )

    def complete(self, prompt: Any = "ab", **body: Any) -> httpx.Response:
        name = next(iter(self.models))
        return self.post("/v1/completions", **{"model": name, "prompt": prompt, **body})
