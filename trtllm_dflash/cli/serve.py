"""dflash-trt serve: engines behind an endpoint of OpenAI's form, and a page to try them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from trtllm_dflash.cli.options import ParsedText, options_from
from trtllm_dflash.errors import UsageError, install_command
from trtllm_dflash.options.checks import typed_text
from trtllm_dflash.options.serving import API_KEY_VARIABLE, ServeConfig

_PACKAGES = {"fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"}


@click.command(short_help="Serve engines to OpenAI's clients, and a page to try them.")
@click.argument("engines", nargs=-1, type=ParsedText(typed_text), metavar="[[NAME=]ENGINE]...")
@options_from(ServeConfig)
def serve(engines: tuple[str, ...], **options: Any) -> None:
    """Serve each ENGINE directory over HTTP, as OpenAI's clients call it, until Ctrl-C.

    Several are told apart by their names. Without an ENGINE, the newest one under engines/ is taken
    that this machine can run, else the demo's.
    """
    if options["api_key"] is None:
        options["api_key"] = os.environ.get(API_KEY_VARIABLE) or None
    config = ServeConfig(engines=engines, **options)
    try:
        from trtllm_dflash.http_server.run_server import run_server
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise UsageError(
            f"serve needs the package {error.name}: {install_command('serve')}."
        ) from error
    if not config.engines:
        from trtllm_dflash.cli.default_engine import find_engine

        config = replace(config, engines=(str(find_engine()),))
    run_server(config)
