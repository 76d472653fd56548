"""The model repository: a directory that `tritonserver --model-repository` takes as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.atomic import atomic_directory, check_creatable
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MANIFEST_FILE, TOKENIZER_FILE
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.runtime.engine_thread import MAX_WAITING
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.triton_server.io_table import INPUTS, OUTPUTS, REQUIRED, Field
from trtllm_dflash.triton_server.readme import ENGINE_COPY, model_page

MODEL_FILE = '''"""Written by dflash-trt export-triton: the model is part of the package trtllm_dflash."""

try:
    from trtllm_dflash.triton_server.model import TritonPythonModel  # noqa: F401
except ModuleNotFoundError as error:
    raise RuntimeError(
        f"{error}: install dflash-trt for the Python that runs this model (see the README.md beside config.pbtxt)"
    ) from error
'''
# How long requests may go on when the model is unloaded or the server ends; below Triton's
# --exit-timeout-secs of 30.
DRAIN_SECONDS = 20


@dataclass(frozen=True)
class Settings:
    """What config.pbtxt says to the model, as its parameters."""

    engine_dir: str  # absolute, or within the model's directory
    engine_digest: (
        str  # of the engine's manifest, so that an engine built anew is not taken for this one
    )
    max_waiting: int = MAX_WAITING
    drain_seconds: int = DRAIN_SECONDS
    prompt_tokens_per_step: int | None = None
    num_threads: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read the parameters of a parsed model configuration; missing or strange ones raise
        EngineError.
        """
        given = {name: row["string_value"] for name, row in config.get("parameters", {}).items()}
        for name in ("engine_dir", "engine_digest"):
            if not given.get(name):
                raise EngineError(f"config.pbtxt has no parameter {name}. Export the engine again.")
        numbers: dict[str, int] = {}
        for field in fields(cls)[2:]:
            text = given.get(field.name, "")
            if text and (not text.isdecimal() or int(text) < 1):
                raise EngineError(
                    f"config.pbtxt: {field.name} is {text!r}, expected an integer of at least 1."
                )
            numbers |= {field.name: int(text)} if text else {}
        return replace(cls(given["engine_dir"], given["engine_digest"]), **numbers)  # type: ignore[arg-type]

    def parameters(self) -> dict[str, str]:
        """As they stand in config.pbtxt, those left to the model's defaults as well, so that they
        can be edited.
        """
        return {
            field.name: "" if getattr(self, field.name) is None else str(getattr(self, field.name))
            for field in fields(self)
        }


@dataclass(frozen=True)
class ExportReport:
    """What was written, and for which engine."""

    model_directory: Path
    config: EngineConfig


def export(
    engine: Path,
    repository: Path,
    *,
    name: str = "dflash",
    instances: int = 1,
    gpus: tuple[int, ...] = (),
    cpu: bool = False,
    copy: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Write `repository`/`name`, a model that serves the engine directory `engine`.

    Args:
        instances: engines on each of the GPUs, or on the processor.
        gpus: Triton's numbers of the GPUs; none means every GPU that the server sees.
        cpu: refuse an engine that is not for the CPU.
        copy: put a copy of the engine into the repository, instead of its path.
        overwrite: replace a model of that name that an export wrote.

    Raises:
        UsageError: for options that do not fit together or to the engine.
        EngineError: if the directory is no intact engine with a tokenizer.
    """
    config = EngineConfig.load(engine)
    differences = manifest.check(engine, deep=False)
    if differences:
        raise EngineError(
            f"{engine} is not what its build wrote: {'; '.join(differences)}. Build it again."
        )
    if not (engine / TOKENIZER_FILE).is_file():
        raise EngineError(
            f"{engine}: no {TOKENIZER_FILE}, and requests to a server are text. "
            "Build it from a checkpoint with its tokenizer files."
        )
    check_options(config, name, instances, gpus, cpu=cpu)
    directory = repository / name
    _check_place(directory, overwrite)
    place = ENGINE_COPY if copy else str(engine.resolve())
    settings = Settings(place, engine_digest(engine))
    chat = Tokenizer(engine).has_chat_template
    with atomic_directory(directory) as staging:
        (staging / "1").mkdir()
        (staging / "1" / "model.py").write_text(MODEL_FILE)
        (staging / "config.pbtxt").write_text(config_pbtxt(name, config, settings, instances, gpus))
        page = model_page(name, config, engine=None if copy else engine.resolve(), chat=chat)
        (staging / "README.md").write_text(page)
        if copy:
            shutil.copytree(engine, staging / ENGINE_COPY)
    return ExportReport(directory, config)


def engine_digest(engine: Path) -> str:
    """What tells one build of an engine from another."""
    return manifest.file_digest(engine / MANIFEST_FILE)


def config_pbtxt(
    name: str, config: EngineConfig, settings: Settings, instances: int, gpus: tuple[int, ...]
) -> str:
    """The model's configuration, in Triton's text format."""
    kind = "KIND_CPU" if config.gpu_arch == "cpu" else "KIND_GPU"
    where = f" gpus: [ {', '.join(map(str, gpus))} ]" if gpus else ""
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: {_quoted(value)} }} }}'
        for key, value in settings.parameters().items()
    )
    return f"""# Written by dflash-trt export-triton for an engine for {config.gpu_arch}.
name: "{name}"
backend: "python"
# Requests are batched by the engine, step by step: each brings one prompt, with a first dimension of 1.
max_batch_size: 1
model_transaction_policy {{ decoupled: true }}
input [
{_ports(INPUTS)}
]
output [
{_ports(OUTPUTS)}
]
instance_group [ {{ count: {instances} kind: {kind}{where} }} ]
{parameters}
"""


def _ports(table: tuple[Field, ...]) -> str:
    rows = []
    for field in table:
        optional = " optional: true" if table is INPUTS and field.name != REQUIRED else ""
        rows.append(
            f'  {{ name: "{field.name}" data_type: TYPE_{field.dtype} dims: [ {field.size}'
            f" ]{optional} }}"
        )
    return ",\n".join(rows)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def check_options(
    config: EngineConfig, name: str, instances: int, gpus: tuple[int, ...], *, cpu: bool
) -> None:
    """Raise UsageError for options that do not fit the engine."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(f"--name {name!r}: expected letters, digits, and _ . - behind the first.")
    if instances < 1:
        raise UsageError(f"--instances is {instances}, expected at least 1.")
    if cpu and config.gpu_arch != "cpu":
        raise UsageError(
            f"--cpu is for engines built with --arch cpu, and this one is for {config.gpu_arch}."
        )
    if gpus and config.gpu_arch == "cpu":
        raise UsageError("--gpus is for engines on GPUs, and this one is for the CPU.")


def _check_place(directory: Path, overwrite: bool) -> None:
    if not directory.exists():
        check_creatable("--output", directory)
        return
    if not overwrite:
        raise UsageError(
            f"{directory} exists. Give another --name or --output, or --overwrite to replace that"
            " model."
        )
    model = directory / "1" / "model.py"
    if not model.is_file() or model.read_text(errors="replace") != MODEL_FILE:
        raise UsageError(
            f"--overwrite replaces a model that an export wrote, and {directory} is something else."
        )
