"""The page that goes with an exported model: how to serve it, what to send, what comes back."""

from __future__ import annotations

from pathlib import Path

from trtllm_dflash import __version__
from trtllm_dflash.runtime.config import EngineConfig
from trtllm_dflash.triton.fields import INPUTS, OUTPUTS
from trtllm_dflash.triton.metrics import FAMILIES

IMAGE = "nvcr.io/nvidia/tritonserver:25.10-py3"


def model_page(name: str, config: EngineConfig, *, engine: Path | None) -> str:
    """The README of the model `name`; `engine` is the engine's path, None where the repository holds a copy."""
    gpus = "" if config.arch == "cpu" else "--gpus all "
    extra = "" if config.arch == "cpu" else "[rtx]"
    mount = "" if engine is None else f" -v {engine}:{engine}:ro"
    limit = f"{config.max_input_len} tokens, prompt and answer {config.max_seq_len}"
    return f"""# {name}

An engine for {config.arch} ({config.architecture}), served by Triton's Python backend with in-flight batching:
{config.max_batch_size} sequences at a time in each instance; a prompt holds at most {limit}.

## Serve

In NVIDIA's container, from the directory of the model repository; `DFLASH` is a checkout or a wheel of dflash-trt
{__version__}:

```bash
docker run --rm {gpus}--shm-size=1g -p 8000:8000 -p 8001:8001 -p 8002:8002 \\
  -v $PWD:/models:ro -v $DFLASH:/dflash{mount} {IMAGE} \\
  bash -c "pip install '/dflash{extra}' && tritonserver --model-repository=/models"
```

## Ask

```bash
curl -N localhost:8000/v2/models/{name}/generate_stream -d '{{"text_input": "Why is the sky blue?", "chat": true,
  "max_tokens": 64, "stream": true}}'
```

`/generate` answers with one response (leave `stream` out); gRPC streams as well. Through Triton's OpenAI frontend:
`python3 /opt/tritonserver/python/openai/openai_frontend/main.py --model-repository /models --tokenizer ENGINE_DIR`.

| input | type | meaning |
|---|---|---|
{_rows(INPUTS)}

| output | type | meaning |
|---|---|---|
{_rows(OUTPUTS)}

A wrong request is answered with an error in words, a full queue with one of Triton's kind UNAVAILABLE.

## Watch

`curl localhost:8002/metrics`, each with the labels model, version and instance:

| metric | meaning |
|---|---|
{_metric_rows()}

A model whose process was killed stays "ready" for Triton: probe it with a request of one token.
"""


def _rows(table: tuple) -> str:  # type: ignore[type-arg]
    return "\n".join(
        f"| `{field.name}` | {field.dtype}{'' if field.size == 1 else ', several'} | {field.meaning} |"
        for field in table
    )


def _metric_rows() -> str:
    return "\n".join(f"| `{family.name}` | {family.help} |" for family in FAMILIES)
