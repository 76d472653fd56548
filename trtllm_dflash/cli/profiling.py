"""dflash-trt profile: what DFlash gives, measured here or estimated for another GPU."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trtllm_dflash.cli.options import PATH, options_from, take, warn_of_unused
from trtllm_dflash.cli.output_files import Files, check_outputs, write_file
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.profiling import ProfileConfig, ProfileFiles
from trtllm_dflash.options.prompt_options import PromptOptions

if TYPE_CHECKING:
    from trtllm_dflash.profile.result import Profile

# Flag -> the command in cli/estimate.py that takes over, with options of its own.
_INSTEAD = {"--estimate": "estimate", "--validate-estimate": "validate_estimate"}


class _MeasureOrEstimate(click.Command):
    """The command, or another one if one of the flags in _INSTEAD is among the arguments."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Make the context of the command that is meant."""
        flag = next((flag for flag in _INSTEAD if flag in args), None)
        if flag is None:
            return super().make_context(info_name, args, parent, **extra)
        command: click.Command = getattr(
            import_module("trtllm_dflash.cli.estimate"), _INSTEAD[flag]
        )
        for option in self.params:
            if option.name == "verbose" and option not in command.params:
                command.params.append(option)
        rest = [argument for argument in args if argument != flag]
        return command.make_context(f"{info_name} {flag}", rest, parent, **extra)


@click.command(
    cls=_MeasureOrEstimate, short_help="Measure what DFlash gives, or estimate it for a GPU."
)
@click.argument("engine", type=PATH)
@options_from(ProfileConfig, PromptOptions, ProfileFiles)
@click.option(
    "--estimate",
    is_flag=True,
    expose_value=False,
    help="estimate performance on another GPU instead of measuring (see --estimate --help)",
)
@click.option(
    "--validate-estimate",
    is_flag=True,
    expose_value=False,
    help="compare estimates with all published figures",
)
@click.pass_context
def profile(ctx: click.Context, /, engine: Path, **options: Any) -> None:
    """Measure ENGINE, a DFlash engine, and plain decoding beside it.

    Shows speed, acceptance length, the parts of a step, and the recommended number of drafts for
    each batch size. All systems answer the same prompts and take turns. If ENGINE is a file that
    --json wrote, it is shown again and nothing is measured.
    """
    if engine.is_file():
        _refuse_measuring(ctx, engine)
    warn_of_unused(ctx)
    files = take(ProfileFiles, options)
    prompts = take(PromptOptions, options)
    config = ProfileConfig(engine, **options)
    inputs = {"ENGINE": engine if engine.is_file() else None, **prompts.input_files}
    _check_files(files, inputs, engine)
    from trtllm_dflash.cli.profile_table import print_profile
    from trtllm_dflash.profile.load import load

    found = load(engine) if engine.is_file() else _measure(config, prompts)
    try:  # what was measured is shown even if a file cannot be written
        _write(files, found)
    finally:
        print_profile(found)


def _refuse_measuring(ctx: click.Context, path: Path) -> None:
    """Raise UsageError for an option of measuring that is given with a file of results."""
    allowed = {"engine", "verbose", *(field.name for field in fields(ProfileFiles))}
    for option in ctx.command.params:
        name = option.name or ""
        if name in allowed:
            continue
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{option.opts[0]}: {path} is a file of `profile --json`, which is only shown"
                " again. Leave the option out, or give an engine directory to measure."
            )


def _measure(config: ProfileConfig, source: PromptOptions) -> Profile:
    from trtllm_dflash.cli.prompts import read_source
    from trtllm_dflash.log import progress_bar
    from trtllm_dflash.profile.profiler import profile
    from trtllm_dflash.profile.prompts import NO_CATEGORY, Prompt, PromptSet
    from trtllm_dflash.runtime.text.chat_format import ChatFormat

    chat_format = ChatFormat.from_options(source, raw=source.raw)
    asked = PromptSet.builtin(chat_format)
    if source.source is not None:
        prompts = (
            Prompt(line.prompt, line.category or NO_CATEGORY, line.where)
            for line in read_source(source)
        )
        asked = PromptSet(str(source.source), tuple(prompts), chat_format)
    with progress_bar() as progress:
        return profile(config, asked, progress=progress)


def _check_files(files: ProfileFiles, inputs: Files, engine: Path) -> None:
    """Refuse what could not be written, before anything is measured."""
    outputs = {"--json": files.json, "--schedule": files.schedule, "--html": files.html}
    check_outputs(outputs, inputs=inputs, engine=engine)
    if files.html is not None:
        from trtllm_dflash.profile.theme import require_matplotlib

        require_matplotlib()


def _write(files: ProfileFiles, found: Profile) -> None:
    if files.json is not None:
        text = json.dumps(found.to_json(), indent=1, ensure_ascii=False)
        write_file("--json", files.json, text + "\n")
    if files.schedule is not None:
        write_file(
            "--schedule", files.schedule, json.dumps(found.advice.draft_len_schedule) + "\n"
        )
    if files.html is not None:
        from trtllm_dflash.profile.html_report import page

        write_file("--html", files.html, page(found))
