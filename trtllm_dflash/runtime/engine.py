"""The Python API: load an engine directory, generate, stream, serve."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.options.checks import check_integer
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams
from trtllm_dflash.runtime.engine_thread import MAX_WAITING, EngineThread
from trtllm_dflash.runtime.outputs import EngineStats, Generation
from trtllm_dflash.runtime.preprocess import check_stop_words, make_requests, step_widths
from trtllm_dflash.runtime.prompt_inputs import Prompt, as_prompts, tokenize_prompt
from trtllm_dflash.runtime.scheduler import Scheduler, Step
from trtllm_dflash.runtime.sessions.base import Session, check_runnable, open_session
from trtllm_dflash.runtime.stream import Stream
from trtllm_dflash.runtime.text.answer_text import AnswerTexts
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Engine:
    """A loaded engine: `Engine.load(path).generate(["Once upon a time"], max_tokens=64)`.

    Not for concurrent use: a second call while a stream is open raises EngineError.
    """

    def __init__(
        self, config: EngineConfig, session: Session, tokenizer: Tokenizer | None = None
    ) -> None:
        """Join the parts of an engine; users call `Engine.load`."""
        self.config = config
        self.tokenizer = tokenizer
        self._session = session
        self._texts = AnswerTexts(tokenizer, config.model_type)
        self._turn = threading.Lock()

    @classmethod
    def load(cls, path: str | Path, *, num_threads: int | None = None) -> Engine:
        """Open an engine directory written by `dflash-trt build`.

        `num_threads` is for CPU engines: None takes DFLASH_NUM_THREADS, else one thread for each
        core available.

        Raises:
            EngineError: for a directory that holds no engine, differs from its manifest, or cannot
                run on this machine.
        """
        if not isinstance(path, str | Path):
            raise UsageError(f"path is {path!r}, expected the path of an engine directory.")
        directory = Path(path)
        config = check_engine(directory)
        tokenizer = Tokenizer.of_engine(directory, config)
        if tokenizer is not None:
            tokenizer.start()  # its files are read while the engine loads
        session = open_session(directory, config, num_threads=num_threads)
        return cls(config, session, tokenizer)

    def generate(
        self, prompts: Prompt | Iterable[Prompt], **options: Unpack[SamplingOptions]
    ) -> list[Generation]:
        """Answer all prompts and return one Generation for each, in order.

        As many prompts run together as the engine has slots.

        prompts   a list of strings (raw text; `tokenizer.encode_chat` has the chat format) or of
                  token-id sequences, mixed if wanted; one string or one sequence is one prompt.
        options   the fields of `SamplingParams`, by default max_tokens=128, temperature=0.0 and
                  the others of `RowSampling`, seed=0, draft=True, draft_len=None,
                  draft_len_schedule=None, stop_token_ids=None.

        Raises:
            UsageError: for a bad option or prompt, before any step runs.
        """
        return self.stream(prompts, **options).generations()

    def stream(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        slots: int | None = None,
        on_step: Callable[[Step], None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Stream:
        """Return an iterator of (prompt index, new token ids, new text) for each prompt and step.

        Prompts and options are those of `generate` and are checked at once; steps run while the
        stream is iterated. `slots` limits how many sequences run together. `on_step` is called with
        each decode step when its tokens are there.
        """
        if slots is not None:
            high = self.config.max_batch_size
            advice = " This engine has no more slots (max_batch_size)."
            check_integer("slots", slots, low=1, high=high, advice=advice)
        sampling = SamplingParams.from_options(options)
        check_stop_words(sampling, self.tokenizer)
        input_ids = [tokenize_prompt(prompt, self.tokenizer) for prompt in as_prompts(prompts)]
        requests = make_requests(input_ids, sampling, self.config)
        texts = [self._texts.make(request.input_ids.tolist(), sampling) for request in requests]
        scheduler = Scheduler(
            self._session,
            requests,
            vocab_size=self.config.vocab_size,
            slots=slots,
            on_step=on_step,
        )
        width = step_widths(sampling, self.config).max_width
        return Stream(scheduler, requests, texts, self._take_turn(), width=width)

    def serve(
        self,
        *,
        max_waiting: int = MAX_WAITING,
        prompt_tokens_per_step: int | None = None,
        on_stats: Callable[[EngineStats], None] = lambda _: None,
    ) -> EngineThread:
        """Start a thread that answers requests from any threads, together, until it is closed.

        max_waiting             requests that may wait for a slot; more raise BusyError.
        prompt_tokens_per_step  prompt tokens between two decode steps while sequences decode: fewer
                                keep their pace, more bring the first token sooner. None: what suits
                                the GPU or CPU.
        on_stats                called by the engine thread now and then.

        Meanwhile `generate` and `stream` raise EngineError.
        """
        return EngineThread(
            self.config,
            self._session,
            self.tokenizer,
            self._take_turn(),
            max_waiting=max_waiting,
            prompt_tokens_per_step=prompt_tokens_per_step,
            on_stats=on_stats,
        )

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


def check_engine(directory: Path) -> EngineConfig:
    """Return an engine's config once its files are checked and it is known to run here.

    This is all that `Engine.load` checks before it loads anything.

    Raises:
        EngineError: as `Engine.load`.
    """
    config = EngineConfig.load(directory)
    _check_manifest(directory, config.backend)
    check_runnable(directory, config)
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
