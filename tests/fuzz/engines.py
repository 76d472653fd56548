"""Mutated engine directories, and what loading, inspecting and answering makes of each.

Most mutants have a manifest that agrees with the damage, as after an edit or a copy out of two
engines. There the checks of config.json and of the graph are all that is left.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from tests.fuzz.mutate import damage_file, mutate_bytes, mutate_json_text
from tests.fuzz.outcomes import WrongAnswerError
from trtllm_dflash.engine_dir.inspection import inspect_engine
from trtllm_dflash.engine_dir.manifest import file_entry
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.runtime.engine import Engine

PROMPT = [3, 4, 5]
NEW_TOKENS = 6
JSON_FILES = ("config.json", "manifest.json")
# Files whose bytes an engine with an agreeing manifest has to believe: other weights are another
# model, and a graph that loads is another graph.
BELIEVED = ("rank0.safetensors", "model.onnx")


@cache
def source() -> Path:
    """Return an engine, built once a process; it is not to be changed."""
    temporary = tempfile.TemporaryDirectory(prefix="fuzz-engines-")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    target = tiny_target(folder / "t", "qwen3", tied=True, eos_token_ids=(95,))
    drafter = tiny_drafter(folder / "d", target)
    sizes = {"max_batch_size": 2, "max_seq_len": 64, "max_num_tokens": 8}
    build_here(BuildConfig(str(target), folder / "e", drafter=str(drafter), **sizes))
    return folder / "e"


@cache
def right_answer() -> list[int]:
    """Return what the engine itself answers."""
    return _answer(Engine.load(source(), num_threads=1))


def _answer(engine: Engine) -> list[int]:
    options = {"max_tokens": NEW_TOKENS, "temperature": 0.0}
    (answer,) = engine.generate([PROMPT], **options)
    return answer.token_ids


def try_mutant(number: int) -> str:
    """Load, inspect and ask mutant `number`; return what was accepted.

    Raises:
        WrongAnswerError: if its answer differs though nothing that decides it was changed.
    """
    random = Random(f"engine {number}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        directory = Path(shutil.copytree(source(), Path(folder, "e")))
        believed = _damage(directory, random)
        refusals = []
        for look in (_inspect, _load):
            try:
                look(directory, believed)
            except DFlashError as error:
                refusals.append(error)
        if refusals:
            raise refusals[-1]
    return f"accepted, believed {believed}"


def _inspect(directory: Path, _: bool) -> None:
    found = inspect_engine(directory)
    json.dumps(found.to_json())
    assert all(line.isprintable() for _, lines in found.sections() for line in lines)


def _load(directory: Path, believed: bool) -> None:
    engine = Engine.load(directory, num_threads=1)
    tokens = _answer(engine)
    stops = engine.config.eos_token_ids
    expected = right_answer()
    cut = [place for place, token in enumerate(expected) if token in stops]
    if tokens != expected[: cut[0] + 1 if cut else None] and not believed:
        raise WrongAnswerError(f"{tokens}, expected {expected}")


def _damage(directory: Path, random: Random) -> bool:
    """Change one file, or two; return whether the result is another model, and believed."""
    believed = False
    for _ in range(random.choice((1, 1, 1, 2))):
        name = random.choice((*JSON_FILES, *JSON_FILES, *BELIEVED))
        path = directory / name
        if not path.is_file():
            continue
        if name in JSON_FILES and random.random() < 0.9:
            text = path.read_text(encoding="utf-8", errors="replace")
            changed = _mutate_text(text, random)
            path.unlink()
            path.write_bytes(changed)
        elif name in JSON_FILES or random.random() < 0.5:
            damage_file(path, random)
        else:
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(mutate_bytes(data, random))
        agrees = name != "manifest.json" and random.random() < 0.85
        if agrees and _agree(directory, name):
            believed = believed or name in BELIEVED
    return believed


def _mutate_text(text: str, random: Random) -> bytes:
    try:
        return mutate_json_text(text, random, times=random.choice((1, 1, 2, 5)))
    except (ValueError, RecursionError):  # it is no JSON any more
        return mutate_bytes(text.encode(errors="replace"), random)


def _agree(directory: Path, name: str) -> bool:
    """Let the manifest list a file as it is now; return whether that was possible."""
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        manifest["files"][name] = file_entry(directory / name)
        path.write_text(json.dumps(manifest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return True
