"""dflash-trt profile: what DFlash gives, measured here; with --estimate, reckoned for another
device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trtllm_dflash.cli.options import Function, options_from
from trtllm_dflash.cli.output_files import check_file, write_file
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.profiling import ProfileConfig

if TYPE_CHECKING:
    from trtllm_dflash.profile.result import Profile

_FILES = (
    "json",
    "schedule",
    "html",
)  # options, in the order in which they are written: what can fail comes last
# Flag -> the command in cli/estimate.py that takes over, with options of its own.
_INSTEAD = {"--estimate": "estimate", "--validate-estimate": "validate_estimate"}


class _MeasureOrEstimate(click.Command):
    """Hands over to another command where one of the flags in _INSTEAD is among the arguments."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the command that is meant."""
        flag = next((flag for flag in _INSTEAD if flag in args), None)
        if flag is None:
            return super().make_context(info_name, args, parent, **extra)
        command: click.Command = getattr(
            import_module("trtllm_dflash.cli.estimate"), _INSTEAD[flag]
        )
        shared = [
            option
            for option in self.params
            if option.name == "verbose" and option not in command.params
        ]
        command.params += shared
        rest = [argument for argument in args if argument != flag]
        return command.make_context(f"{info_name} {flag}", rest, parent, **extra)


def _file_option(name: str, text: str) -> Callable[[Function], Function]:
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", help=text)


@click.command(cls=_MeasureOrEstimate)
@click.argument("engine", type=click.Path(path_type=Path))
@options_from(ProfileConfig)
@_file_option(
    "--prompts", 'ask these: one a line, or JSON lines with "prompt" and "category"; -: stdin'
)
@click.option(
    "--raw", is_flag=True, help="give prompts to the model as they are, without its chat template"
)
@_file_option("--json", "write all figures there as JSON")
@_file_option("--html", "write a report there: one page with plots")
@_file_option(
    "--schedule", "write the advised drafts by batch size there, for run --draft-len-schedule"
)
@click.option(
    "--estimate",
    is_flag=True,
    expose_value=False,
    help="measure nothing: reckon for another GPU (--estimate --help)",
)
@click.option(
    "--validate-estimate",
    is_flag=True,
    expose_value=False,
    help="compare that with all published figures",
)
@click.pass_context
def profile(
    ctx: click.Context, /, engine: Path, prompts: Path | None, raw: bool, **options: Any
) -> None:
    """Measure ENGINE, a DFlash engine, and plain decoding beside it: speed, acceptance, and where
    the time goes.

    All systems answer the same prompts and take turns. It says which number of drafts pays at which
    batch size. In place of ENGINE, a file that --json wrote is shown again; nothing is then
    measured.
    """
    if engine.is_file():
        _refuse_measuring(ctx, engine)
    files = {name: options.pop(name) for name in _FILES}
    config = ProfileConfig(engine, **options)
    _check_files(files)
    from trtllm_dflash.cli.profile_table import print_profile
    from trtllm_dflash.profile.load import load

    found = load(engine) if engine.is_file() else _measure(config, prompts, raw=raw)
    try:  # neither a file nor a terminal that fails takes along what was measured
        _write(files, found)
    finally:
        print_profile(found)


def _refuse_measuring(ctx: click.Context, path: Path) -> None:
    """Raise UsageError for an option that says how to measure, beside a file of what was
    measured.
    """
    for option in ctx.command.params:
        name = option.name or ""
        if (
            name in ("engine", "verbose", *_FILES)
            or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE
        ):
            continue
        raise UsageError(
            f"{option.opts[0]}: {path} is a file, and what profile --json wrote is only shown"
            " again. Leave the option out, or give an engine directory to measure."
        )


def _measure(config: ProfileConfig, path: Path | None, *, raw: bool) -> Profile:
    from trtllm_dflash.cli.prompts import read_prompts
    from trtllm_dflash.log import progress_bar
    from trtllm_dflash.profile.profiler import profile
    from trtllm_dflash.profile.prompts import NO_CATEGORY, Prompt, PromptSet

    asked = PromptSet.builtin(chat=not raw)
    if path is not None:
        prompts = (
            Prompt(line.prompt, line.category or NO_CATEGORY, line.where)
            for line in read_prompts(path)
        )
        asked = PromptSet(str(path), tuple(prompts), chat=not raw)
    with progress_bar() as progress:
        return profile(config, asked, progress=progress)


def _check_files(files: Mapping[str, Path | None]) -> None:
    """Refuse what could not be written, before anything is measured."""
    for name, path in files.items():
        check_file(f"--{name}", path)
    if files["html"] is not None:
        from trtllm_dflash.profile.theme import require_matplotlib

        require_matplotlib()


def _write(files: Mapping[str, Path | None], found: Profile) -> None:
    texts = {
        "json": lambda: json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n",
        "schedule": lambda: json.dumps(found.advice.draft_len_schedule) + "\n",
        "html": lambda: _page(found),
    }
    for name, path in files.items():
        if path is not None:
            write_file(f"--{name}", path, texts[name]())


def _page(found: Profile) -> str:
    from trtllm_dflash.profile.html_report import page

    return page(found)
