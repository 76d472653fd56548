"""`dflash-trt serve` in a process of its own, on the demo pair."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.conftest import DEMO
from tests.patience import PATIENCE


class Served:
    """A running server; leaving its block ends it, whatever it does."""

    def __init__(self, *engines: str, environment: Any = None, **options: Any) -> None:
        self._command = [sys.executable, "-m", "trtllm_dflash", "serve"]
        self._command += [*(engines or (f"demo={DEMO / 'cpu'}",)), "--port", "0"]
        for name, value in options.items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]
        self._environment = os.environ | (environment or {})

    def __enter__(self) -> Served:
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=self._environment,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        found = re.search(r"at (http://\S+)/v1", self.first_line)
        assert found is not None, self.errors()
        self.url = found[1]
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._errors.close()

    def next_lines(self, count: int) -> list[str]:
        """Return what stands after the first line."""
        assert self.process.stdout is not None
        return [self.process.stdout.readline() for _ in range(count)]

    def end(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def errors(self) -> str:
        """Return what it has written to stderr so far; its own place to write stays."""
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json={"model": "demo", **body}, timeout=PATIENCE)

    def processor_seconds(self) -> float:
        """Return what the process has used, with the children that have ended."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        ticks = stat.rpartition(") ")[2].split()[11:15]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def memory_kb(self) -> int:
        """Return what the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1])
