"""An HTTP client of Triton's generate endpoints, of the standard library."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.patience import PATIENCE, wait_for

_PUBLISHING_SECONDS = 1.0  # of a busy machine


@dataclass(frozen=True)
class Reply:
    """The HTTP status, and one JSON object for each response."""

    status: int
    responses: list[dict[str, Any]]

    @property
    def error(self) -> str:
        return str(self.responses[-1].get("error", ""))

    @property
    def text(self) -> str:
        return "".join(response["text_output"] for response in self.responses)

    @property
    def last(self) -> dict[str, Any]:
        return self.responses[-1]


class Client:
    """Talks to one server."""

    def __init__(self, port: int, metrics_port: int, *, seconds: float = PATIENCE) -> None:
        """Take the server's ports, and how long a client waits for anything."""
        self.port, self.metrics_port = port, metrics_port
        self.seconds = seconds

    def generate(self, model: str, **inputs: Any) -> Reply:
        """Return the one response."""
        return self.post(f"/v2/models/{model}/generate", json.dumps(inputs).encode())

    def stream(self, model: str, **inputs: Any) -> Reply:
        """Return all responses of a stream."""
        body = json.dumps({"stream": True, **inputs}).encode()
        return self.post(f"/v2/models/{model}/generate_stream", body)

    def post(self, path: str, body: bytes) -> Reply:
        """Send a body and return the answer, from JSON or from a stream of JSON."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        ) as connection:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        rows = (
            re.findall(r"^data: (.*)$", text, re.MULTILINE)
            if text.startswith("data: ")
            else [text or "{}"]
        )
        return Reply(response.status, [json.loads(row) for row in rows])

    @contextmanager
    def open_stream(self, model: str, **inputs: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the responses as they come; leaving the block disconnects."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        ) as connection:
            body = json.dumps({"stream": True, **inputs})
            connection.request("POST", f"/v2/models/{model}/generate_stream", body)
            response = connection.getresponse()
            yield (json.loads(line[6:]) for line in response if line.startswith(b"data: "))

    @contextmanager
    def sent(self, model: str, **inputs: Any) -> Iterator[None]:
        """Send the request of a stream, and wait for nothing; leaving the block disconnects."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        ) as connection:
            connection.request(
                "POST",
                f"/v2/models/{model}/generate_stream",
                json.dumps({"stream": True, **inputs}),
            )
            yield

    def load(self, model: str) -> Reply:
        """Load a model."""
        return self.post(f"/v2/repository/models/{model}/load", b"{}")

    def unload(self, model: str) -> None:
        """Unload a model, and wait until its processes are gone: the answer comes before that."""
        assert self.post(f"/v2/repository/models/{model}/unload", b"{}").status == 200
        wait_for(lambda: model not in self.models_that_run())

    def models_that_run(self) -> set[str]:
        """Return the models that have a process, also those that come or go."""
        (rows,) = self.post("/v2/repository/index", b"{}").responses
        return {row["name"] for row in rows if row.get("state", "UNAVAILABLE") != "UNAVAILABLE"}

    def is_ready(self, model: str) -> bool:
        """Return whether the server calls a model ready."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        ) as connection:
            connection.request("GET", f"/v2/models/{model}/ready")
            return connection.getresponse().status == 200

    def metrics(self, model: str) -> dict[str, float]:
        """Read the metrics of a model with one instance."""
        return {name: value for name, _, value in self._metric_rows(model)}

    def settled_metrics(self, model: str) -> dict[str, float]:
        """Read the metrics until they stay: the engine thread publishes a few times a second."""
        before, now = None, self.metrics(model)
        while now != before:
            time.sleep(_PUBLISHING_SECONDS)
            before, now = now, self.metrics(model)
        return now

    def metrics_by_instance(self, model: str, name: str) -> dict[str, float]:
        """Read one metric of every instance of a model."""
        return {
            instance: value
            for found, instance, value in self._metric_rows(model)
            if found == name
        }

    def _metric_rows(self, model: str) -> list[tuple[str, str, float]]:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=self.seconds) as response:
            text = response.read().decode()
        rows = re.findall(
            r'^(dflash_\w+)\{instance="([^"]*)",model="([^"]*)",.*\} (\S+)$', text, re.MULTILINE
        )
        return [
            (name, instance, float(value))
            for name, instance, found, value in rows
            if found == model
        ]
