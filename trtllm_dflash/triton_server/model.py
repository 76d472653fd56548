"""The model of an exported repository, between Triton's Python backend and the scheduler.

`execute` runs in Triton's thread: it checks a request. A thread of `intake.py` makes a prompt of
it and puts it into the scheduler's queue. From then on the engine thread alone sends responses,
counts, and calls Triton.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import DFlashError, EngineError, UsageError
from trtllm_dflash.log import configure
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_server import EngineServer
from trtllm_dflash.runtime.intake import Intake
from trtllm_dflash.runtime.outputs import EngineStats
from trtllm_dflash.runtime.sessions.load_times import LoadTimes
from trtllm_dflash.runtime.text.tokenizer import ChatError, Tokenizer
from trtllm_dflash.runtime.warm_up import warm_up
from trtllm_dflash.triton_server.export import engine_digest
from trtllm_dflash.triton_server.metrics import Metrics
from trtllm_dflash.triton_server.model_control import unloads_on_demand
from trtllm_dflash.triton_server.request import GenerationRequest
from trtllm_dflash.triton_server.responses import Responses
from trtllm_dflash.triton_server.settings import Settings

_LOG = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance: one engine and one engine thread. Triton calls its three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine; an error means that the model is not ready."""
        configure(verbose=False)
        self._name = args["model_name"]
        self._leaving = False
        # None until the engine thread is there, which may report before this is set.
        self._server: EngineServer | None = None
        self._triton = _utilities()
        check_dlpack_roundtrip(self._triton)
        settings = Settings.from_config(json.loads(args["model_config"]))
        self._drain_seconds = settings.drain_seconds
        if args["model_instance_kind"] == "GPU":
            restrict_to_gpu(int(args["model_instance_device_id"]), os.environ)
        self._engine, self._tokenizer = _load(settings, Path(args["model_repository"]))
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
        }
        self._metrics = Metrics(self._triton, labels)
        self._intake = Intake(settings.max_waiting + self._engine.config.max_batch_size)
        self._server = self._engine.serve(
            max_waiting=settings.max_waiting,
            prompt_tokens_per_step=settings.prompt_tokens_per_step,
            on_stats=self._on_stats,
        )

    def execute(self, requests: list[Any]) -> None:
        """Take in each request, or answer it with what is wrong with it."""
        for request in requests:
            try:
                self._take_in(request)
            except BaseException:  # noqa: BLE001 - Triton would send it to every client here
                _LOG.exception("a request could not even be answered")

    def is_ready(self) -> bool:
        """Return whether requests are taken and answered; newer servers ask."""
        return self._server is not None and self._server.alive

    def finalize(self) -> None:
        """Let running requests end for a while, and the engine thread publish its last metrics."""
        self._intake.close()
        if self._server is not None:
            self._server.close(drain_seconds=self._drain_seconds)
        self._engine.close()

    def _take_in(self, triton_request: Any) -> None:
        """Check a request, and hand it to the thread that makes a prompt of it."""
        sender = triton_request.get_response_sender()
        responses = Responses(self._triton, sender, self._metrics)

        def check() -> None:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in triton_request.inputs()}
            parameters = json.loads(triton_request.parameters() or "{}")
            request = GenerationRequest.from_tensors(
                tensors, self._engine.config.eos_token_ids, parameters
            )
            self._check_size(request.text)
            role = "encode" if request.messages is None else "chat"
            self._intake.put(role, lambda: answer(responses, lambda: submit(request)))

        def submit(request: GenerationRequest) -> None:
            self._submit(request, responses)

        answer(responses, check)

    def _submit(self, request: GenerationRequest, responses: Responses) -> None:
        request = request.with_tools(self._tokenizer)
        prompt = encode_prompt(request, self._tokenizer)
        responses.begin(request, num_input_tokens=len(prompt))
        assert self._server is not None
        self._server.submit(
            prompt,
            on_event=responses,
            is_alive=responses.is_alive,
            queueing=request.queueing,
            **request.options,
        )

    def _check_size(self, text: str) -> None:
        """Refuse a text that cannot fit: tokenizing megabytes would make others wait."""
        tokens = self._engine.config.max_input_len
        max_characters = tokens * self._tokenizer.longest_token
        if len(text) > max_characters:
            raise UsageError(
                f"text_input has {len(text)} characters, and a prompt of this engine has at most"
                f" {tokens} tokens (max_input_len), which are at most {max_characters} characters."
                " Shorten it."
            )

    def _on_stats(self, stats: EngineStats) -> None:
        """Publish the metrics; from the engine thread, which calls it a last time when it ends."""
        failed = None if self._server is None else self._server.failed
        self._metrics.publish(stats, ready=failed is None)
        if failed is not None and not self._leaving:
            self._leaving = True
            threading.Thread(target=self._leave, args=(failed,), daemon=True).start()

    def _leave(self, failed: DFlashError) -> None:
        """Make the model not ready: requests would be refused one by one for ever.

        A server that loads and unloads on demand can unload it. Another one aborts if a model asks.
        """
        _LOG.error("%s takes no more requests: %s", self._name, failed)
        if unloads_on_demand(os.getppid()):
            self._triton.unload_model(model_name=self._name)


