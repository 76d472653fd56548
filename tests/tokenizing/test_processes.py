"""Processes with foreign code: they die alone, are replaced, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.tokenizing.process_table import is_running, pid_of, wait_until_gone
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.tokenizing import processes
from trtllm_dflash.tokenizing.tokenizer_process import TokenizerFacts, end_unused_processes


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    made = Tokenizer(tiny.write_byte_level(tmp_path))
    assert made.decode(made.encode("ab")) == "ab"
    return made


def reader_of(tokenizer: Tokenizer) -> int:
    reader = tokenizer._process._reader
    assert reader is not None
    return reader.pid


@pytest.mark.parametrize("role", ["encode", "decode"])
def test_a_killed_process_is_replaced(tokenizer: Tokenizer, role: str) -> None:
    before = pid_of(tokenizer, role)
    os.kill(before, signal.SIGKILL)
    assert tokenizer.decode(tokenizer.encode("cd")) == "cd"
    assert pid_of(tokenizer, role) != before


def test_a_killed_reader_is_replaced_with_its_children(tokenizer: Tokenizer) -> None:
    decoder = pid_of(tokenizer, "decode")
    os.kill(reader_of(tokenizer), signal.SIGKILL)
    wait_until_gone(decoder)
    assert tokenizer.decode(tokenizer.encode("cd")) == "cd"


@pytest.mark.slow
def test_a_killed_root_is_replaced_with_all_others(tokenizer: Tokenizer) -> None:
    root = processes._root
    assert root is not None
    root.process.kill()
    wait_until_gone(reader_of(tokenizer))
    assert tokenizer.decode(tokenizer.encode("cd")) == "cd"
    assert processes._root is not root


@pytest.mark.usefixtures("no_other_tokenizer")
def test_the_root_ends_when_no_tokenizer_is_in_use(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    assert tokenizer.encode("ab") == [97, 98]
    root = processes._root
    assert root is not None
    end_unused_processes()
    assert processes._root is root
    assert tokenizer.encode("ab") == [97, 98]
    tokenizer.close()
    end_unused_processes()
    assert processes._root is None
    assert root.process.returncode == -signal.SIGKILL
    assert tokenizer.decode(tokenizer.encode("cd")) == "cd"


@pytest.mark.usefixtures("no_other_tokenizer")
def test_the_root_stays_while_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread is between asking the root for a process and its answer."""
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    assert tokenizer.encode("a") == [97]
    root = processes._root
    assert root is not None
    tokenizer.close()
    load = tokenizer._process._load

    def interrupted() -> TokenizerFacts:
        end_unused_processes()
        return load()

    monkeypatch.setattr(tokenizer._process, "_load", interrupted)
    assert tokenizer.encode("ab") == [97, 98]
    assert processes._root is root


def test_a_stopped_call_does_not_answer_the_next_one(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C leaves a call in the middle."""
    before = pid_of(tokenizer, "decode")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trtllm_dflash.tokenizing.framing.receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.decode(list(b"first"))
    assert tokenizer.decode(list(b"second")) == "second"
    assert pid_of(tokenizer, "decode") != before


def test_closing_ends_the_processes(tokenizer: Tokenizer) -> None:
    pids = [reader_of(tokenizer), pid_of(tokenizer, "encode"), pid_of(tokenizer, "decode")]
    tokenizer.close()
    for pid in pids:
        wait_until_gone(pid)
    assert tokenizer.encode("a") == [97]


def test_a_forgotten_tokenizer_ends_its_processes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    tokenizer.encode("a")
    encoder = pid_of(tokenizer, "encode")
    assert is_running(encoder)
    del tokenizer
    wait_until_gone(encoder)


def test_calls_from_many_threads_get_their_own_answers(tokenizer: Tokenizer) -> None:
    wrong: list[str] = []

    def ask(letter: str) -> None:
        for length in range(1, 40):
            text = letter * length
            if tokenizer.decode(tokenizer.encode(text)) != text:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_has_processes_of_its_own(tokenizer: Tokenizer) -> None:
    """A child that used its parent's sockets would steal answers."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sockets = tokenizer._process._reader, processes._root
        os.write(writing, b"none" if sockets == (None, None) else b"shared")
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 10) == b"none"
    os.waitpid(child, 0)
    os.close(reading)
    assert tokenizer.decode(tokenizer.encode("cd")) == "cd"


ORPHANS = """
import os, sys
from pathlib import Path
for number in map(int, sys.argv[2:]): os.close(number)
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
tokenizer = Tokenizer(Path(sys.argv[1]))
assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
from trtllm_dflash.tokenizing import processes
pids = [processes._root.process.pid, tokenizer._process._reader.pid]
pids += [role.process.pid for role in tokenizer._process._roles.values()]
(Path(sys.argv[1]) / "pids").write_text(" ".join(map(str, pids)))
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(), (0, 1, 2)], ids=["streams", "no streams"])
def test_no_process_outlives_a_killed_parent(tmp_path: Path, closed: tuple[int, ...]) -> None:
    tiny.write_byte_level(tmp_path)
    arguments = [str(tmp_path), *map(str, closed)]
    home = tmp_path / "home"
    home.mkdir()
    environment = dict(os.environ) | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS, *arguments], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    for pid in (tmp_path / "pids").read_text().split():
        wait_until_gone(int(pid))
    assert list(home.rglob("*")) == []


def test_an_embedded_python_finds_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/tritonserver/triton_python_backend_stub")
    found = processes.python_executable()
    assert Path(found).name.startswith("python3")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert version in said.stdout
