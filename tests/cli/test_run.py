"""dflash-trt run on a tiny engine: the answer, the summary, files in and out, and what is
refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.cli.conftest import Run
from trtllm_dflash import Engine, SamplingParams
from trtllm_dflash.cli import main
from trtllm_dflash.cli.run import run as run_command
from trtllm_dflash.errors import EngineError


def generated(directory: Path, prompts: Any, **options: Any) -> list[Any]:
    return Engine.load(directory, num_threads=1).generate(prompts, **options)


def test_run_prints_an_answer_and_its_summary(run: Run, engines: Callable[..., Path]) -> None:
    result = run("hello", "--raw", "--max-tokens", "30", "--ignore-eos")
    (expected,) = generated(engines("dflash"), "hello", max_tokens=30, stop_token_ids=[])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == expected.text + "\n"
    assert "prompt      5 tokens in " in result.stderr
    assert "; first token after " in result.stderr
    assert "generation  29 tokens in " in result.stderr
    assert f"tokens/s ({len(expected.acceptance_lengths)} steps of " in result.stderr
    assert "(a clock of these steps alone: no loading, prompts or tokenizing)" in result.stderr
    length = f"τ           {expected.acceptance_length:.2f} tokens a step and sequence"
    assert f"{length}, bonus included, of at most 4" in result.stderr
    ones = expected.acceptance_lengths.count(1)
    line = next(line for line in result.stderr.splitlines() if line.startswith("accepted"))
    assert line.split()[1] == "1"
    assert line.split()[-2:] == [str(ones), f"{ones / len(expected.acceptance_lengths):.0%}"]


def test_chat_template_is_the_default(run: Run, engines: Callable[..., Path]) -> None:
    (expected,) = generated(engines("dflash"), "[user]hi</s>[assistant]", max_tokens=9)
    assert run("hi", "--max-tokens", "9").stdout == expected.text + "\n"
    assert run("hi", "--max-tokens", "9", "--raw").stdout != expected.text + "\n"


def test_no_draft_gives_the_same_tokens(run: Run) -> None:
    options = (
        "hello",
        "--max-tokens",
        "25",
        "--temperature",
        "0.9",
        "--top-k",
        "30",
        "--top-p",
        "0.95",
        "--min-p",
        "0.01",
        "--seed",
        "4",
    )
    drafted, undrafted = run(*options), run(*options, "--no-draft")
    assert drafted.stdout == undrafted.stdout == run(*options, kind="plain").stdout
    assert "τ" not in undrafted.stderr
    assert run(*options, "--draft-len", "1").stdout == drafted.stdout
    assert run(*options[:-1], "5").stdout != drafted.stdout


def test_draft_len_schedule_changes_no_tokens(run: Run, tmp_path: Path) -> None:
    """Two slots for three prompts: first 1 draft, then, when one is left, 3; and the other way
    round, to none.
    """
    prompts, schedule = tmp_path / "prompts.txt", tmp_path / "schedule.json"
    prompts.write_text("hello\nthe night train\n42\n")
    fixed = ("--prompts", prompts, "--ignore-eos", "--max-tokens", "20")
    expected = run(*fixed, kind="plain").stdout
    for content, widest in (('{"1": 3, "2": 1}', 4), ('{"1": 0, "2": 2}', 3), ('{"1": 2}', 3)):
        schedule.write_text(content)
        result = run(*fixed, "--draft-len-schedule", schedule)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == expected
        assert f"of at most {widest}" in result.stderr
    schedule.write_text('{"1": 4}')
    result = run(*fixed, "--draft-len-schedule", schedule)
    assert result.exit_code == 2
    assert "draft_len_schedule goes up to 4, and this engine takes 0 to 3" in result.stderr


def test_draft_len_narrows_the_histogram(run: Run) -> None:
    result = run("hello", "--draft-len", "1", "--ignore-eos")
    assert "bonus included, of at most 2" in result.stderr


def test_single_token_has_no_decode_clock(run: Run) -> None:
    result = run("hello", "--max-tokens", "1")
    assert "first token after" in result.stderr
    assert "generation" not in result.stderr


@pytest.mark.parametrize(
    "content",
    [
        "hello\n\nworld\nhow are you",
        '{"prompt": "hello", "id": 7}\n\n{"prompt": "world"}\n{"prompt": "how are you"}\n',
    ],
)
@pytest.mark.parametrize("from_stdin", [True, False])
def test_prompts_from_a_file(
    run: Run, engines: Callable[..., Path], tmp_path: Path, content: str, from_stdin: bool
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(content)
    source = ("--prompts", "-") if from_stdin else ("--prompts", path)
    result = run(*source, "--raw", "--max-tokens", "9", stdin=content if from_stdin else None)
    assert result.exit_code == 0, result.stderr
    answers = generated(engines("dflash"), ["hello", "world", "how are you"], max_tokens=9)
    texts = [
        f"[{n}/3] {prompt}\n{answer.text}\n\n"
        for n, prompt, answer in zip(
            "123", ["hello", "world", "how are you"], answers, strict=True
        )
    ]
    assert result.stdout == "".join(texts)
    assert "3 prompts" in result.stderr


def test_answers_to_a_file(run: Run, engines: Callable[..., Path], tmp_path: Path) -> None:
    source, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    source.write_text('{"prompt": "hello"}\n{"prompt": [72, 69, 76]}\n')
    result = run("--prompts", source, "--raw", "--output", output, "--max-tokens", "9")
    assert (result.exit_code, result.stdout) == (0, "")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    answers = generated(engines("dflash"), ["hello", [72, 69, 76]], max_tokens=9)
    for index, (row, answer, prompt) in enumerate(
        zip(rows, answers, ["hello", [72, 69, 76]], strict=True)
    ):
        assert {name: row[name] for name in ("index", "prompt", "text", "token_ids")} == {
            "index": index,
            "prompt": prompt,
            "text": answer.text,
            "token_ids": answer.token_ids,
        }
        assert row["acceptance_lengths"] == answer.acceptance_lengths
        assert row["finish_reason"] == answer.finish_reason
        assert row["prefill_seconds"] > 0


def test_refused_prompt_leaves_the_output_alone(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text("earlier answers\n")
    assert run("x" * 61, "--raw", "--output", output).exit_code == 2
    assert output.read_text() == "earlier answers\n"


def test_failing_first_step_leaves_the_output_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtllm_dflash.cli import run as module

    def failing(_: Any) -> Iterator[Any]:
        raise EngineError("no step")

    monkeypatch.setattr(module, "_in_order", failing)
    output = tmp_path / "answers.jsonl"
    output.write_text("earlier answers\n")
    assert run("a", "--output", output).exit_code == 1
    assert output.read_text() == "earlier answers\n"


def test_token_ids_without_a_tokenizer(run: Run, engines: Callable[..., Path]) -> None:
    (expected,) = generated(engines("no_tokenizer"), [[3, 4]], max_tokens=9)
    shown = run(
        "--prompts", "-", "--max-tokens", "9", kind="no_tokenizer", stdin='{"prompt": [3, 4]}'
    )
    assert [int(token) for token in shown.stdout.split()] == expected.token_ids


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ((), None, "stdin is empty. Give a PROMPT, --prompts FILE or --messages FILE"),
        (("hi", "--prompts", "-"), "hi", "give either a PROMPT or --prompts FILE, not both."),
        (
            ("hi", "--no-draft", "--draft-len", "2"),
            None,
            "give either --no-draft or --draft-len, not both.",
        ),
        (
            ("hi", "--draft-len-schedule", "x", "--draft-len", "2"),
            None,
            "give either --draft-len or --draft-len-schedule, not both.",
        ),
        (("hi", "--draft-len-schedule", "nowhere.json"), None, "nowhere.json: cannot be read"),
        (
            ("hi", "--draft-len", "4"),
            None,
            "draft_len is 4, and this engine takes 0 to 3: a block of 4 holds 3 drafts",
        ),
        (
            ("hi", "--max-tokens", "0"),
            None,
            "--max-tokens is 0, expected an integer of at least 1",
        ),
        (
            ("hi", "--temperature", "nan"),
            None,
            "temperature is nan, expected 0 (greedy) or a finite positive number",
        ),
        (
            ("hi", "--num-threads", "0"),
            None,
            "--num-threads is 0, expected an integer from 1 to 1024",
        ),
        (
            ("x" * 61, "--raw"),
            None,
            "error: the prompt has 61 tokens, and prompts of this engine hold at most 60",
        ),
        (("", "--raw"), None, "error: the prompt is empty: there is no token to continue from"),
        (
            ("hi", "--output", "missing/answers.jsonl"),
            None,
            "--output missing/answers.jsonl: there is no folder missing",
        ),
        (
            ("--prompts", "missing.txt"),
            None,
            "missing.txt: cannot be read (No such file or directory). Give a file",
        ),
        (("--prompts", "-"), "\n \n", "stdin: there is no prompt in it. Write one a line"),
        (
            ("--prompts", "-"),
            b"ok\nb\xff",
            "stdin, line 2: byte 1 is not UTF-8. Save the file as UTF-8.",
        ),
        (
            ("--prompts", "-"),
            '{"prompt": "a"}\n{"prompt"',
            "stdin, line 2: not JSON (Expecting",
        ),
        (
            ("--prompts", "-"),
            '{"text": "a"}',
            'stdin, line 1: expected a JSON object with the key "prompt", got {"text"',
        ),
        (
            ("--prompts", "-"),
            '{"prompt": "a"}\n[1]',
            'stdin, line 2: expected a JSON object with the key "prompt", got [1]',
        ),
        (
            ("--prompts", "-"),
            '{"prompt": 5}',
            'stdin, line 1: "prompt" is 5, expected a string or a list of token ids',
        ),
        (
            ("--prompts", "-"),
            '{"prompt": "a"}\n\n{"prompt": [1, 97]}',
            "stdin, line 3: the prompt has at place 1 the id 97",
        ),
        (
            ("--prompts", "-"),
            '{"prompt": [1, 2.5]}',
            "stdin, line 1: the prompt has at place 1 2.5, a float",
        ),
        (
            ("--prompts", "-", "--raw"),
            "a\n" + "x" * 61,
            "stdin, line 2: the prompt has 61 tokens",
        ),
    ],
)
def test_run_refuses_wrong_options(
    run: Run, arguments: tuple[str, ...], stdin: str | bytes | None, words: str
) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == ""


def test_jsonl_file_is_json_by_its_name(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("hello\n")
    result = run("--prompts", path)
    assert f"{path}, line 1: not JSON (Expecting value" in result.stderr
    assert "A file of JSON lines has one object on every line." in result.stderr


def test_text_needs_a_tokenizer(run: Run) -> None:
    result = run("hi", kind="no_tokenizer")
    assert result.exit_code == 2
    assert "this engine has no tokenizer.json. Give lists of token ids" in result.stderr


def test_prompt_without_quotes_is_told_of_them() -> None:
    result = CliRunner().invoke(main, ["run", "hello", "world"])
    assert result.exit_code == 2
    assert "ENGINE 'hello': there is no such directory." in result.stderr
    assert "A PROMPT of several words needs quotes" in result.stderr
    model = CliRunner().invoke(main, ["run", "Qwen3-4B"])
    assert "It is a model: build its engine with `dflash-trt build --target" in model.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "-1"), "error: --temperature is -1.0"),
        (("--stop-words", ""), "error: --stop-words holds ''"),
        (("--min-tokens", "200"), "error: --min-tokens is 200, more than --max-tokens, 128."),
        (("--logprobs", "21"), "error: --logprobs is 21, expected an integer from 0 to 20."),
        (("--n", "0"), "error: --n is 0"),
    ],
)
def test_numbers_are_judged_before_the_engine(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = CliRunner().invoke(main, ["run", str(tmp_path), "hi", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr


def test_cut_answers_are_told(run: Run) -> None:
    one = run("abc", "--raw", "--max-tokens", "1", "--ignore-eos")
    assert "(cut at 1 token, --max-tokens)\n" in one.stderr
    two = ("--n", "2", "--temperature", "1", "--max-tokens", "1", "--ignore-eos")
    assert "(cut 2 of 2 answers, --max-tokens)\n" in run("abc", "--raw", *two).stderr


def test_run_needs_an_engine(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["run", str(tmp_path), "hi"])
    assert result.exit_code == 1
    assert "no config.json, so this is not an engine directory" in result.stderr


def test_thread_variable_is_checked(
    engines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFLASH_NUM_THREADS", "many")
    result = CliRunner().invoke(main, ["run", str(engines("dflash")), "hi"])
    assert result.exit_code == 2
    assert "DFLASH_NUM_THREADS is 'many', expected an integer from 1 to 1024" in result.stderr


def test_defaults_are_those_of_the_api() -> None:
    defaults = {
        option.name: option.default
        for option in run_command.params
        if isinstance(option, click.Option)
    }
    names = {
        "max_tokens": "max_tokens",
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "seed": "seed",
    }
    assert {defaults[ours] for ours in names} == {
        getattr(SamplingParams(), theirs) for theirs in names.values()
    }


def test_run_does_not_import_torch(engines: Callable[..., Path]) -> None:
    code = (
        "import sys; from trtllm_dflash.cli import main\n"
        "main(['run', sys.argv[1], 'hi', '--max-tokens', '5'], standalone_mode=False)\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", code, str(engines("dflash"))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stderr.endswith("False\n")


def test_interrupted_run_keeps_its_answers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtllm_dflash.cli import run as module

    in_order = module._in_order

    def interrupted(stream: Any) -> Iterator[Any]:
        yield next(in_order(stream))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_in_order", interrupted)
    output = tmp_path / "answers.jsonl"
    result = run("--prompts", "-", "--output", output, "--max-tokens", "4", stdin="a\nb\nc\n")
    assert result.exit_code == 130
    assert len(output.read_text().splitlines()) == 1
