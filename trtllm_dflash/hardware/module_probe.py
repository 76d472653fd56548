"""Tries to import a module in a process of its own: it may be broken, large, or end the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

_SECONDS = 120  # a cold disk may take a while to read 300 MB of libraries
_SCRIPT = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
print(getattr(module, "__version__", ""))
"""


@dataclass(frozen=True)
class ImportedModule:
    """The version of a module that can be imported, "" if it has none, or why it cannot be."""

    version: str
    failure: str | None = None


@cache
def probe_module(name: str) -> ImportedModule:
    """Import a module as this process would, without its working directory; once a process."""
    modules = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, name],
            env=os.environ | modules,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ImportedModule("", f"it was not imported within {_SECONDS} s")
    except OSError as error:
        return ImportedModule("", str(error))
    if done.returncode == 0:
        return ImportedModule(done.stdout.strip().rpartition("\n")[2])
    said = done.stderr.strip().rpartition("\n")[2]
    if done.returncode < 0 or not said:
        number = -done.returncode
        known = number in set(signal.Signals)
        ending = signal.Signals(number).name if known else f"status {done.returncode}"
        said = f"{said or 'its process said nothing'} (it ended with {ending})"
    return ImportedModule("", said)
