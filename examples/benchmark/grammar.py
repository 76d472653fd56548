"""What grammars cost and give on a CPU engine: JSON answers, and the requests beside them.

JSON answers come with drafts of the tokens that the grammar forces, and without those. Both are the
answers of plain decoding with the same grammar. Counted are tokens a step, and tokens a second as
ratios.

Requests without a grammar run beside one that has a grammar. Their speed is a ratio, too: over that
beside the same request without it.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import click

from trtllm_dflash import Engine, Generation, __version__
from trtllm_dflash.runtime.grammar.grammars import Grammars

SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {
            "first_name": {"type": "string", "maxLength": 20},
            "last_name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "occupation": {"type": "string", "maxLength": 40},
            "married": {"type": "boolean"},
        },
        "required": ["first_name", "last_name", "age", "occupation", "married"],
        "additionalProperties": False,
    },
    "list of cities": {
        "type": "array",
        "minItems": 3,
        "maxItems": 4,
        "items": {
            "type": "object",
            "properties": {
                "city_name": {"type": "string", "maxLength": 20},
                "country": {"type": "string", "maxLength": 20},
                "number_of_inhabitants": {"type": "integer", "minimum": 1000},
            },
            "required": ["city_name", "country", "number_of_inhabitants"],
            "additionalProperties": False,
        },
    },
    "review": {
        "type": "object",
        "properties": {
            "sentiment": {"enum": ["positive", "negative", "neutral"]},
            "summary": {"type": "string", "minLength": 20, "maxLength": 120},
            "topics": {
                "type": "array",
                "items": {"type": "string", "maxLength": 15},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["sentiment", "summary", "topics"],
        "additionalProperties": False,
    },
}
QUESTIONS = {
    "person": ("Invent a baker.", "Describe a famous physicist.", "Invent a retired sailor."),
    "list of cities": ("Cities of Italy.", "Large cities of Asia.", "Cities with a harbour."),
    "review": (
        "The soup was cold and the waiter rude.",
        "A wonderful evening, we will come again!",
        "The hotel is in the centre. Breakfast costs ten euros.",
    ),
}


def answers(engine: Engine, **options: Any) -> dict[str, list[Generation]]:
    """Return the answers to all questions, one at a time, by schema."""
    found = {}
    for name, schema in SCHEMAS.items():
        found[name] = [
            engine.chat(
                f"{question} Answer in JSON.", guided_json=schema, max_tokens=200, **options
            )[0]
            for question in QUESTIONS[name]
        ]
    return found


def json_rows(directory: Path, repetitions: int) -> list[dict[str, Any]]:
    """Return a row for each schema: tokens a step with forced drafts and without, and the ratio."""
    with Engine.load(directory) as engine:
        forcing = engine._grammars
        free = Grammars(engine.tokenizer, engine.config, forces=False)
        plain = answers(engine, draft=False)
        times: dict[str, list[float]] = {name: [] for name in SCHEMAS}
        for _ in range(max(1, repetitions)):
            engine._grammars = free
            without = answers(engine)
            engine._grammars = forcing
            forced = answers(engine)
            for name in SCHEMAS if repetitions else ():
                times[name].append(_seconds(without[name]) / _seconds(forced[name]))
    rows = []
    for name in SCHEMAS:
        for one, two, three in zip(plain[name], without[name], forced[name], strict=True):
            if not one.token_ids == two.token_ids == three.token_ids:
                raise click.ClickException(f"{name}: an answer differs from the plain one.")
            json.loads(three.text)
        row: dict[str, Any] = {
            "schema": name,
            "tokens": sum(len(answer.token_ids) for answer in plain[name]),
            "steps_without_forced": _steps(without[name]),
            "steps": _steps(forced[name]),
        }
        if times[name]:
            row["speed_ratio"] = statistics.median(times[name])
        rows.append(row)
    return rows


def mixed_rows(directory: Path, repetitions: int) -> list[dict[str, Any]]:
    """Return the speed of ordinary requests beside one with a grammar, over that beside none."""
    rows = []
    with Engine.load(directory) as engine:
        slots = engine.config.max_batch_size
        for num_others in (1, 3):
            if num_others >= slots:
                continue
            ratios, texts = [], set()
            for _ in range(repetitions):
                seconds = {}
                for guided in (False, True):
                    seconds[guided], text = _beside(engine, num_others, guided)
                    texts.add(text)
                ratios.append(seconds[False] / seconds[True])
            if len(texts) != 1:
                raise click.ClickException("an answer depends on the grammar beside it.")
            rows.append({"others": num_others, "speed_ratio": statistics.median(ratios)})
    return rows


def _beside(engine: Engine, num_others: int, guided: bool) -> tuple[float, str]:
    """Return the seconds a token of ordinary answers beside a long one, and their texts."""
    done: list[Any] = []
    finished: dict[int, float] = {}
    options: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "draft_len": 3}
    beside = {"guided_regex": "(.|\n)*"} if guided else {}
    with engine.serve() as server:
        server.submit("The history of", on_event=lambda _: None, **options, **beside)
        begin = time.perf_counter()
        for number in range(num_others):
            server.submit(
                f"Number {number + 1} of the list of",
                on_event=lambda event, number=number: _take(event, number, done, finished),
                **{**options, "max_tokens": 64},
            )
        while len(finished) < num_others:
            time.sleep(0.001)
        seconds = max(finished.values()) - begin
    text = json.dumps(sorted((number, part) for number, part in _joined(done).items()))
    return seconds, text


def _take(event: Any, number: int, done: list[Any], finished: dict[int, float]) -> None:
    done.append((number, event.text))
    if event.finish_info is not None:
        finished[number] = time.perf_counter()


def _joined(parts: list[tuple[int, str]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for number, text in parts:
        texts[number] = texts.get(number, "") + text
    return texts


def _seconds(found: list[Generation]) -> float:
    return sum(answer.decode_seconds for answer in found)


def _steps(found: list[Generation]) -> int:
    return sum(len(answer.acceptance_lengths) for answer in found)


@click.command()
@click.argument("engine", type=click.Path(exists=True, path_type=Path))
@click.option("--repetitions", default=3, help="Runs, of which the median counts; 0: no times.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(engine: Path, repetitions: int, output: Path | None) -> None:
    """Measure grammars on ENGINE."""
    guided = json_rows(engine, repetitions)
    mixed = mixed_rows(engine, repetitions) if repetitions else []
    figures = {
        "version": __version__,
        "machine": platform.machine(),
        "json": guided,
        "mixed": mixed,
    }
    for row in (*guided, *mixed):
        click.echo(row)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
