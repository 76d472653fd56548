"""DFlash against plain decoding of the same target, and against the reference package, on the demo
pair's prompts.

All systems run in one process on the same cores, in float32 and greedily, taking turns by prompt.
The clock of every system covers the generation steps: everything after the first token, nothing of
the prompt, the tokenizer or loading.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trtllm_dflash import Engine, __version__
from trtllm_dflash.options.draft_len import parse_draft_len
from trtllm_dflash.options.draft_sources import ALLOWED, DRAFTS_HELP

PAIR = Path(__file__).parent.parent / "demo_pair"
PLAIN = "plain"
REFERENCE = "reference"


@dataclass(frozen=True)
class Run:
    """One system's answer to one prompt."""

    token_ids: list[int]
    steps: int
    seconds: float


System = Callable[[list[int]], Run]


def engine_system(engine: Engine, max_tokens: int, **options: Any) -> System:
    """Return an engine of ours with fixed options."""

    def run(prompt: list[int]) -> Run:
        answer = engine.generate([prompt], max_tokens=max_tokens, **options)[0]
        return Run(answer.token_ids, len(answer.acceptance_lengths), answer.decode_seconds)

    return run


def reference_system(
    target: Path, drafter: Path, max_tokens: int, block_size: int, stops: list[int]
) -> System:
    """Return the reference package's own loop on torch, in float32 on the CPU."""
    from trtllm_dflash.profile.external_systems import load_external_systems
    from trtllm_dflash.runtime.threads import resolve_num_threads

    threads = resolve_num_threads(None)
    (system,) = load_external_systems(
        [REFERENCE],
        target,
        drafter,
        block_size=block_size,
        stop_token_ids=stops,
        num_threads=threads,
    )

    def run(prompt: list[int]) -> Run:
        (answer,) = system.run([prompt], 1, max_tokens).answers
        return Run(answer.token_ids, len(answer.acceptance_lengths), answer.decode_seconds)

    return run


@dataclass
class Total:
    """Sums over the prompts of one kind; tokens are those of the generation steps."""

    prompts: int = 0
    same_text: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, run: Run, expected: list[int]) -> None:
        """Count one answer, and whether it is the plain engine's."""
        self.prompts += 1
        self.same_text += run.token_ids == expected
        self.tokens += len(run.token_ids) - 1
        self.steps += run.steps
        self.seconds += run.seconds


Totals = dict[str, dict[str, Total]]  # set or set/kind -> system -> total


def measure(
    systems: dict[str, System], prompts: Iterator[tuple[str, str, list[int]]]
) -> Totals:
    """Run every system on every prompt; the system that begins changes from prompt to prompt."""
    totals: Totals = defaultdict(lambda: defaultdict(Total))
    names = list(systems)
    for number, (group, kind, prompt) in enumerate(prompts):
        order = names[number % len(names) :] + names[: number % len(names)]
        runs = {name: systems[name](prompt) for name in order}
        for name, run in runs.items():
            for key in (group, f"{group}/{kind}"):
                totals[key][name].add(run, runs[PLAIN].token_ids)
        click.echo(f"\r{number + 1} prompts", nl=False, err=True)
    click.echo("", err=True)
    return totals


def read_prompts(engine: Engine, limit: int | None) -> Iterator[tuple[str, str, list[int]]]:
    """Yield set, kind and token ids of the demo pair's prompts, in the chat format."""
    assert engine.tokenizer is not None
    for group in ("heldout", "unseen"):
        lines = (PAIR / "prompts" / f"{group}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[:: max(1, len(lines) // limit) if limit else 1]:
            row = json.loads(line)
            yield group, row["kind"], list(engine.tokenizer.encode_chat(row["prompt"]))


def report(totals: Totals, systems: list[str]) -> Table:
    """Return a row for each set and kind, with a group of columns for each system."""
    table = Table(
        title=(
            "tokens/s (τ) and ratio to the plain engine; the same text unless a count says"
            " otherwise"
        )
    )
    table.add_column("prompts")
    for system in systems:
        table.add_column(system, justify="right")
    for key in sorted(totals):
        plain = totals[key][PLAIN]
        cells = [f"{plain.tokens / plain.seconds:.1f}"]
        for system in systems[1:]:
            total = totals[key][system]
            ratio = (total.tokens / total.seconds) / (plain.tokens / plain.seconds)
            differs = "" if total.same_text == total.prompts else f" [{total.same_text} same]"
            tau = total.tokens / total.steps
            cells.append(
                f"{total.tokens / total.seconds:.1f} ({tau:.2f}) {ratio:.2f}×{differs}"
            )
        table.add_row(f"{key} ({plain.prompts})", *cells)
    return table


@click.command()
@click.option("--plain", default="demo/plain", show_default=True, help="plain engine")
@click.option("--dflash", default="demo/cpu", show_default=True, help="DFlash engine")
@click.option(
    "--target",
    default="demo/target",
    show_default=True,
    type=Path,
    help="for the reference package",
)
@click.option(
    "--draft-lens",
    default="2,3,4,5,7",
    show_default=True,
    help="numbers of drafts to verify; auto: as many as pay",
)
@click.option(
    "--drafts",
    type=click.Choice(ALLOWED),
    default="dflash",
    show_default=True,
    help=DRAFTS_HELP,
)
@click.option("--max-tokens", default=112, show_default=True)
@click.option("--limit", type=int, help="prompts of each set [default: all]")
@click.option("--with-reference/--without-reference", default=True, show_default=True)
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(
    plain: str,
    dflash: str,
    target: Path,
    draft_lens: str,
    drafts: str,
    max_tokens: int,
    limit: int | None,
    with_reference: bool,
    json_file: Path | None,
) -> None:
    """Measure, print a table, and write the figures with what they were measured on."""
    baseline, engine = Engine.load(plain), Engine.load(dflash)
    lengths = [parse_draft_len(length) for length in draft_lens.split(",")]
    systems = {PLAIN: engine_system(baseline, max_tokens)}
    systems |= {
        f"draft {length}": engine_system(engine, max_tokens, draft_len=length, drafts=drafts)
        for length in lengths
    }
    if with_reference:
        stops = list(engine.config.eos_token_ids)
        systems[REFERENCE] = reference_system(
            target, PAIR / "drafter", max_tokens, engine.config.block_size, stops
        )
    warm_up = next(read_prompts(engine, 1))[2]
    for system in systems.values():
        system(warm_up)
    totals = measure(systems, read_prompts(engine, limit))
    Console(width=200).print(report(totals, list(systems)))
    if json_file:
        figures = {}
        for key, row in totals.items():
            figures[key] = {system: asdict(total) for system, total in row.items()}
        provenance = {
            "version": __version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "argv": sys.argv[1:],
            "date": time.strftime("%Y-%m-%d"),
        }
        json_file.write_text(
            json.dumps({"provenance": provenance, "totals": figures}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
