"""Output and files do not depend on the terminal's encoding or the locale."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trtllm_dflash.cli import main
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import typed_text


def told(encoding: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> bytes:
    """Return what a command writes to a stdout of an encoding."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 0
    sys.stdout.flush()
    return written.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_output_replaces_what_it_cannot_show(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("profile", "--estimate", "--target", "gpt-oss-20b", "--arch", "sm103")
    shown = told(encoding, monkeypatch, *arguments)
    assert b"drafts to verify" in shown
    # click takes ASCII for UTF-8 that nobody has told.
    assert ("τ".encode() in shown) == (encoding in ("utf-8", "ascii"))


@pytest.mark.slow
def test_commands_work_in_the_c_locale(engines: Callable[..., Path], tmp_path: Path) -> None:
    """What cannot be encoded as ASCII is in the tables and in the exported pages."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    engine = str(engines("dflash"))
    pair = ("--target", "gpt-oss-20b", "--arch", "sm100", "--gpus", "1")
    for arguments in (
        ("eval", engine, "--text-tokens", "20"),
        ("run", engine, "hi", "--max-tokens", "2"),
        ("inspect", engine),
        ("export-triton", engine, "--output-dir", "models"),
        ("export-trtllm", *pair, "--output-dir", "handover"),
    ):
        done = subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-m", "trtllm_dflash", *arguments],
            cwd=tmp_path,
            env=os.environ | locale,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ours = [line for line in done.stderr.splitlines() if b"EncodingWarning" in line]
        assert [line for line in ours if b"/trtllm_dflash/" in line] == []
    for page in ("models/dflash/README.md", "handover/README.md"):
        (tmp_path / page).read_text(encoding="utf-8")


@pytest.mark.slow
def test_closed_pipe_ends_quietly() -> None:
    command = f"{sys.executable} -m trtllm_dflash list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "1")  # 0: it had written all of it before


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("inspect", "ENGINE"), ("--help",), ("--version",)])
def test_full_stdout_is_told(arguments: Sequence[str], engines: Callable[..., Path]) -> None:
    engine = str(engines("dflash"))
    typed = [engine if argument == "ENGINE" else argument for argument in arguments]
    command = [sys.executable, "-m", "trtllm_dflash", *typed]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    words = "error: the output: cannot be written (No space left on device). Free space there"
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == 1


def test_typed_text_is_utf8_in_every_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    in_ascii = "h\udcc3\udca9"  # as Python reads the bytes of "hé" in the C locale
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert [typed_text("hé"), typed_text(in_ascii)] == ["hé", "hé"]
    with pytest.raises(UsageError, match=r"the text 'caf\\udce9' is not UTF-8"):
        typed_text("caf\udce9")
