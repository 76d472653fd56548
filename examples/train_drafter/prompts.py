"""Build the prompt sets: template prompts for training, held-out prompts, and their checks.

A fixed share of every slot's values is reserved. Training prompts use only the others; held-out
prompts use only reserved values, so that none of their fillers was trained on. Prompts of the
unseen set are written by hand and share no template with training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT_FOLDER = HERE.parent / "demo_pair" / "prompts"
KINDS = ("chat", "maths", "code", "lists", "rewriting")
# One value in this many is reserved for the held-out set.
RESERVE_EVERY = 7
SLOT = re.compile(r"\{(\w+)\}")

PASSAGE_OPENINGS = (
    "{name} is a {job} who lives in {city}.",
    "Last summer, {name} travelled to {city} with a friend.",
    "{name} has always been interested in {hobby}.",
    "Every morning, {name} walks to a small shop in {city}.",
    "The town near {city} was quiet until {name} arrived.",
    "{name} found an old {animal} near the station in {city}.",
)
PASSAGE_MIDDLES = (
    "After work, {name} likes {hobby} and often eats {food}.",
    "On the way home, a {animal} crossed the road and everyone stopped to look.",
    "People say that {concept} will change the way we live.",
    "The local {job} explained how {concept} works and why it matters.",
    "It rained for three days, and the trip to see {nature} had to wait.",
    "The group talked about {problem} and made a plan to solve it.",
)
PASSAGE_ENDINGS = (
    "In the end, everyone was tired but happy.",
    "Next year, the whole family wants to visit {country}.",
    "The story was printed in the newspaper on Monday.",
    "{name} still thinks about that day.",
    "Nobody expected that it would be so difficult.",
    "They promised to meet again in {city}.",
)


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """Return the objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """Write objects as JSON Lines."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def _lines(name: str) -> list[str]:
    text = (HERE / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def load_templates() -> list[tuple[str, str]]:
    """Return (kind, template) pairs."""
    pairs = [line.split(" ", 1) for line in _lines("templates.txt")]
    return [(kind, text.replace("\\n", "\n")) for kind, text in pairs]


class Fillers:
    """Slot values of one side of the split."""

    def __init__(self, *, reserved: bool, rng: random.Random) -> None:
        self.reserved, self.rng = reserved, rng
        self.values: dict[str, list[str]] = {}
        for line in _lines("fillers.txt"):
            slot, text = line.split(": ", 1)
            values = self._values(text)
            is_reserved = [i % RESERVE_EVERY == RESERVE_EVERY - 2 for i in range(len(values))]
            self.values[slot] = [
                v for v, held in zip(values, is_reserved, strict=True) if held == reserved
            ]

    def _values(self, text: str) -> list[str]:
        if text.startswith("@number"):
            low, high = map(int, text.split()[1:])
            return [str(n) for n in range(low, high + 1)]
        if text.startswith("@square"):
            low, high = map(int, text.split()[1:])
            return [str(n * n) for n in range(low, high + 1)]
        if text == "@passage":
            return []
        return [value.strip() for value in text.split("|")]

    def passage(self) -> str:
        """Compose three or four sentences about one person."""
        sentences = [
            self.rng.choice(PASSAGE_OPENINGS),
            *self.rng.sample(PASSAGE_MIDDLES, self.rng.choice((1, 1, 2))),
            self.rng.choice(PASSAGE_ENDINGS),
        ]
        name = self.rng.choice(self.values["name"])
        return self.fill(" ".join(sentences).replace("{name}", name))

    def fill(self, template: str) -> str:
        """Fill every slot; values within one text differ, a repeated {name} may refer to one."""
        used: set[str] = set()
        single_name = template.count("{name}") > 1 and "with {name}" not in template
        single_name = single_name and "to {name}:" not in template
        names: list[str] = []

        def replace(match: re.Match[str]) -> str:
            slot = match.group(1)
            if slot == "passage":
                return self.passage()
            if slot == "name" and names and single_name:
                return names[0]
            options = [v for v in self.values[slot] if v not in used] or self.values[slot]
            value = self.rng.choice(options)
            used.add(value)
            if slot == "name":
                names.append(value)
            return value

        return SLOT.sub(replace, template)


def prompts_of(template: str, fillers: Fillers, count: int) -> list[str]:
    """Return up to `count` distinct prompts of one template."""
    slots = SLOT.findall(template)
    if len(slots) == 1 and slots[0] != "passage":
        values = fillers.values[slots[0]]
        chosen = fillers.rng.sample(values, min(count, len(values)))
        return [template.replace("{" + slots[0] + "}", value) for value in chosen]
    made: dict[str, None] = {}
    for _ in range(count * 3):
        if len(made) >= count:
            break
        made[fillers.fill(template)] = None
    return list(made)


def build_train(per_template: int, seed: int) -> list[dict[str, str]]:
    """Return the template prompts for training, shuffled."""
    rng = random.Random(seed)
    fillers = Fillers(reserved=False, rng=rng)
    records = []
    for kind, template in load_templates():
        prompts = prompts_of(template, fillers, per_template)
        records += [{"kind": kind, "prompt": each, "source": "template"} for each in prompts]
    rng.shuffle(records)
    return records


def build_heldout(per_kind: int, seed: int) -> list[dict[str, str]]:
    """Return held-out prompts, each of a different template, the same number of every kind."""
    rng = random.Random(seed)
    fillers = Fillers(reserved=True, rng=rng)
    records = []
    for kind in KINDS:
        templates = [template for k, template in load_templates() if k == kind]
        chosen = rng.sample(templates, per_kind)
        records += [{"kind": kind, "prompt": fillers.fill(template)} for template in chosen]
    return records


def template_pattern(template: str) -> re.Pattern[str]:
    """Return a pattern that matches every prompt of `template`, whatever its fillers."""
    parts = [re.escape(part) for part in SLOT.split(template)[::2]]
    return re.compile(".+?".join(parts), re.DOTALL | re.IGNORECASE)


def normalise(prompt: str) -> str:
    """Return a form in which prompts that differ only in case or punctuation are equal."""
    return " ".join(re.findall(r"[a-z0-9+*/=-]+", prompt.lower()))


def check(
    train: list[dict[str, str]], heldout: list[dict[str, str]], unseen: list[dict[str, str]]
) -> None:
    """Raise ValueError if an evaluation prompt, or an unseen prompt's template, is in training."""
    trained = {normalise(record["prompt"]) for record in train}
    for record in itertools.chain(heldout, unseen):
        if normalise(record["prompt"]) in trained:
            raise ValueError(f"evaluation prompt is in the training set: {record['prompt']!r}")
    for record in unseen:
        for _, template in load_templates():
            if template_pattern(template).fullmatch(record["prompt"]):
                raise ValueError(f"{record['prompt']!r} follows the template {template!r}")
    for name, records in (("heldout", heldout), ("unseen", unseen)):
        counts = Counter(record["kind"] for record in records)
        if set(counts) != set(KINDS) or len(set(counts.values())) != 1:
            raise ValueError(f"{name} has unequal kinds: {dict(counts)}")


