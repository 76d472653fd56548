"""The model repository: a directory that `tritonserver --model-repository` takes as it is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trtllm_dflash.atomic.output_directory import (
    atomic_directory,
    check_output_dir,
    check_replaceable,
)
from trtllm_dflash.atomic.swap import Written
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MANIFEST_FILE, TOKENIZER_FILE
from trtllm_dflash.engine_dir.replacing import recognize_engine
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.templates import render
from trtllm_dflash.triton_server.io_table import ALL_INPUTS, OUTPUTS
from trtllm_dflash.triton_server.readme import ENGINE_COPY, model_page
from trtllm_dflash.triton_server.settings import Settings
from trtllm_dflash.utf8_path import require_utf8

CONFIG_FILE = "config.pbtxt"
PAGE_FILE = "README.md"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and for which engine."""

    model_directory: Path
    engine_config: EngineConfig


def export(config: TritonExportConfig, *, overwrite: bool = False) -> ExportReport:
    """Write a model that serves an engine into a model repository.

    Args:
        config: the engine, the repository, and how the engine is served.
        overwrite: replace a model of that name that an export wrote.

    Raises:
        UsageError: for options that do not fit the engine, or a directory that is in the way.
        EngineError: if the directory is no intact engine with a tokenizer.
    """
    engine = config.engine
    engine_config = _load_engine_config(engine)
    check_options(config, engine_config)
    directory = config.output_dir / config.name
    if not config.copy:
        require_utf8("ENGINE", engine.resolve())
    _check_model_directory(directory, overwrite)
    settings = Settings(
        ENGINE_COPY if config.copy else str(engine.resolve()), engine_digest(engine)
    )
    page = model_page(
        config.name,
        engine_config,
        engine=None if config.copy else engine.resolve(),
        chat=_has_chat_template(engine, engine_config),
        licence=manifest.load(engine).get("drafter_licence"),
    )
    replaces = recognize_model if overwrite else None
    with atomic_directory(directory, replaces=replaces) as staging:
        (staging / "1").mkdir()
        pbtxt = config_pbtxt(config, engine_config, settings)
        (staging / "1" / "model.py").write_text(_model_file(), encoding="utf-8")
        (staging / CONFIG_FILE).write_text(pbtxt, encoding="utf-8")
        (staging / PAGE_FILE).write_text(page, encoding="utf-8")
        if config.copy:
            shutil.copytree(engine, staging / ENGINE_COPY)
    return ExportReport(directory, engine_config)


def engine_digest(engine: Path) -> str:
    """Return the digest of an engine's manifest, which differs from build to build."""
    return manifest.file_digest(engine / MANIFEST_FILE)


def config_pbtxt(
    config: TritonExportConfig, engine_config: EngineConfig, settings: Settings
) -> str:
    """Return the model's configuration in Triton's text format."""
    parameters = {key: _quoted(value) for key, value in settings.parameters().items()}
    return render(
        "trtllm_dflash.triton_server",
        "config.pbtxt.j2",
        name=config.name,
        gpu_arch=engine_config.gpu_arch,
        instances=config.instances,
        gpus=config.gpu_indices,
        inputs=list(ALL_INPUTS.values()),
        outputs=OUTPUTS,
        parameters=parameters,
    )


def _has_chat_template(engine: Path, engine_config: EngineConfig) -> bool:
    tokenizer = Tokenizer.of_engine(engine, engine_config)
    if tokenizer is None:
        return False
    try:
        return tokenizer.has_chat_template
    finally:
        tokenizer.close()


def _model_file() -> str:
    return render("trtllm_dflash.triton_server", "model.py.j2")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def check_options(config: TritonExportConfig, engine_config: EngineConfig) -> None:
    """Raise UsageError for options that do not fit the engine."""
    gpu_arch = engine_config.gpu_arch
    if config.cpu and gpu_arch != "cpu":
        raise UsageError(
            f"--cpu is for engines built with --arch cpu, and this one is for {gpu_arch}."
        )
    if config.gpu_indices and gpu_arch == "cpu":
        raise UsageError("--gpu-ids is for engines on GPUs, and this one is for the CPU.")


def _load_engine_config(engine: Path) -> EngineConfig:
    """Read an engine's configuration; EngineError if it is not intact or has no tokenizer."""
    engine_config = EngineConfig.load(engine)
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
    return engine_config


def _check_model_directory(directory: Path, overwrite: bool) -> None:
    if directory.exists() and not overwrite:
        raise UsageError(
            f"{directory} exists. Give another --name or --output-dir, or --overwrite to replace"
            " that model."
        )
    if check_output_dir(directory, overwrite=overwrite):
        return
    check_replaceable(directory, recognize_model, what="a model that an export wrote")


def recognize_model(directory: Path) -> Written:
    """Return what an export wrote into a model's directory, and what Python has cached there.

    Raises:
        EngineError: if it is something else.
    """
    model = directory / "1" / "model.py"
    if (
        not model.is_file()
        or model.read_text(errors="replace", encoding="utf-8") != _model_file()
    ):
        raise EngineError(f"{directory} is something else")
    files = {"1/model.py", CONFIG_FILE, PAGE_FILE}
    files |= {f"1/__pycache__/{path.name}" for path in model.parent.glob("__pycache__/*.pyc")}
    copy = directory / ENGINE_COPY
    if copy.is_dir():
        files |= {f"{ENGINE_COPY}/{name}" for name in recognize_engine(copy).files}
    return Written(manifest.file_digest(directory / CONFIG_FILE), frozenset(files))
