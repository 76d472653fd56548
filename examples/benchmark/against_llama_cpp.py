"""CPU engines in float32, int8 and int4 against llama.cpp, Hugging Face and the reference package.

All have the same weights, prompts, number of new tokens and number of threads, decode greedily, and
take turns prompt by prompt. No answer ends early. The clock covers everything behind the first
token. llama.cpp runs in a process of its own (`llama_cpp_worker.py`), which waits while others run.

Only ratios of one run are claims. The run is refused where other processes keep the machine busy.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import onnxruntime
from speed import PAIR, Run, engine_system, read_prompts

from trtllm_dflash import Engine, __version__
from trtllm_dflash.profile.external_systems import load_external_systems
from trtllm_dflash.runtime.threads import resolve_num_threads

ENGINES = {  # by the name of the weights: plain, with the drafter
    "float32": ("plain", "cpu"),
    "int8": ("plain-int8", "int8"),
    "int4": ("plain-int4", "int4"),
}
FILES = ("F32", "BF16", "Q8_0", "Q4_0")
GOALS = (  # a system, what it is divided by, the least ratio
    ("plain int8", "llama.cpp Q8_0", 1.0),
    ("DFlash int8", "llama.cpp Q8_0", 1.6),
    ("DFlash float32", "llama.cpp F32", 1.6),
)
QUIET_SHARE = 0.1  # of the processors' time that others may use
_WATCH_SECONDS = 3.0
_TICKS = os.sysconf("SC_CLK_TCK")

System = Callable[[list[int]], Run]


def busy_seconds() -> float:
    """Return the processor seconds that the whole machine has worked so far."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, fields[:8])
    return (user + nice + system + interrupts + soft + stolen) / _TICKS


def own_seconds(child: int | None) -> float:
    """Return the processor seconds of this process and of llama.cpp's."""
    mine = time.process_time()
    if child is None:
        return mine
    fields = Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return mine + (int(fields[11]) + int(fields[12])) / _TICKS


def others_share(seconds: float = _WATCH_SECONDS) -> float:
    """Return the part of all processors' time that others use, over some seconds."""
    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / (seconds * (os.cpu_count() or 1))


@dataclass
class Sum:
    """What a system did in all prompts of a set; tokens are those behind the first."""

    prompts: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    same_text: int = 0  # as the plain system with the same weights

    def add(self, run: Run, expected: Sequence[int]) -> None:
        """Count one answer."""
        self.prompts += 1
        self.tokens += len(run.token_ids) - 1
        self.steps += run.steps
        self.seconds += run.seconds
        self.same_text += list(run.token_ids) == list(expected)

    @property
    def speed(self) -> float:
        """Return tokens per second."""
        return self.tokens / self.seconds


