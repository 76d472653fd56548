"""The options of `dflash-trt serve`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_real, shown, typed_text
from trtllm_dflash.options.fields import check_fields, cli_option
from trtllm_dflash.options.generation_defaults import ALLOWED
from trtllm_dflash.options.queueing import MAX_TIMEOUT_SECONDS, MAX_WAITING
from trtllm_dflash.options.row_sampling import MAX_FLOAT32
from trtllm_dflash.options.shared import (
    DEFAULT_PREFIX_CACHE_MIB,
    NUM_THREADS,
    PREFIX_CACHE_MIB,
)

API_KEY_VARIABLE = "DFLASH_API_KEY"
DRAIN_SECONDS = 20
MAX_NAME = 200  # characters
_NAME = re.compile(r"[\w./:@+-]+")
_ORIGIN = re.compile(r"https?://[^/\s*]+")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What `dflash-trt serve` serves, where, to whom, and how requests wait.

    Raises:
        UsageError: for a value out of range, or an address that others reach and no key protects.
    """

    engines: tuple[str, ...] = ()  # each DIR or NAME=DIR
    host: str = field(
        default="127.0.0.1",
        metadata=cli_option(
            "address to listen on; one that other machines reach needs an API key",
            metavar="HOST",
        ),
    )
    port: int = field(
        default=8000, metadata=cli_option("port; 0: any free one", low=0, high=65535)
    )
    served_model_name: tuple[str, ...] = field(
        default=(),
        metadata=cli_option(
            "name of the model in requests; may be given several times [default: the directory's]",
            metavar="NAME",
            parse=typed_text,
        ),
    )
    api_key: str | None = field(
        default=None,
        metadata=cli_option(
            f"key that clients must send [default: {API_KEY_VARIABLE}, which other users of this"
            " machine cannot see]",
            metavar="KEY",
        ),
    )
    insecure_no_api_key: bool = field(
        default=False,
        metadata=cli_option("let everybody who reaches --host use it without a key"),
    )
    cors_origin: tuple[str, ...] = field(
        default=(),
        metadata=cli_option(
            "origin whose web pages may call it, as http://localhost:3000; may be given several"
            " times",
            metavar="ORIGIN",
        ),
    )
    max_waiting: int = field(
        default=MAX_WAITING,
        metadata=cli_option(
            "requests of each model that may wait for a slot; more are refused",
            low=1,
            high=1 << 16,
            aliases=("--max-queue",),
        ),
    )
    prompt_tokens_per_step: int | None = field(
        default=None,
        metadata=cli_option(
            "prompt tokens between two decode steps [default: what suits the GPU or CPU]", low=1
        ),
    )
    timeout_seconds: float | None = field(
        default=None,
        metadata=cli_option(
            "an answer is whole after so many seconds, or an error [default: no limit]",
            aliases=("--timeout",),
        ),
    )
    drain_seconds: int = field(
        default=DRAIN_SECONDS,
        metadata=cli_option(
            "how long running answers may go on at the end", low=0, high=24 * 3600
        ),
    )
    max_body_mib: int = field(
        default=8, metadata=cli_option("largest body of a request, in MiB", low=1, high=1024)
    )
    temperature: float | None = field(
        default=None,
        metadata=cli_option(
            "of requests that give none; 0 is greedy [default: the model's own, else 1 as OpenAI]"
        ),
    )
    generation_config: str = field(
        default="auto",
        metadata=cli_option(
            "the model's generation_config.json, for requests that do not say: auto, what vLLM"
            " takes of it; or none",
            choices=ALLOWED,
        ),
    )
    num_threads: int | None = field(default=None, metadata=NUM_THREADS)
    prefix_cache_mib: int = field(default=DEFAULT_PREFIX_CACHE_MIB, metadata=PREFIX_CACHE_MIB)

    def __post_init__(self) -> None:
        """Check everything that can be judged without an engine."""
        check_fields(self)
        if self.temperature is not None:
            check_real(
                "--temperature",
                self.temperature,
                lambda value: 0 <= value <= MAX_FLOAT32,
                "0 (greedy) or a finite positive number",
            )
        if self.timeout_seconds is not None:
            check_real(
                "--timeout-seconds",
                self.timeout_seconds,
                lambda value: 0 < value <= MAX_TIMEOUT_SECONDS,
                f"a number above 0 and at most {MAX_TIMEOUT_SECONDS:g}",
            )
        self._check_key()
        for origin in self.cors_origin:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--cors-origin is {shown(origin)}, expected scheme, host and port, as"
                    " http://localhost:3000."
                )
        if len(self.engines) > 1 and self.served_model_name:
            raise UsageError(
                "--served-model-name is for one engine. Name several as NAME=DIR each."
            )

    def _check_key(self) -> None:
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable()):
            raise UsageError(
                "the API key is empty or has characters that no header can hold. Use printable"
                " ASCII."
            )
        if key is None and not self.insecure_no_api_key and not self.is_loopback:
            raise UsageError(
                f"--host {shown(self.host)} is reached from other machines, and there is no API"
                f" key. Set {API_KEY_VARIABLE}, or give --insecure-no-api-key to let everybody in."
            )

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine reaches the host."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def named_engines(self) -> dict[str, Path]:
        """Return the directories by the names that requests give; every name once.

        Raises:
            UsageError: for a name that is none, or stands for two engines.
        """
        found: dict[str, Path] = {}
        for typed in self.engines:
            name, path = _named(typed)
            names = self.served_model_name or (name,)
            for each in names:
                if len(each) > MAX_NAME or not _NAME.fullmatch(each):
                    raise UsageError(
                        f"the model's name is {shown(each)}, expected letters, digits and _ . - /"
                        f" : @ +, at most {MAX_NAME}. Give --served-model-name, or NAME=DIR."
                    )
                if each in found:
                    raise UsageError(
                        f"two engines have the name {shown(each)}. Give NAME=DIR for each."
                    )
                found[each] = path
        return found


def _named(typed: str) -> tuple[str, Path]:
    """Return the name and the directory of NAME=DIR or DIR."""
    name, equals, rest = typed.partition("=")
    if equals and not Path(typed).exists():
        return name, Path(rest)
    path = Path(typed)
    return path.resolve().name or "model", path
