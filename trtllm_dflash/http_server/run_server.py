"""From options to a running server, and to its end."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import uvicorn

from trtllm_dflash.errors import EngineError, OutputError
from trtllm_dflash.http_server.app import create_app
from trtllm_dflash.http_server.asking import Defaults
from trtllm_dflash.http_server.guards import Rules
from trtllm_dflash.http_server.scrape import Scrape
from trtllm_dflash.http_server.served_model import ServedModel
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.serving import ServeConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions.load_times import LoadTimes
from trtllm_dflash.runtime.warm_up import warm_up

_LOG = logging.getLogger(__name__)
_MAX_CONNECTIONS = 4096
_SECONDS_TO_WRITE = 5  # after the last answer has ended
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_server(config: ServeConfig) -> None:
    """Load the engines, warm them up, serve them until a signal, and let running answers end.

    Raises:
        OutputError: for an address that is taken or not this machine's.
        EngineError: for an engine that cannot be served.
    """
    with _bound_socket(config) as listener:
        scrape = Scrape()
        models = _load_all(config, scrape)
        try:
            app = create_app(
                models,
                scrape,
                defaults=Defaults(
                    temperature=config.temperature,
                    timeout_seconds=config.timeout_seconds,
                    follows_checkpoint=config.generation_config == "auto",
                ),
                rules=Rules(
                    api_key=config.api_key,
                    local=config.is_loopback,
                    max_body_bytes=config.max_body_mib << 20,
                ),
                cors_origins=config.cors_origin,
            )
            server = _Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    lifespan="off",
                    ws="none",
                    limit_concurrency=_MAX_CONNECTIONS,
                    timeout_graceful_shutdown=config.drain_seconds + _SECONDS_TO_WRITE,
                ),
                set(models.values()),
                config.drain_seconds,
            )
            click.echo(_banner(config, listener, list(models)))
            asyncio.run(server.serve_until_signal(listener))
        finally:
            for model in set(models.values()):
                model.close()


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals let answers end and leave the exit code alone."""

    def __init__(
        self, config: uvicorn.Config, models: set[ServedModel], drain_seconds: int
    ) -> None:
        super().__init__(config)
        self._models = models
        self._drain_seconds = drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: they are the loop's (uvicorn would raise them again at the end)."""
        yield

    async def serve_until_signal(self, listener: socket.socket) -> None:
        """Serve; the first signal begins the end, and a second one ends running answers."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self.serve(sockets=[listener])
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.should_exit:
            for model in self._models:
                model.cancel_all()
            return
        click.echo("ending; running answers may end first. Once more ends them.", err=True)
        self.should_exit = True
        for model in self._models:
            drain = threading.Thread(
                target=model.close, kwargs={"drain_seconds": self._drain_seconds}
            )
            drain.start()


@contextmanager
def _bound_socket(config: ServeConfig) -> Iterator[socket.socket]:
    """Bind the address before anything is loaded; it takes connections when all is ready."""
    host = config.host.strip("[]")
    try:
        family = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, config.port))
    except (OSError, ValueError) as error:  # a name that no address can have is a UnicodeError
        reason = getattr(error, "strerror", None) or "it is no host's name"
        raise OutputError(
            f"--host {shown(config.host)} --port {config.port}: cannot be listened to ({reason})."
            " Give another --port, or --port 0 for any free one."
        ) from error
    with listener:
        yield listener


def _load_all(config: ServeConfig, scrape: Scrape) -> dict[str, ServedModel]:
    """Return the models by name; two names of one engine share it."""
    models: dict[str, ServedModel] = {}
    by_path: dict[Path, ServedModel] = {}
    try:
        for name, path in config.named_engines().items():
            if path not in by_path:
                by_path[path] = _load(name, path, config, scrape)
            models[name] = by_path[path]
    except BaseException:
        for model in by_path.values():
            model.close()
        raise
    return models


def _load(name: str, path: Path, config: ServeConfig, scrape: Scrape) -> ServedModel:
    times = LoadTimes()
    with times.part("engine"):
        engine = Engine.load(
            path, num_threads=config.num_threads, prefix_cache_mib=config.prefix_cache_mib
        )
    try:
        if engine.tokenizer is None:
            raise EngineError(f"{path}: no tokenizer.json, and requests are text.")
        warm_up(engine, times)
        facts = f"{engine.config.gpu_arch}, {engine.config.formats}"
        click.echo(f"engine: {path} ({facts}), ready in {times}", err=True)
        return ServedModel(
            name,
            engine,
            scrape.of_model(name),
            max_waiting=config.max_waiting,
            prompt_tokens_per_step=config.prompt_tokens_per_step,
        )
    except BaseException:
        engine.close()
        raise


def _banner(config: ServeConfig, listener: socket.socket, names: list[str]) -> str:
    """Return what stands in the first lines: the address, a line that works, the page."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    shown_host = f"[{host}]" if ":" in host else host
    url = f"http://{shown_host}:{port}"
    key = ' -H "Authorization: Bearer $DFLASH_API_KEY"' if config.api_key else ""
    data = _example(names[0])
    return (
        f"serving {', '.join(names)} at {url}/v1\n"
        f"  try:  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json'"
        f" -d {shlex.quote(data)}\n"
        f"  page: {url}/"
    )


def _example(name: str) -> str:
    message = '{"role": "user", "content": "Name three fruits."}'
    return f'{{"model": "{name}", "messages": [{message}], "max_tokens": 64, "stream": true}}'
