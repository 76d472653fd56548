"""What serving costs: the scheduler alone, `dflash-trt serve`, and Triton, on the same requests.

They take turns in each round, so that a machine that is busier for a while is so for all. Ratios
are of the same round, and medians over rounds are kept. With one thread for the engine, the other
cores are free for servers and clients, as they are beside a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from trtllm_dflash.log import markdown_table
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_server import EngineServer
from trtllm_dflash.runtime.outputs import Event, RequestOutput
from trtllm_dflash.runtime.sessions.load_times import LoadTimes
from trtllm_dflash.runtime.warm_up import warm_up

sys.path.insert(0, str(Path(__file__).parents[1] / "triton"))

QUESTIONS = (
    "Name three fruits.",
    "Write a haiku about the sea.",
    "Count from one to ten.",
    "What is the capital of France?",
)
PREFIX_CACHE_MIB = 256
# The least of the throughput ratios: within 3 % of the scheduler alone, and not below Triton.
GOALS = {"serve/scheduler": 0.97, "serve/triton": 1.0}
Figures = dict[str, float]


@dataclass
class Asked:
    """One request's seconds to its first tokens and to its end, and its new tokens."""

    first: float
    end: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """So many requests, of which so many are under way at a time."""

    requests: int
    at_once: int
    max_tokens: int

    def question(self, number: int) -> str:
        """Return the text of a request."""
        return QUESTIONS[number % len(QUESTIONS)]


def figures(asked: list[Asked], seconds: float) -> Figures:
    """Return tokens/s of all, and means of the time to the first token and of each later one."""
    later = [(one.end - one.first) / max(1, one.tokens - 1) for one in asked]
    return {
        "tokens_per_second": sum(one.tokens for one in asked) / seconds,
        "ttft_ms": 1000 * statistics.mean(one.first for one in asked),
        "tpot_ms": 1000 * statistics.mean(later),
    }


def ask_scheduler(server: EngineServer, prompts: list[list[int]], load: Load) -> Figures:
    """Send token ids to the scheduler, in this process; nothing is written anywhere."""
    ends: queue.Queue[Asked] = queue.Queue()
    begin = time.perf_counter()

    def on_event(event: Event) -> None:
        assert isinstance(event, RequestOutput), event
        end = event.finish_info
        if end is not None:
            assert end.first_token_seconds is not None
            ends.put(Asked(end.first_token_seconds, end.seconds, end.output_tokens))

    def submit(number: int) -> None:
        server.submit(
            prompts[number % len(prompts)],
            on_event=on_event,
            max_tokens=load.max_tokens,
            ignore_eos=True,
        )

    sent = min(load.at_once, load.requests)
    for number in range(sent):
        submit(number)
    asked = []
    while len(asked) < load.requests:
        asked.append(ends.get())
        if sent < load.requests:
            submit(sent)
            sent += 1
    return figures(asked, time.perf_counter() - begin)


async def stream(port: int, path: str, body: dict[str, Any], find: re.Pattern[bytes]) -> Asked:
    """Read a stream with as little work as can be; `find` finds counts of tokens, which add up."""
    content = json.dumps(body).encode()
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    parts, first = [], 0.0
    while part := await reader.read(1 << 16):
        parts.append(part)
        if not first and b"data: " in part:
            first = time.perf_counter() - begin
    end = time.perf_counter() - begin
    writer.close()
    answer = b"".join(parts)
    assert b" 200 OK" in answer[:30], answer[:300]
    return Asked(first, end, sum(int(found) for found in find.findall(answer)))


def ask_http(
    port: int, path: str, body_of: Callable[[str], dict[str, Any]], find: bytes, load: Load
) -> Figures:
    """Send the requests to a server, each over a connection of its own."""
    asked: list[Asked] = []
    pattern = re.compile(find)

    async def client(numbers: asyncio.Queue[int]) -> None:
        while not numbers.empty():
            body = body_of(load.question(numbers.get_nowait()))
            asked.append(await stream(port, path, body, pattern))

    async def ask() -> None:
        numbers: asyncio.Queue[int] = asyncio.Queue()
        for number in range(load.requests):
            numbers.put_nowait(number)
        await asyncio.gather(*(client(numbers) for _ in range(load.at_once)))

    begin = time.perf_counter()
    asyncio.run(ask())
    return figures(asked, time.perf_counter() - begin)