@dataclass
class LlamaCpp:
    """llama.cpp in its process."""

    process: subprocess.Popen[str]
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, python: Path, files: Sequence[Path], threads: int, drafts: int) -> LlamaCpp:
        """Start it and wait until all files are loaded, each with prompt lookup and without."""
        script = Path(__file__).parent / "llama_cpp_worker.py"
        command = [str(python), str(script), str(threads), str(drafts), *map(str, files)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        made = cls(process)
        made.facts = made._read()
        return made

    def system(self, file: int, max_tokens: int, *, lookup: bool = False) -> System:
        """Return one of its files as a system."""

        def run(prompt: list[int]) -> Run:
            asked = {"file": file, "lookup": lookup, "prompt": prompt, "max_tokens": max_tokens}
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            answer = self._read()
            return Run(answer["token_ids"], answer["steps"], answer["seconds"])

        return run

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(
                "llama.cpp's process has ended: `make bench-peers` makes .venv-peers for it"
            )
        return json.loads(line)


def our_systems(folder: Path, max_tokens: int, threads: int) -> dict[str, System]:
    """Return the engines of `folder` by name, answering to the full length."""
    systems = {}
    for weights, names in ENGINES.items():
        for title, name in zip(("plain", "DFlash"), names, strict=True):
            engine = Engine.load(folder / name, num_threads=threads)
            system = engine_system(engine, max_tokens, stop_token_ids=[])
            systems[f"{title} {weights}"] = system
    return systems


def slow_systems(target: Path, max_tokens: int, threads: int) -> dict[str, System]:
    """Return Hugging Face's generate and the reference package, in float32 on torch."""
    found = load_external_systems(
        ["hf", "reference"],
        target,
        PAIR / "drafter",
        block_size=8,
        stop_token_ids=[],
        num_threads=threads,
    )

    def answering(respond: Any) -> System:
        def run(prompt: list[int]) -> Run:
            (answer,) = respond([prompt], 1, max_tokens).answers
            steps = len(answer.acceptance_lengths)
            return Run(answer.token_ids, steps, answer.decode_seconds)

        return run

    return {system.name: answering(system.run) for system in found}


def base_of(name: str) -> str:
    """Return the plain system with the same weights."""
    if name.startswith("llama.cpp"):
        return name.removesuffix(" lookup")
    if name.startswith(("plain", "DFlash")):
        return f"plain {name.split()[1]}"
    return "plain float32"


@dataclass
class Race:
    """The systems, and what they did by set of prompts."""

    fast: dict[str, System]
    slow: dict[str, System]
    sums: dict[str, dict[str, Sum]] = field(default_factory=dict)

    def run(self, prompts: Sequence[tuple[str, str, list[int]]], slow_limit: int) -> None:
        """Let all answer, in an order that changes; slow ones the first prompts of each set."""
        seen: dict[str, int] = {}
        for number, (group, _, prompt) in enumerate(prompts):
            seen[group] = seen.get(group, 0) + 1
            systems = self.fast | (self.slow if seen[group] <= slow_limit else {})
            names = list(systems)
            start = number % len(names)
            answers = {name: systems[name](prompt) for name in names[start:] + names[:start]}
            for name, run in answers.items():
                expected = answers[base_of(name)].token_ids
                for key in (group, "all"):
                    sums = self.sums.setdefault(key, {})
                    sums.setdefault(name, Sum()).add(run, expected)
            click.echo(f"\r{number + 1} of {len(prompts)} prompts", nl=False, err=True)
        click.echo("", err=True)


def facts_of(race: Race, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the figures and the goals."""
    totals = {}
    for key, sums in race.sums.items():
        totals[key] = {name: asdict(total) for name, total in sums.items()}
    goals = []
    for system, other, least in GOALS:
        ratio = race.sums["all"][system].speed / race.sums["all"][other].speed
        goals.append({"system": system, "over": other, "goal": least, "ratio": ratio})
    return {"provenance": provenance, "totals": totals, "goals": goals}


def markdown(facts: dict[str, Any]) -> str:
    """Return the figures as Markdown tables: the systems, and the goals."""
    totals = facts["totals"]["all"]

    def speed(name: str) -> float:
        return float(totals[name]["tokens"] / totals[name]["seconds"])

    base = speed("llama.cpp Q8_0")
    lines = [
        "| system | prompts | tokens/s | ÷ llama.cpp Q8_0 | τ | text of its plain system |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, total in totals.items():
        tau = total["tokens"] / total["steps"]
        same = f"{total['same_text']} of {total['prompts']}"
        cells = (name, str(total["prompts"]), f"{speed(name):.1f}")
        cells += (f"{speed(name) / base:.2f}", f"{tau:.2f}", same)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| goal | least | measured | |", "|---|---|---|---|"]
    for goal in facts["goals"]:
        verdict = "reached" if goal["ratio"] >= goal["goal"] else "missed"
        title = f"{goal['system']} ÷ {goal['over']}"
        lines.append(f"| {title} | {goal['goal']:.1f} | {goal['ratio']:.2f} | {verdict} |")
    share = facts["provenance"]["others_share"]
    lines += ["", f"Other processes used {share:.0%} of the processors' time during the run."]
    return "\n".join(lines) + "\n"


def _require_quiet(busy: bool) -> None:
    share = others_share()
    if share > QUIET_SHARE and not busy:
        raise click.ClickException(
            f"other processes use {share:.0%} of the processors: no figure of now would mean"
            " anything. Wait until they are done, or give --busy to try the command"
        )


@click.command()
@click.option("--engines", default="demo", show_default=True, type=Path)
@click.option("--gguf", default="demo/gguf", show_default=True, type=Path)
@click.option("--python", default=".venv-peers/bin/python", show_default=True, type=Path)
@click.option("--max-tokens", default=96, show_default=True)
@click.option("--limit", default=10, show_default=True, help="prompts of each of the two sets")
@click.option("--slow-limit", default=3, show_default=True, help="of each, for torch's systems")
@click.option("--lookup-drafts", default=10, show_default=True, help="of llama.cpp's lookup")
@click.option("--num-threads", type=int, help="of every system [default: all cores]")
@click.option("--busy", is_flag=True, help="measure although others keep the machine busy")
@click.option("--json", "json_file", type=Path, help="write the figures here")
def main(
    engines: Path,
    gguf: Path,
    python: Path,
    max_tokens: int,
    limit: int,
    slow_limit: int,
    lookup_drafts: int,
    num_threads: int | None,
    busy: bool,
    json_file: Path | None,
) -> None:
    """Measure, print the tables, and write the figures."""
    _require_quiet(busy)
    threads = resolve_num_threads(num_threads)
    files = [gguf / f"{name}.gguf" for name in FILES]
    llama = LlamaCpp.start(python, files, threads, lookup_drafts)
    race = Race(our_systems(engines, max_tokens, threads), {})
    for index, name in enumerate(FILES):
        for lookup in (False, True):
            title = f"llama.cpp {name}{' lookup' if lookup else ''}"
            race.fast[title] = llama.system(index, max_tokens, lookup=lookup)
    if slow_limit:
        race.slow = slow_systems(engines / "target", max_tokens, threads)
    prompts = list(read_prompts(Engine.load(engines / "plain"), limit))
    for system in (race.fast | race.slow).values():
        system(prompts[0][2][:16])
    child = llama.process.pid
    start, busy_before, own_before = time.monotonic(), busy_seconds(), own_seconds(child)
    race.run(prompts, slow_limit)
    elapsed = time.monotonic() - start
    others = busy_seconds() - busy_before - (own_seconds(child) - own_before)
    llama.stop()
    provenance = {
        "version": __version__,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "llama_cpp_python": llama.facts["version"],
        "llama_cpp": llama.facts["system"].strip(),
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "seconds": round(elapsed, 1),
        "others_share": round(max(others, 0) / (elapsed * (os.cpu_count() or 1)), 3),
        "argv": sys.argv[1:],
        "date": time.strftime("%Y-%m-%d"),
    }
    facts = facts_of(race, provenance)
    click.echo(markdown(facts))
    if json_file:
        json_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
