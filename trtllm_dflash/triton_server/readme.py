"""The README of an exported model: how to serve it, its inputs, outputs and metrics."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from trtllm_dflash import __version__
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.log import markdown_table
from trtllm_dflash.runtime.metric_table import METRICS
from trtllm_dflash.templates import render
from trtllm_dflash.triton_server.io_table import INPUTS, OUTPUTS, TENSORRT_LLM_INPUTS, Field

IMAGE = "dflash-triton"
DOCKERFILE = "examples/triton/Dockerfile"
FRONTEND = "/opt/tritonserver/python/openai/openai_frontend/main.py"
# Of an answer whose request names no limit. The frontend's own is 16.
FRONTEND_MAX_TOKENS = 2048
ENGINE_COPY = "1/engine"  # in the model's directory


def model_page(
    name: str,
    config: EngineConfig,
    *,
    engine: Path | None,
    chat: bool,
    licence: object = None,
) -> str:
    """Return the README of the model `name`.

    Args:
        engine: the engine's path; None where the repository holds a copy.
        chat: whether its tokenizer has a chat template.
        licence: of the drafter, as the engine's manifest has it; None: not recorded.
    """
    inside = str(engine or Path("/models") / name / ENGINE_COPY)
    frontend = (
        f"python3 {FRONTEND} --model-repository /models --tokenizer {shlex.quote(inside)}"
        f" --default-max-tokens {FRONTEND_MAX_TOKENS}"
    )
    question = {"text_input": "Why is the sky blue?", "max_tokens": 64, "stream": True}
    if chat:
        question["chat"] = True
    return render(
        "trtllm_dflash.triton_server",
        "readme.md.j2",
        name=name,
        config=config,
        version=__version__,
        licence=licence if isinstance(licence, str) else None,
        template_options=json.dumps(dict(config.chat_template_kwargs)),
        image=_image_command(config),
        server=_docker(config, engine, (8000, 8001, 8002), ""),
        frontend=_docker(config, engine, (9000,), frontend),
        question=json.dumps(question),
        tables=io_tables(),
        metrics=metrics_table(),
    )


def io_tables() -> str:
    """Return the tables of inputs, of TensorRT-LLM's names for them, and of outputs."""
    tables = (
        _field_table("input", INPUTS),
        _field_table("TensorRT-LLM's name", TENSORRT_LLM_INPUTS),
        _field_table("output", OUTPUTS),
    )
    return "\n\n".join(tables)


def metrics_table() -> str:
    """Return the table of metrics."""
    rows = [(f"`{metric.name}`", metric.help) for metric in METRICS]
    return markdown_table(("metric", "meaning"), rows)


def _image_command(config: EngineConfig) -> str:
    """Return the command that makes the image, with what running this engine needs."""
    extra = BACKENDS[config.backend].run_extra
    return (
        f'docker build -f "$DFLASH"/{DOCKERFILE} --build-arg EXTRA={extra} -t {IMAGE} "$DFLASH"'
    )


def _docker(
    config: EngineConfig, engine: Path | None, ports: tuple[int, ...], command: str
) -> str:
    """Return the command of a container that serves /models.

    `engine` is mounted; None: it lies in the repository. Without `command` it is the image's own.
    """
    gpus = "" if config.gpu_arch == "cpu" else "--gpus all "
    mount = "" if engine is None else f" -v {shlex.quote(f'{engine}:{engine}:ro')}"
    publish = " ".join(f"-p {port}:{port}" for port in ports)
    own = f" \\\n  {command}" if command else ""
    return f"""docker run --rm {gpus}--shm-size=1g {publish} \\
  -v "$PWD":/models:ro{mount} {IMAGE}{own}"""


def _field_table(title: str, table: Sequence[Field]) -> str:
    rows = []
    for field in table:
        several = "" if field.size == 1 else ", several"
        rows.append((f"`{field.name}`", field.dtype + several, field.meaning))
    return markdown_table((title, "type", "meaning"), rows)
