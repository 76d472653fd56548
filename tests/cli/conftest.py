"""Tiny engines for the commands, and `run` on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fixtures.engines import build_here
from trtllm_dflash.cli import main
from trtllm_dflash.options.build import BuildConfig

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def engines(
    tmp_path_factory: pytest.TempPathFactory,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
) -> Callable[..., Path]:
    """`engines("dflash" | "plain" | "no_tokenizer" | "no_template")`: engine directories of the
    tiny Llama.
    """
    built: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in built:
            target = make_target("llama", tokenizer=kind != "no_tokenizer", eos_token_ids=(95,))
            drafter = None if kind == "plain" else str(make_drafter(target))
            if kind == "no_template":
                target = _without_template(target, tmp_path_factory.mktemp("target"))
            sizes: dict[str, int] = {
                "max_batch_size": 2,
                "max_seq_len": 128,
                "max_input_len": 60,
                "max_num_tokens": 16,
            }
            output_dir = tmp_path_factory.mktemp("engine") / kind
            config = BuildConfig(str(target), output_dir, drafter=drafter, **sizes)
            built[kind] = build_here(config)
        return built[kind]

    return get


def _without_template(target: Path, copy: Path) -> Path:
    for path in target.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["chat_template"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    return copy


@pytest.fixture
def run(engines: Callable[..., Path]) -> Run:
    """`run("hello", "--raw", kind="dflash", stdin=None)`: the result of `dflash-trt run ENGINE ...`
    on one thread.
    """

    def invoke(
        *arguments: str | Path, kind: str = "dflash", stdin: str | bytes | None = None
    ) -> Result:
        fixed = ["run", str(engines(kind)), "--num-threads", "1"]
        return CliRunner().invoke(
            main, [*fixed, *(str(argument) for argument in arguments)], input=stdin
        )

    return invoke
