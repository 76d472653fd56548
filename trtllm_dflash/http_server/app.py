"""The HTTP application: its routes, and what they do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from trtllm_dflash import __version__
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.http_server.answer_stream import AnswerStream, Indexed
from trtllm_dflash.http_server.asking import Defaults, chat_call, completion_call
from trtllm_dflash.http_server.event_stream import (
    DONE,
    SseResponse,
    cancelling,
    compact_json,
    event_of,
)
from trtllm_dflash.http_server.guards import Guards, Rules
from trtllm_dflash.http_server.openai_answers import (
    AnswerWriter,
    ChatWriter,
    TextWriter,
    ids_of,
)
from trtllm_dflash.http_server.openai_errors import ApiError, as_api_error, of_validation
from trtllm_dflash.http_server.openapi_page import describe
from trtllm_dflash.http_server.request_json import UniqueKeysRoute
from trtllm_dflash.http_server.scrape import CONTENT_TYPE, Scrape
from trtllm_dflash.http_server.served_model import ServedModel, Wanted
from trtllm_dflash.http_server.wire import ChatBody, CompletionBody, GenerationBody
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.draft_sources import ALLOWED

PAGE = Path(__file__).parent / "page"
# The page has its own files alone, and talks to this server alone.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KNOWN_FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields})


class App:
    """The routes over some models."""

    def __init__(
        self, models: Mapping[str, ServedModel], scrape: Scrape, defaults: Defaults
    ) -> None:
        """Take the models by the names that requests give."""
        self._models = models
        self._scrape = scrape
        self._defaults = defaults

    async def models(self) -> Response:
        """List the models, with what requests may ask of each."""
        rows = [self._row(name) for name in self._models]
        return JSONResponse({"object": "list", "data": rows})

    async def model(self, name: str) -> Response:
        """Describe one model."""
        self._model(name)
        return JSONResponse(self._row(name))

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        model = self._model(body.model)
        wanted = chat_call(body, model, self._defaults)
        writer = ChatWriter(
            body.model,
            wanted.num_answers,
            n=wanted.options.get("n", 1),
            include_usage=_wants_usage(body),
        )
        return await self._answer(body, model, wanted, writer, request)

    async def completion(self, body: CompletionBody, request: Request) -> Response:
        """Continue one prompt or several."""
        model = self._model(body.model)
        wanted = completion_call(body, model, self._defaults)
        n = wanted.options.get("n", 1)
        writer = TextWriter(
            body.model, wanted.num_answers, n=n, include_usage=_wants_usage(body)
        )
        if body.echo:
            for index in range(wanted.num_answers):
                writer.echo(index, str(wanted.prompts[index // n]))
        return await self._answer(body, model, wanted, writer, request)

    async def health(self) -> Response:
        """Tell whether the server works: 503 once an engine has failed."""
        failed = [name for name, model in self._models.items() if model.has_failed]
        if failed:
            raise ApiError(503, f"the engine of {shown(failed[0])} has failed.")
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """Tell whether requests are taken: 503 while the server ends, too."""
        for name, model in self._models.items():
            if not model.is_ready:
                raise ApiError(503, f"{shown(name)} takes no requests.")
        return JSONResponse({"status": "ready"})

    async def metrics(self) -> Response:
        """Give the metrics to Prometheus."""
        return Response(self._scrape.text(), headers={"content-type": CONTENT_TYPE})

    def _row(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        return _model_row(name, model, self._defaults.of(model.config))

    def _model(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models)
            raise ApiError(
                404,
                f"there is no model {shown(name)} here; the models are: {known}.",
                param="model",
                code="model_not_found",
            )
        return model

    async def _answer(
        self,
        body: GenerationBody,
        model: ServedModel,
        wanted: Wanted,
        writer: AnswerWriter,
        request: Request,
    ) -> Response:
        answers = await model.open(wanted)
        if not body.stream:
            async with cancelling(request.receive, answers):
                while not answers.is_over:
                    for index, output in await answers.read():
                        writer.take_in(index, output)
            names = await model.token_names(ids_of(writer.kept_logprobs()))
            return Response(compact_json(writer.whole(names)), media_type="application/json")
        try:
            first = await answers.read()  # what fails before it has a status of its own
        except BaseException:
            answers.cancel()
            raise
        return SseResponse(_events(model, answers, first, writer), answers)


async def _events(
    model: ServedModel, answers: AnswerStream, first: list[Indexed], writer: AnswerWriter
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; what comes together is written together."""
    outputs = first
    try:
        while True:
            data = []
            for index, output in outputs:
                names = await model.token_names(ids_of(output.logprobs))
                chunk = writer.chunk(index, output, names)
                if chunk is not None:
                    data.append(event_of(chunk))
            last = writer.last_chunk() if answers.is_over else None
            if last is not None:
                data.append(event_of(last))
            if data:
                yield b"".join(data)
            if answers.is_over:
                break
            outputs = await answers.read()
    except Exception as failure:  # noqa: BLE001 - the status is sent: the stream says it
        yield event_of(as_api_error(failure).body())
    yield DONE


