"""The engine directory's tokenizer, through transformers (which needs no torch for it), and text as
tokens come.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import EngineError, UsageError

REPLACEMENT = (  # what a decoder writes for bytes that are no whole character
    "\N{REPLACEMENT CHARACTER}"
)


class ChatError(UsageError):
    """Text that cannot be put into a chat format: `problem` says why, for those who see none of our
    files.
    """

    def __init__(self, directory: Path, problem: str, advice: str = "") -> None:
        super().__init__(f"{directory}: {problem}{advice}")
        self.problem = problem


class Tokenizer:
    """Text to token ids and back, from any thread; transformers is imported and the files are read
    at the first use.

    Encoding sets the library's state, which decoding reads. So each has an object and a lock of its
    own: decoding, which running answers need at each step, never waits for a long prompt.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._encoding, self._decoding = threading.Lock(), threading.Lock()

    @classmethod
    def find(cls, directory: Path) -> Tokenizer | None:
        """The tokenizer of an engine directory, or None where the directory holds no
        tokenizer.json.
        """
        return cls(directory) if (directory / TOKENIZER_FILE).is_file() else None

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat format of its own."""
        return bool(self._library.chat_template)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's token ids, with the special tokens that the model's tokenizer adds by itself,
        or without.

        A text that begins with the model's first token, as a rendered chat template may, gets no
        second one.
        """
        begun = bool(self._library.bos_token) and text.startswith(self._library.bos_token)
        return self._encode(text, add_special_tokens=special_tokens and not begun)

    def encode_chat(self, messages: str | Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat format, up to where the assistant's
        answer begins.

        A string is one user message. A model without a chat template, or one that refuses the
        messages, raises ChatError.
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

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids without special tokens; bytes that are no whole character become
        U+FFFD.
        """
        with self._decoding:
            text: str = self._library_of_decoding.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def special_token_id(self, text: str) -> int | None:
        """The id of the special token that is written so, which `decode` leaves out; None for any
        other text.
        """
        return self._special_tokens.get(text)

    @cached_property
    def longest_token(self) -> int:
        """The most characters that one token stands for, or some more."""
        return max(map(len, self._library.get_vocab()))

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        return {
            token.content: index
            for index, token in self._library.added_tokens_decoder.items()
            if token.special
        }

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
        # Without torch, transformers says on every import that models are not available; only its
        # tokenizers are wanted.
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
    """What turns token ids into text; without a tokenizer there is none."""
    return tokenizer.decode if tokenizer else lambda _: ""


def _is_not_about_torch(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()


class IncrementalDetokenizer:
    """Turns tokens that come one after the other into text that never ends inside a character.

    Only a short window is decoded each time: a token's text can depend on those just before it (a
    leading space, the bytes of one character), not on those further back. A window begins where a
    character does.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._settled = 0  # leading tokens of the window that make whole characters
        self._shown = 0  # characters of the window's text that were returned

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete."""
        self._window += token_ids
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        fresh = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == text:
            self._settle()
        return fresh

    def finish(self) -> str:
        """What was held back as an unfinished character; no more tokens may follow."""
        return self._decode(self._window)[self._shown :]

    def _settle(self) -> None:
        tail = self._window[self._settled :]
        shown = len(self._decode(tail))
        if shown or self._decode(
            tail + tail
        ):  # a space at the beginning of a text may show only behind another
            self._window, self._shown = tail, shown
        # special tokens show nothing anywhere, and what follows them may need the token before:
        # forget them
        else:
            del self._window[self._settled :]
        self._settled = len(self._window)