def without_evaluation(
    records: list[dict[str, str]], held: list[dict[str, str]]
) -> list[dict[str, str]]:
    """Drop repeats and every prompt that also occurs in an evaluation set."""
    seen = {normalise(record["prompt"]) for record in held}
    kept = []
    for record in records:
        key = normalise(record["prompt"])
        if key not in seen:
            seen.add(key)
            kept.append(record)
    return kept


def interleave(
    first: list[dict[str, str]], second: list[dict[str, str]]
) -> list[dict[str, str]]:
    """Mix two lists evenly, so that any leading part holds both in proportion."""
    keyed = [((i + 0.5) / len(part), r) for part in (first, second) for i, r in enumerate(part)]
    return [record for _, record in sorted(keyed, key=lambda pair: pair[0])]


def main() -> None:
    """Write the held-out set once, and the training prompts from templates and self-prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="training prompts, JSONL")
    parser.add_argument(
        "--self-prompts", type=Path, nargs="*", default=[], help="from magpie.py"
    )
    parser.add_argument("--per-template", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-heldout", action="store_true", help="replace heldout.jsonl")
    args = parser.parse_args()
    if args.write_heldout:
        write_jsonl(PROMPT_FOLDER / "heldout.jsonl", build_heldout(per_kind=20, seed=7))
    heldout = read_jsonl(PROMPT_FOLDER / "heldout.jsonl")
    unseen = read_jsonl(PROMPT_FOLDER / "unseen.jsonl")
    own = [record for path in args.self_prompts for record in read_jsonl(path)]
    templated = without_evaluation(build_train(args.per_template, args.seed), heldout + unseen)
    own = without_evaluation(own, heldout + unseen + templated)
    train = interleave(templated, own)
    check(train, heldout, unseen)
    if args.output:
        write_jsonl(args.output, train)
    counts = Counter((record["source"], record["kind"]) for record in train)
    for (source, kind), count in sorted(counts.items()):
        print(f"{source:10s} {kind:10s} {count}")
    print(f"{len(train)} training prompts, {len(load_templates())} templates")


if __name__ == "__main__":
    main()
