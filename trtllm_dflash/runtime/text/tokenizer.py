"""The engine directory's tokenizer. Its foreign code runs in the processes of `tokenizing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.checks import as_list, check_integer
from trtllm_dflash.runtime.text.byte_fallback import ByteRuns, byte_tokens_of
from trtllm_dflash.runtime.text.chat_messages import (
    Messages,
    as_messages,
    check_template_options,
)
from trtllm_dflash.tokenizing.limits import (
    MAX_CHARACTERS,
    VOCABULARY,
    CallLimits,
    decoding_limits,
    encoding_limits,
    rendering_limits,
)
from trtllm_dflash.tokenizing.tokenizer_process import (
    TokenizerError,
    TokenizerFacts,
    TokenizerProcess,
)


class ChatError(UsageError):
    """Text that cannot be put into a chat format; `problem` says why without naming a path."""

    def __init__(self, directory: Path, problem: str, advice: str = "") -> None:
        super().__init__(f"{directory}: {problem}{advice}")
        self.problem = problem


class Vocabulary(NamedTuple):
    """All tokens of a tokenizer.

    tokens   ids by spelling in the vocabulary, with the added ones.
    added    ids of added tokens, which are written as they are.
    special  those of them that are special.
    decoder  what makes text of spellings, in JSON.
    """

    tokens: dict[str, int]
    added: dict[str, int]
    special: dict[str, int]
    decoder: str


class Tokenizer:
    """Text to token ids and back, from any thread.

    The files are foreign code, and so is a chat template. They run in processes of their own, with
    limits of time, memory and output. Encoding, chats and decoding each have one, so running
    answers never wait for a long prompt.
    """

    def __init__(
        self,
        directory: Path,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_input_len: int | None = None,
    ) -> None:
        """Take a directory with a tokenizer.json; nothing is read yet.

        Args:
            directory: the directory.
            chat_template_kwargs: options of the chat template, for chats that give no others.
            max_input_len: tokens of the longest prompt. Longer rendered chats are refused.
        """
        self._directory = directory
        self._process = TokenizerProcess(directory)
        self._max_input_len = max_input_len
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    @classmethod
    def find(cls, directory: Path) -> Tokenizer | None:
        """Return the tokenizer of a directory, None without a tokenizer.json."""
        return cls(directory) if (directory / TOKENIZER_FILE).is_file() else None

    @classmethod
    def of_engine(cls, directory: Path, config: EngineConfig) -> Tokenizer | None:
        """Return an engine's tokenizer with its template options; None without a tokenizer.json."""
        if not (directory / TOKENIZER_FILE).is_file():
            return None
        return cls(
            directory,
            chat_template_kwargs=config.chat_template_kwargs,
            max_input_len=config.max_input_len,
        )

    def start(self) -> None:
        """Begin to read the files, without waiting."""
        self._process.start()

    def close(self) -> None:
        """End the processes; a later call starts them again."""
        self._process.close()

    @property
    def has_chat_template(self) -> bool:
        """Tell whether the model has a chat format that needs no choice."""
        return self._facts.has_chat_template or "chat_template" in self.chat_template_kwargs

    @property
    def longest_token(self) -> int:
        """Return an upper bound of the characters that one token stands for."""
        return self._facts.longest_token

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the special token that is written so; None for any other text."""
        return self.special_tokens.get(text)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Return the ids of all special tokens by their texts."""
        return self._facts.special_tokens

    @property
    def think_tokens(self) -> Mapping[str, int]:
        """Return the ids of the tokens between which models think, by their texts."""
        return self._facts.think_tokens

    @property
    def template_reads_tools(self) -> bool:
        """Tell whether the chat template shows the model the tools that it may call."""
        return self.template_writes("tools")

    def template_writes(self, word: str) -> bool:
        """Tell whether a chat template has one of the words of `library.TEMPLATE_WORDS`."""
        return word in self._facts.template_words

    def vocabulary(self) -> Vocabulary:
        """Return all tokens, read anew at each call.

        Raises:
            EngineError: if the tokenizer cannot.
        """
        found: dict[str, Any] = self._call("vocabulary", "vocabulary", VOCABULARY)
        return Vocabulary(
            found["tokens"], found["added"], dict(self.special_tokens), self._facts.decoder
        )

    def encode_forced(self, text: str) -> list[int]:
        """Return the tokens of a text that follows others, in a process of its own for that.

        So an answer under way never waits for the encoding of a prompt.

        Raises:
            UsageError, EngineError: as `encode`.
        """
        _check_text(text)
        limits = encoding_limits(len(text))
        ids: list[int] = self._call("encode a grammar's text", "encode", limits, text, False)
        return ids

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds or without.

        No BOS token is added if the text already starts with one, as a rendered chat template may.

        Raises:
            UsageError: for what is no text, or too long.
            EngineError: if the tokenizer cannot.
        """
        _check_text(text)
        limits = encoding_limits(len(text))
        ids: list[int] = self._call("encode", "encode", limits, text, special_tokens)
        return ids

    def encode_chat(self, messages: Messages, /, **template_options: Any) -> list[int]:
        """Return a conversation's token ids in the model's chat format, up to the answer.

        A string is one user message. `template_options` are variables that the template reads, such
        as enable_thinking. They replace the engine's own, key by key.

        Raises:
            ChatError: if the model has no chat template, or its template fails with these messages
                or lacks such an option.
            UsageError: for messages that are none.
            EngineError: if the tokenizer cannot.
        """
        conversation = as_messages(messages)
        options = self.chat_template_kwargs | check_template_options(template_options)
        self._require_template(options)
        limits = rendering_limits(_length(conversation))
        try:
            text: str = self._process.call(
                "render", "render", limits, conversation, options, self._max_characters
            )
        except TokenizerError as error:
            raise ChatError(
                self._directory, f"the model's chat template {error.describe()}"
            ) from error
        return self.encode(text, special_tokens=False)  # the template writes them itself

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, without special tokens or with them.

        Bytes that are not a whole character become U+FFFD, as in `bytes.decode`.

        Raises:
            UsageError: for what is no sequence of token ids.
            EngineError: if the tokenizer cannot.
        """
        given = as_list("token_ids", token_ids, expected="a list of token ids")
        for token in given:
            if type(token) is not int or token < 0:
                check_integer("token_ids", token, low=0)
        hidden = self._special_ids if skip_special_tokens else frozenset[int]()
        ids = self._byte_runs.mend(map(int, given), hidden)
        limits = decoding_limits(len(ids))
        text: str = self._call("decode", "decode", limits, ids, skip_special_tokens)
        return text

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _byte_runs(self) -> ByteRuns:
        facts = self._facts
        byte_tokens = byte_tokens_of(facts.byte_tokens, facts.decoder)
        return ByteRuns(byte_tokens, facts.largest_id + 1)

    @property
    def _facts(self) -> TokenizerFacts:
        try:
            return self._process.facts
        except TokenizerError as error:
            self._unreadable(error)

    @property
    def _max_characters(self) -> int:
        if self._max_input_len is None:
            return MAX_CHARACTERS
        return min(MAX_CHARACTERS, self._max_input_len * self.longest_token)

    def _call(self, role: str, do: str, limits: CallLimits, *arguments: Any) -> Any:
        _ = self._facts
        try:
            return self._process.call(role, do, limits, *arguments)
        except TokenizerError as error:
            raise EngineError(
                f"{self._directory / TOKENIZER_FILE}: the tokenizer cannot {role} this:"
                f" {error.problem}"
            ) from error

    def _require_template(self, options: Mapping[str, Any]) -> None:
        facts = self._facts
        if facts.has_chat_template or "chat_template" in options:
            return
        if facts.template_names:
            example = f'{{"chat_template": "{facts.template_names[0]}"}}'
            raise ChatError(
                self._directory,
                f"this model has the chat templates {', '.join(facts.template_names)}, and none is"
                " the default",
                f". Choose one: --chat-template-kwargs '{example}'.",
            )
        advice = ". Give the text as it is: run --raw, or engine.generate with a string."
        raise ChatError(self._directory, "this model has no chat template", advice)

    def _unreadable(self, error: TokenizerError) -> NoReturn:
        raise EngineError(
            f"{self._directory}: the tokenizer files cannot be read ({error.problem}). "
            "Build the engine again from an intact checkpoint, or give prompts as token ids."
        ) from error


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise UsageError(f"the text is a {type(text).__name__}, expected a string.")
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"the text has {len(text)} characters, and at most {MAX_CHARACTERS} are encoded."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has half a surrogate pair at place {error.start}, which is no character:"
            f" {text[:60]!r}"
        ) from error


def _length(conversation: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(message.get("content") or "") for message in conversation)