def answer(responses: Responses, work: Callable[[], None]) -> None:
    """Do a part of a request; whatever is wrong becomes an answer in words for its client alone.

    Foreign code runs here, a tokenizer and a chat template, and may raise anything.
    """
    try:
        work()
    except DFlashError as error:
        responses.fail(error)
    except BaseException as error:  # noqa: BLE001 - see above
        _LOG.exception("a request failed before it was queued")
        responses.fail(
            EngineError(
                f"this request failed inside the server ({type(error).__name__}); its log says"
                " where."
            )
        )


def encode_prompt(request: GenerationRequest, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt's token ids; errors are for clients and name no files of the server."""
    try:
        if request.messages is None:
            return tokenizer.encode(request.text)
        return tokenizer.encode_chat(request.messages, **request.template_options)
    except ChatError as error:
        if not tokenizer.has_chat_template:
            raise UsageError(
                "chat: this model has no chat format; send chat: false."
            ) from error
        raise UsageError(f"chat: {error.problem}") from error
    except EngineError as error:
        _LOG.error("a prompt could not be made: %s", error)
        problem = getattr(error.__cause__, "problem", "the server's log says why")
        raise EngineError(f"the tokenizer cannot read this text: {problem}") from error


def restrict_to_gpu(device: int, environment: MutableMapping[str, str]) -> None:
    """Let this process see no GPU but the one with Triton's index `device`."""
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    environment["CUDA_VISIBLE_DEVICES"] = visible[device] if visible else str(device)


def _load(settings: Settings, model_directory: Path) -> tuple[Engine, Tokenizer]:
    """Load the engine that was exported and run it once; EngineError for any other one."""
    directory = model_directory / settings.engine_dir  # an absolute path stays what it is
    times = LoadTimes()
    with times.part("engine"):
        engine = Engine.load(
            directory,
            num_threads=settings.num_threads,
            prefix_cache_mib=settings.prefix_cache_mib,
        )
    if engine_digest(directory) != settings.engine_digest:
        raise EngineError(
            f"{directory} is not the engine that this repository was exported for: it was built"
            " again since. Export it again: dflash-trt export-triton --overwrite."
        )
    if engine.tokenizer is None:
        raise EngineError(f"{directory}: no {TOKENIZER_FILE}, and requests are text.")
    warm_up(engine, times)
    _LOG.info("ready in %s: %s", times, directory)
    return engine, engine.tokenizer


def _utilities() -> Any:
    import triton_python_backend_utils  # exists in Triton's stub process only

    return triton_python_backend_utils


def check_dlpack_roundtrip(triton: Any) -> None:
    """Raise EngineError if Triton's stub corrupts tensors: up to 24.10 it does with NumPy 2.

    A tensor made from an array keeps that array. One made through DLPack is read from memory, as
    those of requests are.
    """
    values = np.arange(1, 4, dtype=np.float32)
    capsule = values.__dlpack__()
    # These stubs mark a capsule as used by a name that is not DLPack's. NumPy's destructor then
    # takes it for unused, and recurses without end (1.26); the stub frees the tensor in any case.
    disarm = ctypes.pythonapi.PyCapsule_SetDestructor
    disarm.argtypes = [ctypes.py_object, ctypes.c_void_p]
    disarm(capsule, None)
    seen = triton.Tensor.from_dlpack("probe", capsule).as_numpy()
    if not np.array_equal(seen, values):
        raise EngineError(
            f"this server's Python backend passes {np.asarray(seen).tolist()} for"
            f" {values.tolist()}: it does not work with NumPy {np.__version__}. Install numpy<2 in"
            " the model's environment, or use a newer server."
        )
