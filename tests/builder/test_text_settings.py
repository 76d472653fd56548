"""What a build decides about text, and what it says of tokenizers that cannot work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from tests.fixtures.tiny_models import tiny_target
from tests.runtime import tiny_tokenizer as tiny
from tests.tokenizing.tokenizer_files import change, write
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.text_settings import TextSettings, decide_text_settings
from trtllm_dflash.errors import BuildError, CheckpointError, UsageError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.tokenizing import processes

THINKING = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
)
ENDING = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|user|>{% endif %}"
    "{% endfor %}"
)


def decide(
    directory: Path,
    *,
    vocab_size: int = tiny.VOCAB_SIZE,
    eos: tuple[int, ...] = (tiny.EOS,),
    **options: Any,
) -> TextSettings:
    config = BuildConfig(str(directory), Path("unused"), **options)
    target = SimpleNamespace(vocab_size=vocab_size, eos_token_ids=eos)
    return decide_text_settings(config, directory, cast(TargetConfig, target))


def test_an_intact_tokenizer_needs_no_word(tmp_path: Path) -> None:
    settings = decide(tiny.write_byte_level(tmp_path))
    assert (settings.notes, settings.warnings) == ((), ())
    assert settings.has_tokenizer
    assert settings.eos_token_ids == (tiny.EOS,)


def test_the_checkpoints_own_sampling_is_kept(tmp_path: Path) -> None:
    directory = tiny.write_byte_level(tmp_path)
    assert decide(directory).generation_defaults == {}
    (directory / "config.json").write_text('{"top_p": 0.5}')
    assert decide(directory).generation_defaults == {"top_p": 0.5}
    own = '{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": "x"}'
    (directory / "generation_config.json").write_text(own)
    settings = decide(directory)
    assert settings.to_json()["generation_defaults"] == {"temperature": 0.6, "top_k": 20}
    assert ("serve", "with temperature 0.6, top_k 20") in settings.rows()


BROKEN = {
    "panic": (
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "fails with 'Hello, wor",
    ),
    "no unknown token": (
        {"model": {"type": "WordLevel", "vocab": {"a": 1}, "unk_token": "zzz"}},
        "fails with 'Hello, wor.*WordLevel error",
    ),
    "another model's": (
        {"model": {"type": "BPE", "vocab": {"H": 5000}, "merges": []}},
        "makes the id 5000 of an ordinary text, and the vocabulary has 260 tokens",
    ),
    "unknown type": ({"model": {"type": "Magic"}}, "cannot be used: .*"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tokenizer_that_cannot_work_is_refused(tmp_path: Path, name: str) -> None:
    keys, problem = BROKEN[name]
    write(tmp_path, **keys)
    with pytest.raises(
        CheckpointError, match=rf"tokenizer.json: the tokenizer .*{problem}.*Get intact files"
    ):
        decide(tmp_path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: the tokenizer cannot be used"):
        decide(tmp_path)


def test_tokens_that_no_text_makes_may_be_outside(tmp_path: Path) -> None:
    """An embedding without the last rows of the vocabulary is enough if nothing reads them."""
    vocabulary = {chr(32 + index): index for index in range(95)} | {"[unused]": 95, "xy": 96}
    write(tmp_path, model={"type": "BPE", "vocab": vocabulary, "merges": []}, added_tokens=[])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert decide(tmp_path, vocab_size=95, eos=()).warnings == ()


def test_tokens_that_a_text_makes_must_be_inside(tmp_path: Path) -> None:
    vocabulary = {chr(32 + index): index for index in range(95)} | {"xy": 95}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["x", "y"]]}
    write(tmp_path, model=model, added_tokens=[])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (warning,) = decide(tmp_path, vocab_size=95, eos=()).warnings
    assert "the tokenizer can make 'xy' (95) outside the vocabulary of 95" in warning


def test_special_tokens_outside_the_vocabulary(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    (warning,) = decide(tmp_path, vocab_size=tiny.ASSISTANT).warnings
    assert warning.endswith(
        "the tokenizer has '<|assistant|>' (259) outside the vocabulary of 259: a prompt with such"
        " a token is refused"
    )


@pytest.mark.usefixtures("no_other_tokenizer")
@pytest.mark.parametrize(("arch", "ends"), [("sm120", True), ("cpu", False)])
def test_the_tokenizers_processes_end_before_a_compiler_works(
    arch: str, ends: bool, tmp_path: Path
) -> None:
    if ends:
        pytest.importorskip("tensorrt_rtx")
    target = tiny_target(tmp_path / "target", tokenizer=True)
    asked = []

    def stop(*_: object, **__: object) -> NoReturn:
        asked.append(processes._root)
        raise BuildError("far enough")

    config = BuildConfig(str(target), tmp_path / "engine", arch=arch, plugins=False)
    with pytest.raises(BuildError, match="far enough"):
        build_engine(config, run=stop)
    (root,) = asked
    assert (root is None) == ends


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n")
    settings = decide(tmp_path)
    (note,) = settings.notes
    assert "has no tokenizer.json: prompts are token ids. Its tokenizer.model can be" in note
    assert not settings.has_tokenizer


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ 1 / 0 }}", "fails with these messages: ZeroDivisionError"),
        ("{{ none + 'a' }}", "fails with these messages: TypeError"),
        ("{% include 'x' %}", "fails with these messages: TypeError: no loader"),
        ("{% if %}", "is not valid: Expected an expression"),
        ("{{ raise_exception('no') }}", "refuses these messages: no"),
        (
            [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}],
            "templates are a, b, and none is the default",
        ),
    ],
)
def test_a_template_that_fails_is_a_warning(
    tmp_path: Path, template: Any, problem: str
) -> None:
    (warning,) = decide(write(tmp_path, template=template)).warnings
    assert problem in warning


def test_the_tokenizers_end_is_used_where_no_other_is(tmp_path: Path) -> None:
    settings = decide(tiny.write_byte_level(tmp_path), eos=())
    assert settings.eos_token_ids == (tiny.EOS,)
    assert settings.notes == (
        "the configuration names no stop token, so it is the tokenizer's: </s> (257)",
    )


def test_ends_that_are_no_stop_tokens(tmp_path: Path) -> None:
    settings = decide(write(tmp_path, template=ENDING), eos=(5,))
    assert settings.eos_token_ids == (5,)
    eos, turn = settings.warnings
    assert eos.startswith("</s> (257), the tokenizer's eos_token, is no stop token (5)")
    assert eos.endswith("build with --eos-token-ids 5,257")
    assert turn.startswith("<|user|> (258), which the template writes behind an answer, is no")


def test_a_stop_token_outside_the_vocabulary(tmp_path: Path) -> None:
    settings = decide(tiny.write_byte_level(tmp_path), eos=(500, tiny.EOS))
    assert settings.eos_token_ids == (tiny.EOS,)
    assert settings.warnings == (
        "the configuration's stop token 500 is outside the vocabulary (0 to 259), so it is none",
    )


def test_stop_tokens_of_the_user(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    assert decide(tmp_path, eos_token_ids="5, 6").eos_token_ids == (5, 6)
    with pytest.raises(UsageError, match="--eos-token-ids has 260, outside the vocabulary"):
        decide(tmp_path, eos_token_ids="260")
    with pytest.raises(UsageError, match="--eos-token-ids is 'a', expected integers"):
        decide(tmp_path, eos_token_ids="a")


def test_template_options_of_the_user(tmp_path: Path) -> None:
    write(tmp_path, template=THINKING)
    given = decide(tmp_path, chat_template_kwargs='{"enable_thinking": false}')
    assert given.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(
        UsageError, match="has no option 'thinking'; its options: enable_thinking"
    ):
        decide(tmp_path, chat_template_kwargs='{"thinking": false}')
    with pytest.raises(
        UsageError, match=r"--chat-template-kwargs is \[1\], expected a JSON obj"
    ):
        decide(tmp_path, chat_template_kwargs="[1]")


def test_template_options_of_a_published_drafter(tmp_path: Path) -> None:
    """A directory is known by its name, which `hf download` gives it."""
    drafter = tmp_path / "Qwen3-8B-DFlash-b16"
    drafter.mkdir()
    write(tmp_path, template=THINKING)
    trained = {"enable_thinking": False}
    assert decide(tmp_path, drafter=str(drafter)).chat_template_kwargs == trained
    assert decide(tmp_path, drafter="z-lab/Qwen3-8B-DFlash-b16").chat_template_kwargs == trained
    cleared = decide(tmp_path, drafter=str(drafter), chat_template_kwargs="{}")
    assert cleared.chat_template_kwargs == {}


def test_template_options_that_the_template_lacks(tmp_path: Path) -> None:
    settings = decide(tiny.write_byte_level(tmp_path), drafter="z-lab/Qwen3-8B-DFlash-b16")
    assert settings.chat_template_kwargs == {}
    (warning,) = settings.warnings
    assert "are left out: the chat template has no option 'enable_thinking'" in warning


def test_what_is_tried_is_what_is_copied(tmp_path: Path) -> None:
    """Other files beside the tokenizer's do not come into the engine."""
    tiny.write_byte_level(tmp_path, chat=False)
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "default.jinja").write_text("x")
    (note,) = decide(tmp_path).notes
    assert note.endswith("has no chat template: prompts are raw")
    change(tmp_path / "tokenizer_config.json", {"chat_template": "y"})
    assert decide(tmp_path).notes == ()
