"""The processes of a tokenizer, for tests that stop or kill one."""

from __future__ import annotations

import time
from pathlib import Path

from tests.patience import PATIENCE
from trtllm_dflash.runtime.text.tokenizer import Tokenizer


def pid_of(tokenizer: Tokenizer, role: str) -> int:
    """Return the process that does a role; it must have done something before."""
    process = tokenizer._process._roles[role].process
    assert process is not None
    return process.pid


def wait_until_gone(pid: int, seconds: float = PATIENCE) -> None:
    """Fail unless a process ends in time; one that nobody has waited for has ended."""
    until = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < until, f"process {pid} still runs"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Tell whether a process is there and not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
