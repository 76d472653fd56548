"""The engine directory's tokenizer, through transformers; this needs no torch."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.runtime.text.byte_fallback import ByteRuns, byte_tokens_of


class ChatError(UsageError):
    """Text that cannot be put into a chat format; `problem` says why without naming a path."""

    def __init__(self, directory: Path, problem: str, advice: str = "") -> None:
        super().__init__(f"{directory}: {problem}{advice}")
        self.problem = problem


class Tokenizer:
    """Text to token ids and back, from any thread.

    The first use imports transformers and reads the files. Encoding changes the library's state,
    which decoding reads, so each has its own object and lock. Decoding, which running answers need
    at each step, then never waits for a long prompt.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._encoding = threading.Lock()
        self._decoding = threading.Lock()

    @classmethod
    def find(cls, directory: Path) -> Tokenizer | None:
        """Return the tokenizer of an engine directory, None without a tokenizer.json."""
        return cls(directory) if (directory / TOKENIZER_FILE).is_file() else None

    @property
    def has_chat_template(self) -> bool:
        """Tell whether the model has a chat format."""
        return bool(self._library.chat_template)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds or without.

        No BOS token is added if the text already starts with one, as a rendered chat template may.
        """
        begun = bool(self._library.bos_token) and text.startswith(self._library.bos_token)
        return self._encode(text, add_special_tokens=special_tokens and not begun)

    def encode_chat(self, messages: str | Sequence[dict[str, str]]) -> list[int]:
        """Return a conversation's token ids in the model's chat format, up to the answer.

        A string is one user message.

        Raises:
            ChatError: if the model has no chat template, or its template refuses the messages.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not self.has_chat_template:
            advice = ". Give the text as it is: run --raw, or engine.generate with a string."
            raise ChatError(self._directory, "this model has no chat template", advice)
        from jinja2 import TemplateError

        try:
            text = self._library.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ChatError(
                self._directory, f"the model's chat template refuses these messages: {error}"
            ) from error
        return self._encode(text, add_special_tokens=False)  # the template writes them itself

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, without special tokens or with them.

        Bytes that are not a whole character become U+FFFD, as in `bytes.decode`.
        """
        hidden = self._special_ids if skip_special_tokens else frozenset[int]()
        ids = self._byte_runs.mend(token_ids, hidden)
        with self._decoding:
            text: str = self._library_of_decoding.decode(
                ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        return text

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the special token that is written so; None for any other text."""
        return self.special_tokens.get(text)

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Return the ids of all special tokens by their texts."""
        return {
            token.content: index
            for index, token in self._library.added_tokens_decoder.items()
            if token.special
        }

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _byte_runs(self) -> ByteRuns:
        vocabulary = self._library.get_vocab()
        decoder = self._library.backend_tokenizer.decoder
        described = decoder.__getstate__().decode() if decoder is not None else ""
        num_ids = max(vocabulary.values(), default=-1) + 1
        return ByteRuns(byte_tokens_of(vocabulary, described), num_ids)

    @cached_property
    def longest_token(self) -> int:
        """Return an upper bound of the characters that one token stands for."""
        return max(map(len, self._library.get_vocab()))

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text has half a surrogate pair at place {error.start}, which is no character:"
                f" {text[:60]!r}"
            ) from error
        with self._encoding:
            ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens)
        return ids

    @cached_property
    def _library_of_decoding(self) -> Any:
        library = self._library
        with self._encoding:
            return copy.deepcopy(library)

    @cached_property
    def _library(self) -> Any:
        # Without torch, transformers warns on every import that it has no models. Its tokenizers
        # work without.
        logging.getLogger("transformers").addFilter(_is_not_about_torch)
        from transformers import PreTrainedTokenizerFast

        try:
            return PreTrainedTokenizerFast.from_pretrained(
                self._directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # tokenizers raises no narrower class
            raise EngineError(
                f"{self._directory}: the tokenizer files cannot be read ({error}). "
                "Build the engine again from an intact checkpoint, or give prompts as token ids."
            ) from error


def decoder_of(tokenizer: Tokenizer | None) -> Callable[[Sequence[int]], str]:
    """Return what turns token ids into text; without a tokenizer every text is empty."""
    return tokenizer.decode if tokenizer else lambda _: ""


def _is_not_about_torch(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()
