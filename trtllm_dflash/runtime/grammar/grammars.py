"""Compiles the grammars of requests; one `Grammars` for an engine."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import DFlashError, UsageError
from trtllm_dflash.options.guidance import AnswerGrammar
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.grammar.answer_prefix import harmony_prefix, think_prefix
from trtllm_dflash.runtime.grammar.constraint import Constraint, short_reason
from trtllm_dflash.runtime.grammar.token_bytes import token_bytes
from trtllm_dflash.runtime.grammar.tool_grammar import tool_grammar
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.text.tool_calls import tool_format

# The limits of one grammar. llguidance does about 50,000 units of fuel in a millisecond, and a
# lexer's state takes 1 to 2 kB.
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# JSON as Python's json.dumps writes it: fixed white space is forced, and forced tokens are drafts.
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": True,
}
_MAX_COMPILED = 32
_MAX_FORCED_TEXTS = 4096
_NAMES = {
    "json": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the choices",
    "grammar": "the grammar",
    "tools": "the tools",
}


class Grammars:
    """Makes a `Constraint` of a request's grammar; calls may come from any thread.

    The vocabulary is read at the first grammar. Compiled grammars are kept: the last 32.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, config: EngineConfig, *, forces: bool = True
    ) -> None:
        """Take the engine's tokenizer and config; nothing is read yet.

        `forces`: tokens that a grammar forces become drafts.
        """
        self._forces = forces
        self._tokenizer = tokenizer
        self._config = config
        self._lock = threading.Lock()
        self._vocabulary: _Vocabulary | None = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def constrain(self, requests: Iterable[Request], sampling: SamplingParams) -> None:
        """Give each request the constraint that its options ask for, if they do.

        Raises:
            UsageError: for a grammar that is none, is beyond the limits, or cannot be used here.
            EngineError: if the tokenizer cannot be used.
        """
        grammar = sampling.grammar
        if grammar is None:
            return
        for request in requests:
            request.constraint = self._make(grammar, request)

    def _make(self, grammar: AnswerGrammar, request: Request) -> Constraint:
        if not self._config.has_adjust:
            raise UsageError(
                "this engine takes no grammars: it was built by a version without masks of tokens."
                " Build it again."
            )
        with self._lock:
            vocabulary = self._read_vocabulary()
            prompt_ids = request.input_ids.tolist()
            source = self._source(grammar, prompt_ids, vocabulary)
            matcher = self._matcher(source, _NAMES[grammar.form], vocabulary)
        not_text = vocabulary.special_ids | set(self._config.eos_token_ids)
        return Constraint(
            matcher,
            self._config.vocab_size,
            request.stop_token_ids & not_text,
            min_tokens=request.min_tokens,
            forces=self._forces,
        )

    def _source(
        self, grammar: AnswerGrammar, prompt_ids: Sequence[int], vocabulary: _Vocabulary
    ) -> str:
        """Return a grammar in llguidance's JSON, with what may come before the answer."""
        assert self._tokenizer is not None
        special = self._tokenizer.special_tokens
        is_harmony = tool_format(self._tokenizer, self._config.model_type) == "harmony"
        if grammar.form == "tools":
            answer = tool_grammar(
                grammar.text, vocabulary.added, special if is_harmony else None
            )
            parts = [_with_options(part) for part in answer]
        else:
            parts = [_answer_grammar(grammar)]
        if not is_harmony:
            prefix = think_prefix(prompt_ids, vocabulary.added, special)
        elif grammar.form == "tools":
            prefix = None  # the call is a message of its own, and so is analysis before it
        else:
            prefix = harmony_prefix(prompt_ids, special)
        if prefix is not None:
            # The answer alone shows what is wrong with it; behind reasoning it would show later.
            self._matcher(json.dumps({"grammars": parts}), _NAMES[grammar.form], vocabulary)
            parts = [{"lark_grammar": prefix}, {**parts[0], "name": "answer"}, *parts[1:]]
        return json.dumps({"grammars": parts})

    def _matcher(self, source: str, what: str, vocabulary: _Vocabulary) -> Any:
        if source not in self._compiled:
            self._compiled[source] = _compile(source, what, vocabulary)
        self._compiled.move_to_end(source)
        if len(self._compiled) > _MAX_COMPILED:
            self._compiled.popitem(last=False)
        return self._compiled[source].deep_copy()

    def _read_vocabulary(self) -> _Vocabulary:
        if self._vocabulary is None:
            if self._tokenizer is None:
                raise UsageError("a grammar needs text, and this engine has no tokenizer.")
            library = _llguidance()
            self._vocabulary = _vocabulary(library, self._tokenizer, self._config.vocab_size)
        return self._vocabulary