def create_app(
    models: Mapping[str, ServedModel],
    scrape: Scrape,
    *,
    defaults: Defaults,
    rules: Rules,
    cors_origins: tuple[str, ...] = (),
) -> ASGIApp:
    """Return the application of a server."""
    routes = App(models, scrape, defaults)
    app = FastAPI(
        title="dflash-trt serve",
        version=__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.router.route_class = UniqueKeysRoute
    for path, handler in (
        ("/v1/models", routes.models),
        ("/v1/models/{name:path}", routes.model),
        ("/health", routes.health),
        ("/ready", routes.ready),
        ("/metrics", routes.metrics),
    ):
        app.add_api_route(path, handler, methods=["GET"])
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"])
    app.add_api_route("/v1/completions", routes.completion, methods=["POST"])
    app.add_api_route("/", _page, methods=["GET"], include_in_schema=False)
    describe(app)
    app.mount("/page", _PageFiles(directory=PAGE))
    _add_error_handlers(app)
    guarded: ASGIApp = Guards(app, rules)
    if cors_origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return guarded


async def _page() -> Response:
    return FileResponse(
        PAGE / "index.html",
        media_type="text/html; charset=utf-8",
        headers={"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer"},
    )


class _PageFiles(StaticFiles):
    """The files beside the page."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Return a file with the page's policy."""
        response = super().file_response(*arguments, **options)
        response.headers["content-security-policy"] = PAGE_POLICY
        return response


def _add_error_handlers(app: FastAPI) -> None:
    """Let every error have OpenAI's form."""

    async def on_validation(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, RequestValidationError)
        return _error_response(of_validation(error.errors(), _KNOWN_FIELDS))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {
            400: "the body is no JSON that can be read.",
            404: f"there is nothing at {shown(request.url.path)}.",
            405: f"{shown(request.url.path)} does not take {request.method}.",
        }
        headers = dict(error.headers or {})
        message = words.get(error.status_code, str(error.detail))
        return _error_response(ApiError(error.status_code, message, headers=headers))

    async def on_failure(request: Request, error: Exception) -> Response:
        del request
        return _error_response(as_api_error(error))

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ApiError, on_failure)
    app.add_exception_handler(DFlashError, on_failure)
    app.add_exception_handler(Exception, on_failure)


def _error_response(error: ApiError) -> Response:
    return Response(
        compact_json(error.body()),
        status_code=error.status,
        headers={**error.headers, "content-type": "application/json"},
    )


def _wants_usage(body: GenerationBody) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _model_row(name: str, model: ServedModel, defaults: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "dflash-trt",
        "max_model_len": config.max_seq_len,
        "dflash": {
            "model_type": config.model_type,
            "slots": config.max_batch_size,
            "max_input_len": config.max_input_len,
            "block_size": config.block_size,
            "draft_len": config.own_draft_len,
            "drafts": list(ALLOWED) if config.has_lookup else ["dflash"],
            "speculates": config.speculates,
            "logprobs": config.has_logits,
            "chat": bool(model.tokenizer and model.tokenizer.has_chat_template),
            "chat_template_kwargs": dict(config.chat_template_kwargs),
            "defaults": defaults,
        },
    }