def chat_body(load: Load) -> Callable[[str], dict[str, Any]]:
    """Return what makes the body of a chat request."""

    def make(text: str) -> dict[str, Any]:
        return {
            "model": "demo",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": load.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    return make


def triton_body(load: Load) -> Callable[[str], dict[str, Any]]:
    """Return what makes the body of a request to Triton."""

    def make(text: str) -> dict[str, Any]:
        return {
            "text_input": text,
            "chat": True,
            "max_tokens": load.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "return_num_output_tokens": True,
        }

    return make


def start_serve(engine: Path, threads: int, stack: ExitStack) -> int:
    """Start `dflash-trt serve`, and return its port once it is ready."""
    command = [sys.executable, "-m", "trtllm_dflash", "serve", f"demo={engine}", "--port", "0"]
    options = ["--num-threads", str(threads), "--prefix-cache-mib", str(PREFIX_CACHE_MIB)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    found = re.search(r":(\d+)/v1", process.stdout.readline())
    assert found is not None, "dflash-trt serve did not start"
    return int(found[1])


def start_triton(engine: Path, threads: int, stack: ExitStack) -> int:
    """Export the engine, start Triton, and return its HTTP port once it is ready."""
    from local_server import LocalServer

    from trtllm_dflash.options.triton_export import TritonExportConfig
    from trtllm_dflash.triton_server.export import export

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    report = export(TritonExportConfig(engine, folder / "models"))
    config = report.model_directory / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    for name, value in (("num_threads", threads), ("prefix_cache_mib", PREFIX_CACHE_MIB)):
        text, count = re.subn(
            rf'(key: "{name}"\s*value {{ string_value: ")[^"]*"', rf'\g<1>{value}"', text
        )
        assert count == 1, name
    config.write_text(text, encoding="utf-8")
    server = stack.enter_context(LocalServer(folder / "models", folder / "log"))
    server.wait_until_ready()
    return server.http


def systems_of(
    arguments: argparse.Namespace, load: Load, stack: ExitStack
) -> dict[str, Callable[[], Figures]]:
    """Start everything, and return what sends the requests to each."""
    engine = stack.enter_context(
        Engine.load(
            arguments.engine,
            num_threads=arguments.num_threads,
            prefix_cache_mib=PREFIX_CACHE_MIB,
        )
    )
    warm_up(engine, LoadTimes())
    assert engine.tokenizer is not None
    prompts = [engine.tokenizer.encode_chat(text) for text in QUESTIONS]
    server = stack.enter_context(engine.serve())
    systems: dict[str, Callable[[], Figures]] = {
        "scheduler": lambda: ask_scheduler(server, prompts, load)
    }
    port = start_serve(arguments.engine, arguments.num_threads, stack)
    path, usage = "/v1/chat/completions", rb'"completion_tokens":(\d+)'
    systems["serve"] = lambda: ask_http(port, path, chat_body(load), usage, load)
    if not arguments.without_triton:
        other = start_triton(arguments.engine, arguments.num_threads, stack)
        place, count = "/v2/models/dflash/generate_stream", rb'"num_output_tokens":(\d+)'
        systems["triton"] = lambda: ask_http(other, place, triton_body(load), count, load)
    return systems


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of each system, and of the ratios within each round."""
    load = Load(arguments.requests, arguments.at_once, arguments.max_tokens)
    with ExitStack() as stack:
        systems = systems_of(arguments, load, stack)
        rounds: list[dict[str, Figures]] = []
        for number in range(arguments.rounds + 1):
            order = list(systems)
            order = order[number % len(order) :] + order[: number % len(order)]
            rounds.append({name: systems[name]() for name in order})
    rounds = rounds[1:]  # the first one fills caches
    medians = {name: medians_of([one[name] for one in rounds]) for name in systems}
    ratios = {}
    for other in systems.keys() - {"serve"}:
        pairs = [
            one["serve"]["tokens_per_second"] / one[other]["tokens_per_second"]
            for one in rounds
        ]
        ratios[f"serve/{other}"] = round(statistics.median(pairs), 3)
    return {
        "date": date.today().isoformat(),
        "engine": arguments.engine.name,
        "requests": load.requests,
        "at_once": load.at_once,
        "max_tokens": load.max_tokens,
        "num_threads": arguments.num_threads,
        "rounds": arguments.rounds,
        "systems": medians,
        "throughput_ratios": dict(sorted(ratios.items())),
    }


def medians_of(rounds: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}


def markdown(result: dict[str, Any]) -> str:
    """Return the figures as tables: the systems, and the goals."""
    load = (
        f"{result['requests']} chats in each of {result['rounds']} rounds, {result['at_once']} at"
        f" once, {result['max_tokens']} tokens each, {result['num_threads']} thread of each engine,"
        f" {result['date']}:"
    )
    rows = []
    for name, row in result["systems"].items():
        rows.append((name, *map(str, row.values())))
    systems = markdown_table(("system", "tokens/s", "TTFT (ms)", "time per token (ms)"), rows)
    rows = []
    for name, ratio in result["throughput_ratios"].items():
        verdict = "reached" if ratio >= GOALS[name] else "missed"
        rows.append((name.replace("/", " ÷ "), f"{GOALS[name]:g}", f"{ratio:.3f}", verdict))
    goals = markdown_table(("tokens/s", "at least", "measured", "goal"), rows)
    return f"{load}\n\n{systems}\n\n{goals}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--requests", type=int, default=32, help="of each system and round")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1, help="of each engine")
    parser.add_argument("--without-triton", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments)
    print(markdown(result))
    if arguments.json is not None:
        text = json.dumps(result, indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
