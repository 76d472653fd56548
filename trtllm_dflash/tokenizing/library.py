"""What a tokenizer process does with its files, through transformers.

Only `fork_server` imports this. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError, meta
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from trtllm_dflash.tokenizing.framing import one_line, reason
from trtllm_dflash.utf8_path import utf8_path

DEFAULT_TEMPLATE = "default"
OLDEST_MAJOR = 5  # of transformers
# What a template is given that is no option of the caller.
_NO_OPTIONS = {"messages", "add_generation_prompt"}
THINK_TOKENS = ("<think>", "</think>")  # added tokens of models that think, often not special
# Words by which templates tell how a model calls tools.
TEMPLATE_WORDS = ("tools", "<tool_call>", "<function=")


class RefusalError(Exception):
    """What was asked cannot be done, and the text says why; nothing is broken."""


class Library:
    """A tokenizer as transformers reads it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path) -> Library:
        """Read the files of a directory.

        Raises:
            RefusalError: for whatever the library raises, with its version; and for a version that
                reads files of others wrongly.
        """
        for path in directory.iterdir():
            is_other = path.exists() and not path.is_file() and not path.is_dir()
            if is_other:  # reading a pipe would never end
                raise RefusalError(f"{path.name} is neither a file nor a folder")
        version = transformers.__version__
        if int(version.partition(".")[0]) < OLDEST_MAJOR:
            raise RefusalError(
                f"transformers {version} is installed, which reads files of later versions wrongly:"
                f" pip install 'transformers>={OLDEST_MAJOR},<6'"
            )
        try:
            with utf8_path(directory / "tokenizer.json") as name:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(
                    Path(name).parent, local_files_only=True, trust_remote_code=False
                )
        except MemoryError:
            raise
        except Exception as error:
            raise RefusalError(f"{reason(error)}; read by {_versions(directory)}") from error
        return cls(tokenizer)

    def facts(self) -> dict[str, Any]:
        """Return what the near side keeps, as plain types."""
        tokenizer = self._tokenizer
        templates = tokenizer.chat_template
        names = self._template_names
        is_chosen = not isinstance(templates, dict) or DEFAULT_TEMPLATE in names
        vocabulary = tokenizer.get_vocab()
        byte_tokens = {text: i for text, i in vocabulary.items() if text.startswith("<0x")}
        decoder = tokenizer.backend_tokenizer.decoder
        eos = tokenizer.eos_token
        return {
            "special_tokens": self.special_tokens(),
            "longest_token": max(map(len, vocabulary), default=1),
            "largest_id": max(vocabulary.values(), default=-1),
            "has_chat_template": bool(templates) and is_chosen,
            "template_names": names,
            "eos_token": eos,
            "eos_token_id": tokenizer.convert_tokens_to_ids(eos) if eos else None,
            "byte_tokens": byte_tokens,
            "decoder": decoder.__getstate__().decode() if decoder is not None else "",
            "template_words": self._template_words(),
            "think_tokens": self._think_tokens(),
            "library": f"transformers {transformers.__version__}",
        }

    def vocabulary(self) -> dict[str, Any]:
        """Return the ids of all tokens by their spellings, and those of added ones."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {
            "tokens": self._tokenizer.get_vocab(),
            "added": {token.content: index for index, token in added},
        }

    def _think_tokens(self) -> dict[str, int]:
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: index for index, token in added if token.content in THINK_TOKENS}

    def special_tokens(self) -> dict[str, int]:
        """Return the ids of the special tokens by their texts."""
        found = {}
        for index, token in self._tokenizer.added_tokens_decoder.items():
            if token.special:
                found[token.content] = index
        return found

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Return a text's token ids; no BOS token is added to a text that begins with one."""
        bos = self._tokenizer.bos_token
        begun = bool(bos) and text.startswith(bos)
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=special_tokens and not begun
        )
        return ids

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        max_characters: int,
        answer_follows: bool = True,
    ) -> str:
        """Return a conversation in the model's chat format.

        Raises:
            RefusalError: if the template fails, writes more than `max_characters`, or has no such
                option.
        """
        self._check_options(options)
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=answer_follows,
                **options,
            )
        except TemplateError as error:
            raise RefusalError(f"refuses these messages: {one_line(str(error))}") from error
        except MemoryError:
            raise
        except Exception as error:
            raise RefusalError(
                f"fails with these messages: {type(error).__name__}: {one_line(str(error))}"
            ) from error
        if len(text) > max_characters:
            raise RefusalError(
                f"makes a text of {len(text)} characters of these messages, and a prompt has at"
                f" most {max_characters}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RefusalError("writes half a surrogate pair, which is no character") from error
        return text

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Raise RefusalError for an option that the template does not look at."""
        unknown = sorted(options.keys() - self._known_options - {"chat_template"})
        name = options.get("chat_template")
        if name is not None and name not in self._template_names:
            raise RefusalError(
                f"can be chosen by name only, and {json.dumps(name)[:60]} is not among the"
                f" model's: {', '.join(self._template_names) or 'it has just one'}"
            )
        if unknown:
            known = ", ".join(sorted(self._known_options)) or "none"
            raise RefusalError(f"has no option {unknown[0]!r}; its options: {known}")

    @property
    def _template_names(self) -> list[str]:
        templates = self._tokenizer.chat_template
        if not isinstance(templates, dict):
            return []
        return sorted(name for name in templates if isinstance(name, str))

    def _template_words(self) -> list[str]:
        templates = self._tokenizer.chat_template
        sources = templates.values() if isinstance(templates, dict) else [templates]
        text = "\n".join(source for source in sources if isinstance(source, str))
        return [word for word in TEMPLATE_WORDS if word in text]

    @cached_property
    def _known_options(self) -> set[str]:
        """Return the variables that the templates read, but for those that are always there."""
        templates = self._tokenizer.chat_template
        sources = templates.values() if isinstance(templates, dict) else [templates]
        found = set[str]()
        for source in sources:
            try:
                compiled = _compile_jinja_template(source)
                found |= meta.find_undeclared_variables(compiled.environment.parse(source))
            except TemplateError as error:
                raise RefusalError(f"is not valid: {one_line(str(error))}") from error
        return found - _NO_OPTIONS - set(compiled.environment.globals)


def _versions(directory: Path) -> str:
    """Return which version has read the files, and which has written them if they say so."""
    text = f"transformers {transformers.__version__}"
    with suppress(Exception):
        config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
        text += f", written by {str(config['transformers_version'])[:20]}"
    return text
