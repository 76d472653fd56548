"""The real Triton Inference Server without a container or a GPU: the one in the PyPI package
nvidia-pytriton.

The package has the server (2.51) and its Python backend; this puts together what the backend needs
to find, and starts and stops the server. `make .venv-triton/.ready` makes the environment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(os.environ.get("DFLASH_TRITON_VENV", ROOT / ".venv-triton"))
# Below the ports that Linux gives to clients, who could take one before the server does.
_PORTS = range(20_000, 32_000)
EXIT_SECONDS = 30  # the server gives its models so long to end when it is told to stop


class LocalServer:
    """A running tritonserver on loopback ports; use it in a `with` block."""

    def __init__(
        self,
        repository: Path,
        log: Path,
        *,
        ports: tuple[int, int, int] | None = None,
        arguments: tuple[str, ...] = (),
        exit_seconds: int = EXIT_SECONDS,
    ) -> None:
        """Start it; `wait_until_ready` says when it serves.

        `ports`: HTTP, gRPC, metrics; None takes free ones. A port that somebody has ends the
        program: whoever asks there would be answered by another server.
        """
        self.log = log
        self.left_behind: list[
            Path
        ] = []  # shared memory that the server's models had not given back when it ended
        _require_free(ports or ())
        self.http, self.grpc, self.metrics = ports or free_ports()
        self.shm_prefix = f"dflash_{os.getpid()}_{self.http}_"
        site, python = _site_packages()
        server = site / "pytriton" / "tritonserver"
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_backends(site, python)}",
            f"--cache-directory={server / 'caches'}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            f"--metrics-port={self.metrics}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={exit_seconds}",
            *arguments,
        ]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                env=_environment(site),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the address of HTTP requests."""
        return f"http://127.0.0.1:{self.http}"

    def wait_until_ready(self, seconds: float = 300.0) -> None:
        """Wait until every model is loaded; a server that ends or does not get there raises
        RuntimeError with its log.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"tritonserver ended with {self.process.returncode}:\n{self._log_text()}"
                )
            try:
                urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(
            f"tritonserver is not ready after {seconds:.0f} s:\n{self._log_text()}"
        )

    def _log_text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def stubs(self) -> list[int]:
        """Process ids of the model instances, also of a server that has ended without them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                if any(
                    word.startswith(self.shm_prefix.encode())
                    for word in path.read_bytes().split(b"\0")
                ):
                    found.append(int(path.parent.name))
        return found

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it, by a signal first, and clean up behind it; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(EXIT_SECONDS + 30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in (
            self.stubs()
        ):  # a server that was killed leaves them behind, and their shared memory
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for region in self.shared_memory():
            self.left_behind.append(region)
            region.unlink()
        return self.process.returncode

    def shared_memory(self) -> list[Path]:
        """Return the shared memory regions of this server's models."""
        return sorted(Path("/dev/shm").glob(f"{self.shm_prefix}*"))


def packaged_servers() -> list[Path]:
    """Return the server in the environment, as a list of at most one."""
    return sorted(VENV.glob("lib/python3.*/site-packages/pytriton/tritonserver"))


def _site_packages() -> tuple[Path, str]:
    found = packaged_servers()
    if not found:
        sys.exit(f"{VENV}: no Triton server in it. Make it: make .venv-triton/.ready")
    site = found[0].parents[1]
    return site, site.parent.name.removeprefix("python")


def _backends(site: Path, python: str) -> Path:
    """Return a backend directory with the stub of this Python beside the Python backend.

    The server looks for it there.
    """
    server, made = site / "pytriton" / "tritonserver", VENV / "backends"
    if not made.exists():
        staging = VENV / f"backends-{os.getpid()}"
        shutil.copytree(server / "backends" / "python", staging / "python")
        stub = "triton_python_backend_stub"
        shutil.copy(server / "python_backend_stubs" / python / stub, staging / "python" / stub)
        (staging / "python" / stub).chmod(0o755)
        try:
            staging.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(staging)
    return made


def _environment(site: Path) -> dict[str, str]:
    # The stub loads libpython from the library path and finds its packages through the first
    # python3 of the path.
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    python = VENV / "bin" / "python"
    libraries = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout.strip()
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONHOME", "VIRTUAL_ENV")
    }
    return inherited | {
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}{os.pathsep}{libraries}",
    }


def _require_free(ports: tuple[int, ...]) -> None:
    for port in ports:
        if problem := _problem_of(port):
            sys.exit(f"port {port}: {problem}. Stop what serves there, or give other ports.")


def _problem_of(port: int) -> str | None:
    """Return why a server cannot have a port, None if it can."""
    with closing(socket.socket()) as one:
        # A port that is only being given up is free.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror
    return None


def free_ports() -> tuple[int, int, int]:
    """Return three loopback ports that nobody has now."""
    shuffled = random.sample(_PORTS, len(_PORTS))
    http, grpc, metrics = islice((port for port in shuffled if _problem_of(port) is None), 3)
    return http, grpc, metrics
