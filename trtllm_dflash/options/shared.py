"""Options that several commands have, each declared once."""

from __future__ import annotations

from trtllm_dflash.options.fields import cli_option

MAX_NUM_THREADS = 1024  # ONNX Runtime starts every one of them, however few the cores are
NUM_THREADS = cli_option(
    "threads of a CPU engine [default: DFLASH_NUM_THREADS, else all cores]",
    low=1,
    high=MAX_NUM_THREADS,
)
MAX_PREFIX_CACHE_MIB = 1 << 20
DEFAULT_PREFIX_CACHE_MIB = 1024  # of `run` and of servers
PREFIX_CACHE_MIB = cli_option(
    "memory for the beginnings of prompts that later ones may share, in MiB; 0: none",
    low=0,
    high=MAX_PREFIX_CACHE_MIB,
)
ALLOW_LINKS = cli_option(
    "follow links in a checkpoint's directory that lead out of it; only for links of your own"
    " making"
)
