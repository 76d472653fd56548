"""What an engine's config.json says about text: stop tokens, template options, the tokenizer.

`build` reads and tries the tokenizer that it will copy, before anything long. What cannot work is
an error or a warning there, and not at the first prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtllm_dflash.atomic.output_directory import write_error
from trtllm_dflash.atomic.work_folder import work_folder
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.catalog.published import KnownDrafter
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.checkpoint.tokenizer_files import copy_tokenizer_files
from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.engine_dir.stop_tokens import TurnEnd, missed_ends
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.log import Rows
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.generation_config import settings_of
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.generation_defaults import defaults_in, defaults_text
from trtllm_dflash.tokenizing.limits import MAX_CHARACTERS, TRIAL, rendering_limits
from trtllm_dflash.tokenizing.tokenizer_process import (
    TokenizerError,
    TokenizerFacts,
    TokenizerProcess,
)

_CONVERT = (
    "python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{path}')"
    ".save_pretrained('{path}')\""
)
_OTHER_TOKENIZERS = ("tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json")
_GREETING = [{"role": "user", "content": "Hello."}]


@dataclass(frozen=True)
class TextSettings:
    """What a build decides about text.

    eos_token_ids         the engine's stop tokens.
    chat_template_kwargs  options of the chat template, unless a chat gives others.
    generation_defaults   what `serve` takes for requests that do not say.
    has_tokenizer         whether prompts can be text.
    turn_ends             the tokens that end an answer by the tokenizer and the template.
    notes, warnings       sentences for the user.
    """

    eos_token_ids: tuple[int, ...]
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    has_tokenizer: bool = False
    turn_ends: tuple[TurnEnd, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def rows(self) -> Rows:
        """Return the decisions as rows of name and text."""
        names = {end.token_id: str(end) for end in self.turn_ends}
        stops = ", ".join(names.get(token, str(token)) for token in self.eos_token_ids)
        rows = [("stop tokens", stops or "none: answers end at their limit")]
        if self.chat_template_kwargs:
            rows.append(("chats", f"with {json.dumps(dict(self.chat_template_kwargs))}"))
        if self.generation_defaults:
            rows.append(("serve", f"with {defaults_text(self.generation_defaults)}"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return what the engine's config.json says of it."""
        return {
            "eos_token_ids": list(self.eos_token_ids),
            "chat_template_kwargs": dict(self.chat_template_kwargs),
            "generation_defaults": dict(self.generation_defaults),
            "turn_ends": [asdict(end) for end in self.turn_ends],
        }


def decide_text_settings(
    config: BuildConfig, directory: Path, target: TargetConfig
) -> TextSettings:
    """Try the target's tokenizer out and decide stop tokens and template options.

    Args:
        config: the build.
        directory: the target's.
        target: its configuration.

    Raises:
        CheckpointError: for tokenizer files with which no text can be encoded or decoded.
        UsageError: for stop tokens outside the vocabulary.
    """
    trial = _Trial(config, directory, target.vocab_size)
    trial.run()
    stop_tokens = _StopTokens(config, target, trial)
    return TextSettings(
        eos_token_ids=stop_tokens.ids,
        chat_template_kwargs=trial.options,
        generation_defaults=defaults_in(
            settings_of(
                read_json_in(directory, "generation_config.json"),
                read_json_in(directory, "config.json") or {},
            )
        ),
        has_tokenizer=trial.facts is not None,
        turn_ends=tuple(trial.turn_ends),
        notes=(*trial.notes, *stop_tokens.notes),
        warnings=(*trial.warnings, *stop_tokens.warnings),
    )


def _published_drafter(name: str | None) -> KnownDrafter | None:
    """Return the drafter of the catalog with this name, or with a directory's last name."""
    if name is None:
        return None
    pair = pair_of(Path(name).resolve().name if Path(name).is_dir() else name, "drafter")
    return pair.drafter if pair else None


