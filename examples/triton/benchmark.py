"""Measure an engine behind Triton; writes serving.json and perf_analyzer.csv.

Figures are batching against one request at a time, and the first token of a short prompt while a
long one runs. The table is that of NVIDIA's perf_analyzer.
Ratios compare runs that alternate on one machine; nothing else should run on it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local_server import VENV, LocalServer

from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.triton_server.export import export

HERE = Path(__file__).parent
QUESTIONS = (
    "Name three fruits.",
    "Write a haiku about the sea.",
    "Count from one to ten.",
    "What is the capital of France?",
)


class Bench:
    """One running server with the model `dflash`."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server

    def ask(self, **inputs: Any) -> tuple[float, float, int]:
        """Return seconds to the first response and to the last, and the number of new tokens."""
        body = json.dumps(
            {"stream": True, "ignore_eos": True, "return_num_output_tokens": True, **inputs}
        ).encode()
        start, first, tokens = time.perf_counter(), 0.0, 0
        with urllib.request.urlopen(
            f"{self.server.url}/v2/models/dflash/generate_stream", body
        ) as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    first = first or time.perf_counter() - start
                    tokens += json.loads(line[6:])["num_output_tokens"]
        return first, time.perf_counter() - start, tokens

    def tokens_per_second(self, concurrency: int, requests: int, max_tokens: int) -> float:
        """Return all requests' new tokens over the time for all of them."""
        start = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            prompts = (QUESTIONS[place % len(QUESTIONS)] for place in range(requests))
            done = list(
                pool.map(
                    lambda text: self.ask(text_input=text, chat=True, max_tokens=max_tokens),
                    prompts,
                )
            )
        return sum(tokens for _, _, tokens in done) / (time.perf_counter() - start)

    def first_tokens(self, long_words: int) -> tuple[float, float, float]:
        """Seconds to the first token: a long prompt alone, a short one alone, a short one while a
        long one runs.
        """
        long = {"text_input": "river " * long_words, "max_tokens": 1}
        short = {"text_input": "Name three fruits.", "chat": True, "max_tokens": 1}
        alone, quick = self.ask(**long)[0], self.ask(**short)[0]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.ask, **long)
            time.sleep(alone / 10)
            meanwhile = self.ask(**short)[0]
            running.result()
        return alone, quick, meanwhile


def perf_analyzer(server: LocalServer, output: Path, max_tokens: int) -> None:
    """NVIDIA's own load tool, which comes with tritonclient 2.51: gRPC streams at several
    concurrencies.
    """
    values = {
        "text_input": QUESTIONS[0],
        "max_tokens": max_tokens,
        "stream": True,
        "chat": True,
        "ignore_eos": True,
    }
    data = {
        "data": [{name: {"content": [value], "shape": [1]} for name, value in values.items()}]
    }
    with tempfile.TemporaryDirectory() as folder:
        inputs, libraries = Path(folder) / "inputs.json", Path(folder) / "libraries"
        inputs.write_text(json.dumps(data), encoding="utf-8")
        libraries.mkdir()
        (packaged,) = VENV.glob("lib/python3.*/site-packages/nvidia_pytriton.libs")
        for name, pattern in (("libb64.so.0d", "libb64-*"), ("libcudart.so.12", "libcudart-*")):
            (libraries / name).symlink_to(next(packaged.glob(pattern)))
        command = [
            str(VENV / "bin" / "perf_analyzer"),
            "-m",
            "dflash",
            "-u",
            f"127.0.0.1:{server.grpc}",
            "-i",
            "grpc",
        ]
        command += [
            "--streaming",
            "--async",
            "--input-data",
            str(inputs),
            "--concurrency-range",
            "1:4:1",
            "-f",
        ]
        command += [
            str(output),
            "--stability-percentage",
            "50",
            "--max-trials",
            "3",
            "--measurement-interval",
            "4000",
        ]
        environment = os.environ | {"LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{packaged}"}
        subprocess.run(command, check=True, env=environment)


def main() -> None:
    """Export, serve, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--output", type=Path, default=HERE, help="where the files go")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of everything but perf_analyzer; medians are kept",
    )
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--long-words", type=int, default=700, help="of the long prompt")
    parser.add_argument("--no-perf-analyzer", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = export(TritonExportConfig(arguments.engine, Path(folder) / "models"))
        slots = report.engine_config.max_batch_size
        with LocalServer(Path(folder) / "models", Path(folder) / "log") as server:
            server.wait_until_ready()
            bench = Bench(server)
            one, all_slots, first = [], [], []
            for _ in range(arguments.rounds):
                one.append(bench.tokens_per_second(1, 2 * slots, arguments.max_tokens))
                all_slots.append(
                    bench.tokens_per_second(slots, 2 * slots, arguments.max_tokens)
                )
                first.append(bench.first_tokens(arguments.long_words))
            if not arguments.no_perf_analyzer:
                perf_analyzer(
                    server, arguments.output / "perf_analyzer.csv", arguments.max_tokens
                )
    alone, quick, meanwhile = (
        round(statistics.median(column), 3) for column in zip(*first, strict=True)
    )
    result = {
        "slots": slots,
        "max_tokens": arguments.max_tokens,
        "tokens_per_second": {
            "one at a time": statistics.median(one),
            f"{slots} at a time": statistics.median(all_slots),
        },
        "ratio": round(
            statistics.median(
                many / single for single, many in zip(one, all_slots, strict=True)
            ),
            2,
        ),
        "first_token_seconds": {
            "long": alone,
            "short": quick,
            "short while a long one runs": meanwhile,
        },
    }
    (arguments.output / "serving.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