class _Vocabulary(NamedTuple):
    """A vocabulary as llguidance has it, and the ids of its added and special tokens."""

    library: Any
    tokens: Any  # its LLTokenizer
    added: dict[str, int]
    special_ids: frozenset[int]


class _Spellings:
    """What llguidance asks of a tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, spellings: list[bytes], special: list[int]
    ) -> None:
        self.tokens = [*spellings, b"<|end of the grammar|>"]
        self.eos_token_id = len(spellings)
        self.bos_token_id = None
        self.special_token_ids = [*special, len(spellings)]
        self._encode = lru_cache(_MAX_FORCED_TEXTS)(tokenizer.encode_forced)

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the tokens of a text that a grammar forces; [] where there are none.

        They only become drafts, so a failure costs time and nothing else.
        """
        try:
            return list(self._encode(text if isinstance(text, str) else text.decode()))
        except (DFlashError, UnicodeDecodeError):
            return []


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise UsageError(
            "a grammar needs the package llguidance, which is not installed here: pip install"
            f" llguidance ({error})"
        ) from None


def _vocabulary(library: Any, tokenizer: Tokenizer, vocab_size: int) -> _Vocabulary:
    read = tokenizer.vocabulary()
    spellings = token_bytes(read.tokens, read.added, read.decoder, vocab_size)
    special = sorted(token for token in read.added.values() if token < vocab_size)
    wrapped = library.TokenizerWrapper(_Spellings(tokenizer, spellings, special))
    tokens = library.LLTokenizer(wrapped, n_vocab=vocab_size + 1, eos_token=vocab_size)
    return _Vocabulary(library, tokens, read.added, frozenset(read.special.values()))


def _answer_grammar(grammar: AnswerGrammar) -> dict[str, Any]:
    """Return the grammar of an answer as a part of llguidance's JSON."""
    if grammar.form == "json":
        return _with_options({"json_schema": json.loads(grammar.text)})
    if grammar.form == "regex":
        library = _llguidance()
        part = json.loads(library.LLMatcher.grammar_from_regex(grammar.text))["grammars"][0]
        return dict(part)
    if grammar.form == "choice":
        quoted = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(grammar.text)]
        return {"lark_grammar": f"start: {' | '.join(quoted)}"}
    return {"lark_grammar": grammar.text}


def _with_options(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part with our options of its JSON schema, whatever the schema says itself."""
    schema = part.get("json_schema")
    if schema is None:
        return part
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return {**part, "json_schema": {**schema, "x-guidance": _JSON_OPTIONS}}


def _compile(source: str, what: str, vocabulary: _Vocabulary) -> Any:
    library = vocabulary.library
    limits = library.LLParserLimits(**_LIMITS)
    try:
        matcher = library.LLMatcher(vocabulary.tokens, source, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
            matcher.compute_ff_tokens()
        problem = matcher.get_error() if matcher.is_error() else ""
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        problem = f"{type(error).__name__}: {error}"
    if problem.startswith("NoExtension"):
        problem = "no answer can be of it"
    if problem:
        raise UsageError(f"{what} cannot be used: {short_reason(problem)}.")
    return matcher
