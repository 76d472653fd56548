"""Models whose tokenizer, chat template or engine fails for some requests and not for others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.files import MANIFEST_FILE
from trtllm_dflash.engine_dir.manifest import file_entry
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.triton_server.export import export

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
# What a conversation's last message makes the template do.
TRAPS = {
    "loop": LOOP,
    "zero": "{{ 1 / 0 }}",
    "none": "{{ none + 'a' }}",
    "huge": "{{ 'a' * 99999999999 }}",
    "include": "{% include 'x' %}",
    "deep": "{{ raise_exception('not with me') }}",
}
# They match nothing, and panic for a long row of one letter in a prompt or an answer.
PANIC = {"x": "(x+x+)+\u0001", "z": "(z+z+)+\u0001"}
PANIC_LENGTH = 40

FAILING_STEPS = """
import random
from trtllm_dflash.triton_server.model import TritonPythonModel as Model


class TritonPythonModel(Model):
    def initialize(self, args):
        super().initialize(args)
        decode, chance = self._engine._session.decode, random.Random(5)

        def breaks(count, width, **rest):
            if chance.random() < 0.02:
                raise RuntimeError("the device is on fire")
            decode(count, width, **rest)

        self._engine._session.decode = breaks
"""


def write_hostile_models(engine: Path, repository: Path, work: Path) -> None:
    """Write the models `trapped` (template), `panics` (encode), `mute` (decode) and `breaking`."""
    config = _read(engine / "tokenizer_config.json")
    tokenizer = _read(engine / "tokenizer.json")
    traps = []
    for place, (word, trap) in enumerate(TRAPS.items()):
        test = "if" if place == 0 else "elif"
        traps.append(f"{{% {test} messages[-1]['content'] == '{word}' %}}{trap}")
    template = f"{''.join(traps)}{{% else %}}{config['chat_template']}{{% endif %}}"
    _export(
        _changed(
            engine,
            work / "trapped",
            {"tokenizer_config.json": config | {"chat_template": template}},
        ),
        repository,
    )
    split = {"type": "Split", "pattern": {"Regex": PANIC["x"]}}
    split |= {"behavior": "Isolated", "invert": False}
    _export(
        _changed(
            engine, work / "panics", {"tokenizer.json": tokenizer | {"pre_tokenizer": split}}
        ),
        repository,
    )
    replace = {"type": "Replace", "pattern": {"Regex": PANIC["z"]}, "content": "z"}
    decoders = [tokenizer["decoder"]] if tokenizer.get("decoder") else []
    decoder = {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}, replace]}
    _export(
        _changed(engine, work / "mute", {"tokenizer.json": tokenizer | {"decoder": decoder}}),
        repository,
    )
    export(TritonExportConfig(engine, repository, name="breaking"))
    (repository / "breaking" / "1" / "model.py").write_text(FAILING_STEPS)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _changed(engine: Path, copy: Path, files: dict[str, Any]) -> Path:
    """Copy an engine with other files, and a manifest that says so."""
    shutil.copytree(engine, copy)
    path = copy / MANIFEST_FILE
    manifest = _read(path)
    for name, content in files.items():
        (copy / name).write_text(json.dumps(content))
        manifest["files"][name] = file_entry(copy / name)
    path.write_text(json.dumps(manifest))
    return copy


def _export(engine: Path, repository: Path) -> None:
    export(TritonExportConfig(engine, repository, name=engine.name))
