"""What `run` is asked: stdin, conversations, template options; and what its answers tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cli.conftest import Run
from trtllm_dflash import Engine
from trtllm_dflash.cli import main

SYSTEM = "[system]Be brief.</s>[user]hi</s>[assistant]"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
PARTS = [{"type": "text", "text": "hi"}]


def answer_to(directory: Path, prompt: str, **options: object) -> str:
    """Return the answer to a rendered prompt, as it is printed."""
    engine = Engine.load(directory, num_threads=1)
    (answer,) = engine.generate(prompt, max_tokens=9, **options)
    return f"{answer.text}\n"


def test_prompt_on_stdin_is_read_whole(run: Run, engines: Callable[..., Path]) -> None:
    expected = answer_to(engines("dflash"), "[user]hi there</s>[assistant]")
    for stdin in ("hi there\n", "hi there", b"\xef\xbb\xbfhi there\r\n"):
        result = run("--max-tokens", "9", stdin=stdin)
        assert (result.exit_code, result.stdout) == (0, expected), result.stderr


@pytest.mark.parametrize(
    ("stdin", "words"),
    [(" \n", "stdin is empty"), (b"\xff\xfe", "stdin: byte 0 is not UTF-8")],
)
def test_bad_stdin_is_refused(run: Run, stdin: str | bytes, words: str) -> None:
    result = run(stdin=stdin)
    assert result.exit_code == 2
    assert words in result.stderr


def test_long_stdin_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_dflash.cli.prompts.MAX_STDIN_PROMPT_BYTES", 10)
    result = run(stdin="x" * 11)
    assert result.exit_code == 2
    assert "stdin: more than 10 B" in result.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one.json", MESSAGES),
        ("openai.json", {"messages": [MESSAGES[0], {"role": "user", "content": PARTS}]}),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_messages_are_a_conversation(
    run: Run,
    engines: Callable[..., Path],
    tmp_path: Path,
    name: str,
    content: object,
    indent: int,
) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    result = run("--messages", path, "--max-tokens", "9")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == answer_to(engines("dflash"), SYSTEM)


def test_system_is_put_before_what_has_none(
    run: Run, engines: Callable[..., Path], tmp_path: Path
) -> None:
    expected = answer_to(engines("dflash"), SYSTEM)
    options = ("--system", "Be brief.", "--max-tokens", "9")
    assert run("hi", *options).stdout == expected
    path, output = tmp_path / "c.jsonl", tmp_path / "answers.jsonl"
    own = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    rows = [{"messages": own[1:]}, {"prompt": "hi"}, {"messages": own}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run("--prompts", path, "--output", output, *options)
    assert result.exit_code == 0, result.stderr
    texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    assert [f"{text}\n" for text in texts[:2]] == [expected, expected]
    assert f"{texts[2]}\n" == answer_to(
        engines("dflash"), "[system]x</s>[user]hi</s>[assistant]"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "there is no conversation in it. Write a JSON list of messages"),
        ("[]", "line 1: expected a list of messages, got []"),
        ('{"prompt": "x"}', "line 1: expected a list of messages"),
        ('["hi"]', "message 1 is 'hi', expected an object with \"role\""),
        ('[{"content": "hi"}]', 'expected an object with "role"'),
        ("[[1]]", "message 1 is [1], expected an object"),
        ("{\n[", "line 1: not JSON (Expecting"),
        ("[" * 100_000, "line 1: not JSON ("),
    ],
)
def test_bad_conversations_are_refused(
    run: Run, tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "messages"
    path.write_text(content, encoding="utf-8")
    result = run("--messages", path)
    assert result.exit_code == 2, result.output
    assert f"{path}" in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--messages", "x"), "give either a PROMPT or --messages FILE, not both."),
        (
            ("--raw", "--system", "x"),
            "--system is for the chat format, and --raw leaves it out",
        ),
        (("--raw", "--chat-template-kwargs", "{}"), "--chat-template-kwargs is for the chat"),
        (("--chat-template-kwargs", "{"), "--chat-template-kwargs '{' is not JSON ("),
        (("--chat-template-kwargs", "[1]"), "--chat-template-kwargs is [1], expected a JSON"),
        (("--chat-template-kwargs", "[" * 100_000), "is not JSON ("),
    ],
)
def test_chat_options_are_checked(run: Run, options: tuple[str, ...], words: str) -> None:
    result = run("hi", *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_no_template_is_said_and_raw(run: Run, engines: Callable[..., Path]) -> None:
    result = run("hi", "--max-tokens", "9", kind="no_template")
    assert result.exit_code == 0, result.stderr
    assert (
        "note: this model has no chat template, so it gets the text as it is" in result.stderr
    )
    assert result.stdout == answer_to(engines("no_template"), "hi")
    assert "note:" not in run("hi", "--raw", kind="no_template").stderr
    refused = run("hi", "--system", "x", kind="no_template")
    assert refused.exit_code == 2
    assert "no chat template" in refused.stderr


def test_options_without_effect_are_named(run: Run) -> None:
    greedy = run("hello", "--max-tokens", "4").stdout
    result = run("hello", "--top-p", "0.5", "--top-k", "3", "--seed", "9", "--max-tokens", "4")
    assert (result.exit_code, result.stdout) == (0, greedy)
    words = "warning: --top-p, --top-k and --seed have no effect without --temperature"
    assert words in result.stderr
    explicit = run("hello", "--top-p", "0.5", "--temperature", "0", "--max-tokens", "4")
    assert "warning" not in explicit.stderr


def test_rows_tell_the_seed_and_repeat_with_it(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    options = ("--temperature", "1", "--max-tokens", "12", "--ignore-eos", "--output", output)

    def row(*more: str) -> dict[str, object]:
        assert run("hello", *options, *more).exit_code == 0
        found: dict[str, object] = json.loads(output.read_text())
        return found

    first, second = row(), row()
    assert first["seed"] != second["seed"]
    assert row("--seed", str(first["seed"]))["token_ids"] == first["token_ids"]
    assert {"reasoning", "logprobs", "finish_reason", "sample_index"} <= first.keys()


def test_stop_words_and_special_tokens(run: Run, engines: Callable[..., Path]) -> None:
    whole = run("hello", "--max-tokens", "20", "--ignore-eos", "--special-tokens").stdout
    expected = answer_to(
        engines("dflash"),
        "[user]hello</s>[assistant]",
        ignore_eos=True,
        skip_special_tokens=False,
    )
    assert whole.startswith(expected[:-1])
    stop = ("--stop-words", whole[7], "--stop", whole[5])
    cut = run("hello", "--max-tokens", "20", "--ignore-eos", "--special-tokens", *stop).stdout
    place = min(whole.index(whole[7]), whole.index(whole[5]))
    assert cut == whole[:place] + "\n"


def test_run_names_the_engine_and_its_formats(run: Run, engines: Callable[..., Path]) -> None:
    first = run("hi", "--max-tokens", "1").stderr.splitlines()[0]
    assert first == f"engine: {engines('dflash')} (cpu, weights FP32, caches FP32)"


def test_newest_engine_is_the_default(
    engines: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    none = CliRunner().invoke(main, ["run"], input="hi")
    assert none.exit_code == 2
    assert "no ENGINE is given, and engines/ and demo/ have none that this machine can run" in (
        none.stderr
    )
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "cpu").symlink_to(engines("dflash"))
    (tmp_path / "demo" / "plain").symlink_to(engines("plain"))  # newer
    options = ["--max-tokens", "2", "--num-threads", "1"]
    first = CliRunner().invoke(main, ["run", *options], input="hi")
    assert first.stderr.startswith("engine: demo/cpu (cpu")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a").symlink_to(engines("plain"))
    for_gpu = tmp_path / "engines" / "b"
    for_gpu.mkdir()
    for name in ("config.json", "manifest.json"):
        text = (engines("plain") / name).read_text(encoding="utf-8")
        changed = text.replace('"cpu"', '"sm70"').replace('"created": "2', '"created": "9')
        (for_gpu / name).write_text(changed, encoding="utf-8")
    second = CliRunner().invoke(main, ["run", "two words", *options])
    assert second.exit_code == 0, second.stderr
    assert second.stderr.startswith("engine: engines/a (cpu")
    typo = CliRunner().invoke(main, ["run", "engines/c", *options], input="hi")
    assert typo.exit_code == 2
    assert "engines/c': there is no such directory" in typo.stderr


def test_output_must_not_replace_an_input(
    run: Run, engines: Callable[..., Path], tmp_path: Path
) -> None:
    prompts, link = tmp_path / "q.txt", tmp_path / "link"
    prompts.write_text("a\nb\n", encoding="utf-8")
    link.hardlink_to(prompts)
    for output in (prompts, link):
        result = run("--prompts", prompts, "--output", output, "--max-tokens", "2")
        assert result.exit_code == 2
        assert "this is also --prompts, which would be overwritten" in result.stderr
    assert prompts.read_text(encoding="utf-8") == "a\nb\n"
    result = run("a", "--output", engines("dflash") / "config.json")
    assert result.exit_code == 2
    assert "this is also the engine's config.json" in result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [3]),
        (("--no-draft",), [0]),
        (("--draft-len", "1"), [1]),
        (("--draft-len-schedule", '{"1": 3, "2": 1}'), [0, 1, 3]),
    ],
    ids=["default", "none", "one", "schedule"],
)
def test_an_engine_is_loaded_for_the_drafts_that_are_asked_for(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    expected: list[int],
) -> None:
    """A GPU engine makes steps of these numbers ready, and of no others."""
    given, load = [], Engine.load

    def remembering(path: Path, **named: Any) -> Engine:
        given.append(named["draft_lens"])
        return load(path, **named)

    monkeypatch.setattr(Engine, "load", remembering)
    if options and options[-1].startswith("{"):
        schedule = tmp_path / "schedule.json"
        schedule.write_text(options[-1])
        options = (*options[:-1], str(schedule))
    result = run("hi", "--max-tokens", "2", *options)
    assert result.exit_code == 0, result.stderr
    assert given == [expected]
