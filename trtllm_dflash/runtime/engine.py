"""The Python API: load an engine directory, generate, stream, serve."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.config_checks import newer_version
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.checks import check_callable, check_integer
from trtllm_dflash.options.queueing import MAX_WAITING
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams
from trtllm_dflash.options.shared import MAX_PREFIX_CACHE_MIB
from trtllm_dflash.options.tools import ToolChoice
from trtllm_dflash.runtime.bad_words import bad_word_tokens
from trtllm_dflash.runtime.conversations import encode_conversations
from trtllm_dflash.runtime.draft_len_chooser import DraftLenChooser, candidate_widths
from trtllm_dflash.runtime.engine_server import EngineServer
from trtllm_dflash.runtime.engine_thread import EngineThread
from trtllm_dflash.runtime.grammar.grammars import Grammars
from trtllm_dflash.runtime.outputs import EngineStats, Generation
from trtllm_dflash.runtime.prefix_cache import NO_PREFIX_CACHE, NoPrefixCache, PrefixCache
from trtllm_dflash.runtime.preprocess import (
    check_draft_lens,
    check_stop_words,
    make_requests,
    step_widths,
)
from trtllm_dflash.runtime.prompt_inputs import Prompt, as_prompts, tokenize_prompt
from trtllm_dflash.runtime.scheduler import Scheduler, Step
from trtllm_dflash.runtime.sessions.base import Session, check_runnable, open_session
from trtllm_dflash.runtime.stream import Stream
from trtllm_dflash.runtime.text.answer_text import AnswerTexts
from trtllm_dflash.runtime.text.chat_messages import Messages
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


_LOG = logging.getLogger(__name__)
_CLOSED = "this engine is closed. Load it again with Engine.load."


class Engine:
    """A loaded engine: `Engine.load(path).generate(["Once upon a time"], max_tokens=64)`.

    Not for concurrent use: a second call while a stream is open raises EngineError. `serve` is for
    many callers, and `AsyncEngine` for coroutines. Leave its `with` block or `close` it to free
    its memory.
    """

    def __init__(
        self,
        config: EngineConfig,
        session: Session,
        tokenizer: Tokenizer | None = None,
        prefix_cache: PrefixCache | NoPrefixCache = NO_PREFIX_CACHE,
    ) -> None:
        """Join the parts of an engine; users call `Engine.load`."""
        self.config = config
        self.tokenizer = tokenizer
        self._session: Any = session
        self._prefix_cache = prefix_cache
        widths = candidate_widths(config, session)
        may_skip = session.may_skip_drafter
        self._chooser = DraftLenChooser(config.block_size, widths, may_skip=may_skip)
        self._texts = AnswerTexts(tokenizer, config.model_type)
        self._grammars = Grammars(tokenizer, config)
        self._turn = threading.Lock()
        self._closed = False
        self._users = WeakSet[Stream | EngineServer]()  # they hold the session

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        num_threads: int | None = None,
        draft_lens: Iterable[int] | None = None,
        prefix_cache_mib: int = 0,
    ) -> Engine:
        """Open an engine directory written by `dflash-trt build`.

        num_threads  for CPU engines: None takes DFLASH_NUM_THREADS, else one thread for each core
                     available.
        draft_lens   for GPU engines: the numbers of drafts (`draft_len`) that requests will ask
                     for. Steps of each are made ready while the engine loads. None: any may be
                     asked for; a step then verifies the next larger number that is ready.
        prefix_cache_mib
                     memory for the beginnings of prompts that later ones may share, at most, in
                     MiB: of the GPU, or of this machine for CPU engines. 0: none.

        Raises:
            UsageError: for numbers of drafts that the engine does not have, or a bad size.
            EngineError: for a directory that holds no engine, differs from its manifest, or cannot
                run on this machine.
        """
        if not isinstance(path, str | Path):
            raise UsageError(f"path is {path!r}, expected the path of an engine directory.")
        directory = Path(path)
        config = check_engine(directory)
        if draft_lens is not None:
            draft_lens = check_draft_lens(draft_lens, config)
        check_integer("prefix_cache_mib", prefix_cache_mib, low=0, high=MAX_PREFIX_CACHE_MIB)
        tokenizer = Tokenizer.of_engine(directory, config)
        if tokenizer is not None:
            tokenizer.start()  # its files are read while the engine loads
        session = open_session(
            directory,
            config,
            num_threads=num_threads,
            draft_lens=draft_lens,
            prefix_bytes=prefix_cache_mib << 20,
        )
        prefix_cache = PrefixCache(session, config) if prefix_cache_mib else NO_PREFIX_CACHE
        return cls(config, session, tokenizer, prefix_cache)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Name the engine's model and where it runs."""
        config = self.config
        state = "closed" if self._closed else f"{config.max_batch_size} slots"
        return f"<Engine of a {config.model_type} for {config.gpu_arch}, {state}>"

    def close(self) -> None:
        """End streams and engine threads, and free the memory. A second call changes nothing.

        Raises:
            EngineError: if another thread is inside a stream's step. Nothing is closed then.
        """
        if self._closed:
            return
        for user in list(self._users):
            user.close()
        self._closed = True
        session, self._session = self._session, _ClosedSession()
        session.keep()
        if self.tokenizer is not None:
            self.tokenizer.close()

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Answer all prompts and return `n` Generations for each, prompt by prompt.

        As many prompts run together as the engine has slots.

        prompts   a list of strings (raw text; `chat` has the chat format) or of token-id sequences,
                  mixed if wanted; one string or one sequence is one prompt. Arrays and tensors of
                  any library are sequences, and so is what a Hugging Face tokenizer returns.
        options   the fields of `SamplingParams`, which says what they mean. Or give such an object
                  as `sampling_params`.

        Raises:
            UsageError: for a bad option or prompt, before any step runs.
            EngineError: if the engine is closed or in use, or a step or the tokenizer fails.
        """
        return self.stream(prompts, sampling_params, **options).generations()

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Answer a conversation, or a list of them, in the model's chat format.

        messages              a list of {"role": …, "content": …}, or a text, which is one message
                              of the user. A content may be a list of text parts, as OpenAI has
                              them.
        chat_template_kwargs  options of the chat template, such as {"enable_thinking": False}. They
                              replace the engine's own, key by key.
        tools                 functions in OpenAI's form that the model may call: answers then have
                              `tool_calls` (`runtime/text/tool_calls.py`).
        tool_choice           "auto", "none", "required" or an object that names a tool.
        options               as for `generate`.

        Raises:
            UsageError: for messages or options that cannot be used.
            EngineError: as for `generate`.
        """
        self._check_open()
        chat = encode_conversations(
            self.tokenizer, messages, chat_template_kwargs, tools, tool_choice
        )
        return self.generate(chat.prompts, chat.sampling(sampling_params, options))

    def stream(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | None = None,
        *,
        slots: int | None = None,
        on_step: Callable[[Step], None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Stream:
        """Return an iterator of (prompt index, new token ids, new text) for each prompt and step.

        Prompts and options are those of `generate` and are checked at once; steps run while the
        stream is iterated. `Chunk` has more fields. `slots` limits how many sequences run together.
        `on_step` is called with each decode step when its tokens are there.
        """
        self._check_open()
        if slots is not None:
            high = self.config.max_batch_size
            advice = " This engine has no more slots (max_batch_size)."
            check_integer("slots", slots, low=1, high=high, advice=advice)
        if on_step is not None:
            check_callable("on_step", on_step)
        sampling = SamplingParams.of_call(sampling_params, options)
        check_stop_words(sampling, self.tokenizer)
        bad_words = bad_word_tokens(sampling, self.tokenizer)
        input_ids = [tokenize_prompt(prompt, self.tokenizer) for prompt in as_prompts(prompts)]
        requests = make_requests(input_ids, sampling, self.config, bad_words)
        self._grammars.constrain(requests, sampling)
        texts = [self._texts.make(request.input_ids.tolist(), sampling) for request in requests]
        scheduler = Scheduler(
            self._session,
            requests,
            vocab_size=self.config.vocab_size,
            slots=slots,
            on_step=on_step,
            prefix_cache=self._prefix_cache,
            chooser=self._chooser,
        )
        width = step_widths(sampling, self.config).max_width
        stream = Stream(scheduler, requests, texts, self._take_turn(), width=width)
        self._users.add(stream)
        return stream

    def serve(
        self,
        *,
        max_waiting: int = MAX_WAITING,
        prompt_tokens_per_step: int | None = None,
        on_stats: Callable[[EngineStats], None] = lambda _: None,
    ) -> EngineServer:
        """Start a thread that answers requests from any threads, together, until it is closed.

        max_waiting             requests that may wait for a slot; more raise BusyError.
        prompt_tokens_per_step  prompt tokens between two decode steps while sequences decode: fewer
                                keep their pace, more bring the first token sooner. None: what suits
                                the GPU or CPU.
        on_stats                called by the engine thread now and then.

        Meanwhile `generate` and `stream` raise EngineError.
        """
        self._check_open()
        engine_thread = EngineThread(
            self.config,
            self._session,
            self.tokenizer,
            self._take_turn(),
            max_waiting=max_waiting,
            prompt_tokens_per_step=prompt_tokens_per_step,
            on_stats=on_stats,
            prefix_cache=self._prefix_cache,
            chooser=self._chooser,
            grammars=self._grammars,
        )
        server = EngineServer(engine_thread)
        self._users.add(server)
        return server

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(_CLOSED)

    @contextmanager
    def _take_turn(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise EngineError(
                "this engine is in the middle of another stream, whose sequences are in its caches."
                " Exhaust or close that stream first (or its engine thread), or load the engine"
                " twice."
            )
        try:
            yield
        finally:
            self._turn.release()


class _ClosedSession:
    """Stands in for the session of a closed engine."""

    def __getattr__(self, name: str) -> Any:
        raise EngineError(_CLOSED)


def check_engine(directory: Path) -> EngineConfig:
    """Return an engine's config once its files are checked and it is known to run here.

    This is all that `Engine.load` checks before it loads anything.

    Raises:
        EngineError: as `Engine.load`.
    """
    config = EngineConfig.load(directory)
    check_runnable(directory, config)
    _check_manifest(directory, config.backend)
    newer = newer_version(config.version)
    if newer:
        _LOG.warning("warning: %s: %s", directory, newer)
    return config


def _check_manifest(directory: Path, backend: str) -> None:
    from trtllm_dflash.engine_dir import manifest

    differences = manifest.check(directory, deep=False, backend=backend)
    if differences:
        listed = "".join(f"\n  {difference}" for difference in differences)
        raise EngineError(
            f"{directory} is not what its build wrote:{listed}\nBuild the engine again, or copy it"
            " again intact."
        )
