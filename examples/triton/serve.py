"""Serve an exported model repository with the server of `local_server.py` until Ctrl-C or a signal,
and say how to ask it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from local_server import LocalServer

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop(*_: Any) -> None:
    """Leave the server's `with` block, once."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # another one must not stop the stopping
    raise KeyboardInterrupt


def main() -> None:
    """Start, print a line that works, wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "repository",
        type=Path,
        help="a directory of models that dflash-trt export-triton wrote",
    )
    parser.add_argument("--model", default="dflash", help="the model that the line asks")
    parser.add_argument(
        "--ports",
        type=int,
        nargs=3,
        default=(8000, 8001, 8002),
        metavar=("HTTP", "GRPC", "METRICS"),
    )
    arguments = parser.parse_args()
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    log = Path(tempfile.gettempdir()) / f"tritonserver-{arguments.ports[0]}.log"
    try:
        with LocalServer(
            arguments.repository,
            log,
            ports=tuple(arguments.ports),
            # Explicit: a model whose engine has failed can be unloaded, and is then not ready.
            arguments=("--model-control-mode=explicit", "--load-model=*"),
        ) as server:
            server.wait_until_ready()
            body = (
                '{"text_input": "Name three fruits.", "chat": true, "max_tokens": 48, "stream":'
                " true}"
            )
            print(
                f"serving {arguments.repository}, log: {log}; Ctrl-C ends it. In another"
                " terminal:\n",
                flush=True,
            )
            print(
                f"curl -N {server.url}/v2/models/{arguments.model}/generate_stream -d '{body}'\n",
                flush=True,
            )
            code = server.process.wait()
    except KeyboardInterrupt:
        print("stopped")
    else:
        sys.exit(f"tritonserver ended by itself with {code}: see {log}")


if __name__ == "__main__":
    main()
