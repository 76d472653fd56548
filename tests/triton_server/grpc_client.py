"""Send requests over gRPC from the server's environment, which has tritonclient.

    python grpc_client.py HOST:PORT < requests.json > results.json

A request is {"model": …, "inputs": {name: value}, "cancel_after": n}. A result is {"responses":
[{name: value}], "final": [flags], "error": text}. All requests run at the same time, each on its
own stream. As from Triton's OpenAI frontend, every input is [1, n].
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from tritonclient.utils import np_to_triton_dtype

from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

TYPES: dict[str, Any] = {
    "max_tokens": np.int32,
    "draft_len": np.int32,
    "stop_token_ids": np.int32,
    "seed": np.uint64,
    "n": np.int32,
    "logprobs": np.int32,
    "min_tokens": np.int32,
    **{row.name: row.dtype for row in SAMPLING_INPUTS},
    "frequency_penalty": np.float32,
    "presence_penalty": np.float32,
    "text_input": np.object_,
    "system": np.object_,
    "messages": np.object_,
    "chat_template_kwargs": np.object_,
    "stop_words": np.object_,
}


def as_input(name: str, value: Any) -> grpc.InferInput:
    values = value if isinstance(value, list) else [value]
    array = np.array([values], TYPES.get(name, np.bool_))
    tensor = grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def as_json(array: np.ndarray) -> Any:
    assert array.shape == (1, 1)
    value = array[0, 0]
    return value.decode() if isinstance(value, bytes) else value.item()


async def ask(client: grpc.InferenceServerClient, request: dict[str, Any]) -> dict[str, Any]:
    async def one() -> Any:
        inputs = [as_input(name, value) for name, value in request["inputs"].items()]
        parameters = request.get("parameters")
        yield {"model_name": request["model"], "inputs": inputs, "parameters": parameters}

    result: dict[str, Any] = {"responses": [], "final": [], "error": None}
    stream = client.stream_infer(one())
    async for response, error in stream:
        if error is not None:
            result["error"] = str(error)
            break
        message = response.get_response()
        result["responses"].append(
            {output.name: as_json(response.as_numpy(output.name)) for output in message.outputs}
        )
        result["final"].append(message.parameters["triton_final_response"].bool_param)
        if len(result["responses"]) == request.get("cancel_after"):
            stream.cancel()
            break
    return result


async def main() -> None:
    client = grpc.InferenceServerClient(sys.argv[1])
    results = await asyncio.gather(*(ask(client, request) for request in json.load(sys.stdin)))
    await client.close()
    json.dump(results, sys.stdout)


asyncio.run(main())