class _Trial:
    """A tokenizer that is read and tried out, and what is to be said about it."""

    def __init__(self, config: BuildConfig, directory: Path, vocab_size: int) -> None:
        self.options = config.template_options or {}
        self._options_given = config.template_options is not None
        drafter = _published_drafter(config.drafter)
        if drafter is not None and not self._options_given:
            self.options = dict(drafter.chat_template_kwargs)
        self.facts: TokenizerFacts | None = None
        self.turn_ends: list[TurnEnd] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._directory = directory
        self._vocab_size = vocab_size

    def run(self) -> None:
        """Try the files as the engine will have them.

        Raises:
            CheckpointError: for files that cannot work.
        """
        if not (self._directory / TOKENIZER_FILE).is_file():
            self.notes.append(self._missing())
            self._drop_options("there is no tokenizer, so there is no chat template")
            return
        with work_folder("dflash-trt-tokenizer-") as folder:
            try:
                copy_tokenizer_files(self._directory, folder)
            except OSError as error:
                raise write_error(folder, error) from error
            process = TokenizerProcess(folder)
            try:
                self._try_texts(process)
                self._try_template(process)
            finally:
                process.close()

    def _missing(self) -> str:
        text = f"{self._directory} has no {TOKENIZER_FILE}: prompts are token ids"
        others = [name for name in _OTHER_TOKENIZERS if (self._directory / name).is_file()]
        if others:
            how = _CONVERT.format(path=self._directory)
            text += (
                f". Its {others[0]} can be converted, as far as transformers knows it: {how}"
            )
        return text

    def _try_texts(self, process: TokenizerProcess) -> None:
        path = self._directory / TOKENIZER_FILE
        try:
            self.facts = process.facts
            odd = process.call("trial", "try_texts", TRIAL, self._vocab_size)
        except TokenizerError as error:
            raise CheckpointError(
                f"{path}: the tokenizer {error.describe()}. Get intact files; or build without"
                " them, for prompts as token ids: move the tokenizer's files away."
            ) from error
        self.warnings += [f"{path}: the tokenizer {text}" for text in odd]
        if self.facts.eos_token_id is not None and self.facts.eos_token is not None:
            end = TurnEnd(self.facts.eos_token, self.facts.eos_token_id, "eos_token")
            self.turn_ends.append(end)

    def _try_template(self, process: TokenizerProcess) -> None:
        """Render one message; a template that fails is a warning, since prompts may be raw."""
        assert self.facts is not None
        names = self.facts.template_names
        if names and not self.facts.has_chat_template and "chat_template" not in self.options:
            self.warnings.append(
                f"{self._directory}: its chat templates are {', '.join(names)}, and none is the"
                " default: chats must choose one, as --chat-template-kwargs"
                f' \'{{"chat_template": "{names[0]}"}}\''
            )
            return
        if not names and not self.facts.has_chat_template:
            self.notes.append(f"{self._directory} has no chat template: prompts are raw")
            self._drop_options("there is no chat template")
            return
        problem = self._try_rendering(process, self.options)
        if problem is not None and self.options:
            without = self._try_rendering(process, {})
            if without is None:  # it is the options that it does not take
                self._drop_options(f"the chat template {problem}")
                return
        if problem is not None:
            self.warnings.append(
                f"{self._directory}: the chat template {problem}. Chats will be refused; raw"
                " prompts (run --raw) go on"
            )

    def _try_rendering(self, process: TokenizerProcess, options: dict[str, Any]) -> str | None:
        """Render one message; returns what is wrong, as the rest of a sentence."""
        limits = rendering_limits(0)
        try:
            text = process.call("trial", "render", limits, _GREETING, options, MAX_CHARACTERS)
            process.call("trial", "encode", TRIAL, text, False)
            end = process.call("trial", "end_of_turn", limits, options, MAX_CHARACTERS)
        except TokenizerError as error:
            return error.describe()
        if end is not None:
            self.turn_ends.append(TurnEnd(end[0], end[1], "chat template"))
        return None

    def _drop_options(self, why: str) -> None:
        """Leave the template options out, unless the user gave them.

        Raises:
            UsageError: if the user gave them.
        """
        if not self.options:
            return
        if self._options_given:
            raise UsageError(f"--chat-template-kwargs {json.dumps(self.options)}: {why}")
        self.warnings.append(
            f"the drafter was trained with the template options {json.dumps(self.options)}, and"
            f" they are left out: {why}"
        )
        self.options = {}


class _StopTokens:
    """The stop tokens of an engine, from options, configuration files and tokenizer."""

    def __init__(self, config: BuildConfig, target: TargetConfig, trial: _Trial) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        size = target.vocab_size
        given = config.stop_token_ids
        if given is not None:
            self.ids = self._checked(given, size)
            return
        self.ids = self._known(target.eos_token_ids, size)
        ends = [end for end in trial.turn_ends if end.token_id < size]
        eos = [end for end in ends if end.origin == "eos_token"]
        if not self.ids and eos:
            self.ids = (eos[0].token_id,)
            self.notes.append(
                f"the configuration names no stop token, so it is the tokenizer's: {eos[0]}"
            )
        self.warnings += missed_ends(self.ids, ends, advice="build with --eos-token-ids")

    def _checked(self, given: Sequence[int], size: int) -> tuple[int, ...]:
        for token in given:
            if token >= size:
                raise UsageError(
                    f"--eos-token-ids has {token}, outside the vocabulary (0 to {size - 1})"
                )
        return tuple(given)

    def _known(self, ids: Sequence[int], size: int) -> tuple[int, ...]:
        for token in ids:
            if token >= size:
                self.warnings.append(
                    f"the configuration's stop token {token} is outside the vocabulary (0 to"
                    f" {size - 1}), so it is none"
                )
        return tuple(token for token in ids if token < size)
