"""The generated parts of README.md and docs/. `python -m tests.doc_tables` rewrites them.

A generated part stands between `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from click.testing import CliRunner

from tests.examples.scripts import example
from trtllm_dflash.builder.pair_support import list_support, markdown_table
from trtllm_dflash.cli import COMMANDS, main
from trtllm_dflash.profile.load import load as load_profile
from trtllm_dflash.triton_server.readme import io_tables, metrics_table

ROOT = Path(__file__).parents[1]
ESTIMATE = "profile --estimate"
BENCHMARK = ROOT / "examples" / "benchmark"


def pairs() -> str:
    """Return the table of the published pairs that can be built."""
    return markdown_table([row for row in list_support() if row.archs])


def pair_counts() -> str:
    """Return the sentence that counts the pairs in the catalog and those refused."""
    rows = list_support()
    refused = sum(not row.archs for row in rows)
    return (
        f"All {len(rows)} pairs of the catalog, and the reason why {refused} of them are refused:"
        " [catalog](../trtllm_dflash/catalog/README.md#published-pairs)."
    )


def measured(name: str) -> str:
    """Return the tables of a benchmark, from the figures that lie beside its script."""
    path = BENCHMARK / f"{name}.json"
    if not path.is_file():
        return "Not measured yet."
    table: str = example(f"benchmark/{name}.py").markdown(json.loads(path.read_text()))
    return table.strip()


def drafts() -> str:
    """Return the tables of what drafts of each source give, from the measured figures."""
    script = example("benchmark/drafts.py")
    table: str = script.markdown(load_profile(BENCHMARK / "profile_lookup.json"))
    return table


def drafts_by_batch() -> str:
    """Return the table of drafts by batch size, from the measured figures."""
    script = example("benchmark/drafts.py")
    table: str = script.by_batch(load_profile(BENCHMARK / "profile_batches.json"))
    return table


def context_of(name: str) -> click.Context:
    """Return the context of a command, such as "build" or "profile --estimate"."""
    group = click.Context(main, info_name="dflash-trt", show_default=True)
    name, _, flag = name.partition(" ")
    found = main.get_command(group, name)  # type: ignore[attr-defined]
    arguments = [flag] if flag else []
    context: click.Context = found.make_context(
        name, arguments, parent=group, resilient_parsing=True
    )
    return context


def visible_options() -> set[str]:
    """Return every spelling of the options that `--help` shows, of all commands."""
    shown = {"--help", "--version"}
    for context in map(context_of, (*COMMANDS, ESTIMATE)):
        for option in context.command.params:
            if isinstance(option, click.Option) and not option.hidden:
                shown |= {*option.opts, *option.secondary_opts}
    return shown


def command(name: str) -> str:
    """Return the usage, the help and the options of one command."""
    own = context_of(name)
    usage = " ".join([own.info_name, *own.command.collect_usage_pieces(own)])
    lines = ["```text", f"dflash-trt {usage}", "```", "", *_paragraphs(own.command.help)]
    lines += ["| option | default | meaning |", "|---|---|---|"]
    for option in own.command.params:
        record = option.get_help_record(own)
        if isinstance(option, click.Option) and record:  # none of a hidden option
            lines.append(_row(*record))
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    lines = []
    for paragraph in text.split("\n\n"):
        lines += [" ".join(paragraph.split()), ""]
    return lines


def _row(spelled: str, meaning: str) -> str:
    default = ""
    if match := re.search(r" +\[(?:default: )?([^]]*)\]$", meaning):
        meaning, default = meaning[: match.start()], match[1]
    cells = (f"`{spelled}`", default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _commands() -> dict[str, Callable[[], str]]:
    return {name: partial(command, name) for name in (*COMMANDS, ESTIMATE)}


def b200() -> str:
    """Return the sizes of gpt-oss-120b on a B200: those of the page's own dry run."""
    options = "--target gpt-oss-120b --arch b200 --max-batch-size 32 --max-seq-len 8192"
    arguments = ["build", *options.split(), "--output-dir", "engine", "--dry-run"]
    shown = CliRunner().invoke(main, arguments).stdout
    sizes = shown.split("\nmemory:\n")[1].split("\nthis machine:")[0]
    return f"```text\nmemory:\n{sizes}\n```"


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/deploy.md": {"b200": b200},
    "docs/serving.md": {"inputs and outputs": io_tables, "metrics": metrics_table},
    "docs/support-matrix.md": {"pairs": pairs, "pair counts": pair_counts},
    "docs/quantization.md": {"quantization": partial(measured, "quantization")},
    "docs/cli.md": _commands(),
    "examples/benchmark/README.md": {
        "drafts": drafts,
        "drafts by batch": drafts_by_batch,
        "against llama.cpp": partial(measured, "against_llama_cpp"),
        "step nodes": partial(measured, "step_nodes"),
        "experts": partial(measured, "experts"),
        "serve": partial(measured, "serve"),
    },
}


def rendered(page: str) -> str:
    """Return the text of a page with its generated parts made anew."""
    text = (ROOT / page).read_text()
    for name, table in TABLES[page].items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        (ROOT / page).write_text(rendered(page))
