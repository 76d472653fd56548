"""The page that goes with an exported model: how to serve it, what to send, what comes back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from trtllm_dflash import __version__
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.triton_server.io_table import INPUTS, OUTPUTS
from trtllm_dflash.triton_server.metrics import FAMILIES

IMAGE = "nvcr.io/nvidia/tritonserver:25.10-py3"
FRONTEND = "/opt/tritonserver/python/openai/openai_frontend/main.py"
ENGINE_COPY = "1/engine"  # in the model's directory


def model_page(name: str, config: EngineConfig, *, engine: Path | None, chat: bool) -> str:
    """The README of the model `name`.

    `engine` is the engine's path, None where the repository holds a copy; `chat`: its tokenizer has
    a chat template.
    """
    inside = engine or Path("/models") / name / ENGINE_COPY
    server = "tritonserver --model-repository=/models"
    frontend = (
        f"python3 {FRONTEND} --model-repository /models --tokenizer {shlex.quote(str(inside))}"
    )
    question = {"text_input": "Why is the sky blue?", "max_tokens": 64, "stream": True} | (
        {"chat": True} if chat else {}
    )
    limit = f"{config.max_input_len} tokens, prompt and answer {config.max_seq_len}"
    return f"""# {name}

An engine for {config.gpu_arch} ({config.model_type}), served by Triton's Python backend with in-flight batching:
{config.max_batch_size} sequences at a time in each instance; a prompt holds at most {limit}.

## Serve

In NVIDIA's container, from the directory of the model repository; `DFLASH` is the absolute path of a checkout of
dflash-trt {__version__}:

```bash
{_docker(config, engine, (8000, 8001, 8002), server)}
```

## Ask

```bash
curl -N localhost:8000/v2/models/{name}/generate_stream -d '{json.dumps(question)}'
```

`/generate` answers with one response (leave `stream` out); gRPC streams as well. Triton's OpenAI frontend is a server
of its own, instead of the one above:

```bash
{_docker(config, engine, (9000,), frontend)}
```

| input | type | meaning |
|---|---|---|
{_rows(INPUTS)}

| output | type | meaning |
|---|---|---|
{_rows(OUTPUTS)}

A wrong request is answered with an error in words; one that found the queue full, or the model on its way out, with
one of Triton's kind UNAVAILABLE: it may be sent again.

## Watch

`curl localhost:8002/metrics`, each with the labels model, version and instance:

| metric | meaning |
|---|---|
{_metric_rows()}

A model whose process was killed stays "ready" for Triton: probe it with a request of one token.
"""


def _docker(config: EngineConfig, engine: Path | None, ports: tuple[int, ...], command: str) -> str:
    """A container with our package that runs a server of /models; the repository holds the engine,
    or it is mounted.
    """
    gpus = "" if config.gpu_arch == "cpu" else "--gpus all "
    extra = BACKENDS[config.backend].extra
    package = f"'/dflash[{extra}]'" if extra else "/dflash"
    mount = "" if engine is None else f"-v {shlex.quote(f'{engine}:{engine}:ro')} "
    publish = " ".join(f"-p {port}:{port}" for port in ports)
    return f"""docker run --rm {gpus}--shm-size=1g {publish} \\
  -v "$PWD":/models:ro -v "$DFLASH":/dflash \\
  {mount}{IMAGE} \\
  bash -c "pip install {package} && {command}\""""


def _rows(table: tuple) -> str:  # type: ignore[type-arg]
    return "\n".join(
        f"| `{field.name}` | {field.dtype}{'' if field.size == 1 else ', several'} |"
        f" {field.meaning} |"
        for field in table
    )


def _metric_rows() -> str:
    return "\n".join(f"| `{family.name}` | {family.help} |" for family in FAMILIES)
