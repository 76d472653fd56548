"""Published figures of DFlash and EAGLE-3, as far as they say what was measured: the estimate's
test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trtllm_dflash.catalog.gpus import GPUS, GpuSpec
from trtllm_dflash.estimate.constants import EAGER, EDGE, SERVING, SERVING_SYNC, Runtime
from trtllm_dflash.estimate.eagle import Eagle
from trtllm_dflash.estimate.precision import Precision

THOR = GpuSpec(
    "Jetson AGX Thor",
    "sm110",
    128,
    273,
    258.75,
    517.5,
    1035,
    "NVIDIA Jetson Thor datasheet (2070 TFLOPS sparse FP4); FP8 and BF16 derived",
)


@dataclass(frozen=True)
class Text:
    """What a benchmark's prompts and answers are like: tokens, an assumption."""

    prompt: int
    answer: int


TEXTS: Mapping[str, Text] = {
    "MATH-500": Text(120, 900),
    "AIME25": Text(150, 2000),
    "GSM8K": Text(130, 300),
    "HumanEval": Text(200, 350),
    "MBPP": Text(150, 300),
    "LCB": Text(500, 900),
    "Alpaca": Text(60, 400),
    "MT-Bench": Text(150, 700),
    "mean of 7": Text(200, 800),
}
REASONING = 700  # more tokens of an answer where the model thinks first


@dataclass(frozen=True)
class Figure:
    """One published speedup over plain decoding of the same software.

    `held_out`: looked up after all choices, and not on the list that the project set itself.
    `added_later`: on that list, and compared only after all choices.
    """

    where: str
    drafter: str
    gpu: str
    runtime: Runtime
    text: str
    concurrency: int
    tau: float
    speedup: float
    block_size: int | None = None
    eagle: Eagle | None = None
    precision: Precision | None = None
    reasons: bool = False
    held_out: bool = False
    added_later: bool = False
    plain: float | None = None  # tokens a second of plain decoding, all sequences together
    note: str = ""

    @property
    def device(self) -> GpuSpec:
        """The GPU."""
        return next(gpu for gpu in (*GPUS, THOR) if gpu.name == self.gpu)


def _rows(base: Figure, *rows: tuple[str, int, float, float], **more: object) -> list[Figure]:
    """Figures that differ in text, concurrency, tau and speedup."""
    return [
        replace(base, text=text, concurrency=concurrency, tau=tau, speedup=speedup, **more)  # type: ignore[arg-type]
        for text, concurrency, tau, speedup in rows
    ]


def _rates(
    base: Figure, text: str, tau: float, *rows: tuple[int, float, float], **more: object
) -> list[Figure]:
    """Figures given as concurrency, and tokens a second without and with drafts."""
    return [
        replace(
            base,
            text=text,
            concurrency=c,
            tau=tau,
            speedup=drafted / plain,
            plain=plain,
            **more,  # type: ignore[arg-type]
        )
        for c, plain, drafted in rows
    ]


_MEAN = "mean of 7"
_QWEN8, _QWEN4 = "Qwen3-8B-DFlash-b16", "Qwen3-4B-DFlash-b16"
_CODER, _LLAMA = "Qwen3-Coder-30B-A3B-DFlash", "LLaMA3.1-8B-Instruct-DFlash-UltraChat"
_OSS20, _OSS120 = "gpt-oss-20b-DFlash", "gpt-oss-120b-DFlash"
_TABLE3 = Figure("paper, table 3", _QWEN8, "B200", SERVING, "", 1, 0, 0)
_TABLE5 = Figure("paper, table 5", _LLAMA, "B200", SERVING_SYNC, "", 1, 0, 0)
_TABLE11 = Figure("paper, table 11", _OSS20, "B200", SERVING, "", 8, 0, 0, reasons=True)
_TABLE1 = Figure("paper, table 1", _QWEN8, "H200", EAGER, "", 1, 0, 0)
_TABLE1_T1 = replace(_TABLE1, where=f"{_TABLE1.where}, T=1")
_NVFP4 = Precision(linears="nvfp4", drafter="nvfp4")
_EDGE = Figure("Edge-LLM 0.10", _QWEN8, THOR.name, EDGE, "MT-Bench", 1, 0, 0, precision=_NVFP4)
# Its server is SGLang before the overlap (pull request 16818).
_CARD = Figure(
    "model card", _OSS120, "H200", SERVING_SYNC, "GSM8K", 1, 0, 0, reasons=True, held_out=True
)
_AT_1 = "τ at batch 1"
_WIDE = "depth 7, 10 branches assumed"
_NARROW = "depth 7, 4 branches assumed"

_DRIFT = Figure(
    "SpecDrift's card", _OSS120, "H100", SERVING, "", 1, 0, 0, reasons=True, held_out=True
)
_CHAIN3 = Eagle(3, 3, 1)

FIGURES: tuple[Figure, ...] = (
    *_rates(
        _TABLE3, "MATH-500", 8.01,
        (1, 230, 1175), (4, 861, 3884), (8, 1666, 7485), (16, 3133, 12268), (32, 5694, 16076),
    ),
    *_rows(_TABLE3, ("HumanEval", 1, 6.50, 4.2), ("HumanEval", 32, 6.50, 2.4)),
    *_rows(_TABLE3, ("MATH-500", 1, 8.01, 4.8), ("MATH-500", 32, 8.01, 2.9), drafter=_QWEN4, note="τ of Qwen3-8B"),
    *_rows(
        _TABLE3, ("HumanEval", 1, 8.09, 3.5), ("HumanEval", 4, 8.09, 3.0), ("HumanEval", 8, 8.09, 3.2),
        ("HumanEval", 16, 8.09, 3.2), ("HumanEval", 32, 8.09, 3.1), drafter=_CODER,
    ),
    *_rows(_TABLE5, ("GSM8K", 1, 4.32, 2.4), ("GSM8K", 32, 4.32, 1.6), ("HumanEval", 1, 4.91, 2.8)),
    *_rows(_TABLE5, ("HumanEval", 32, 4.91, 1.8), ("Alpaca", 1, 3.73, 2.2), ("Alpaca", 32, 3.73, 1.4)),
    *_rows(_TABLE5, ("GSM8K", 1, 3.49, 1.6), ("GSM8K", 32, 3.49, 1.0), eagle=Eagle(10, 7, 4), note=_NARROW),
    *_rows(_TABLE5, ("GSM8K", 1, 4.55, 1.9), ("GSM8K", 32, 4.55, 0.6), eagle=Eagle(60, 7, 10), note=_WIDE),
    *_rows(_TABLE11, ("MATH-500", 8, 5.1, 2.2), ("HumanEval", 8, 4.3, 2.2), ("MT-Bench", 8, 4.2, 2.0)),
    *_rows(
        _TABLE11, ("MATH-500", 8, 5.4, 1.6), ("HumanEval", 8, 4.4, 1.7), ("MT-Bench", 8, 3.7, 1.3), drafter=_OSS120,
    ),
    *_rows(
        _TABLE1, ("GSM8K", 1, 6.54, 5.15), ("MATH-500", 1, 7.87, 6.08), ("AIME25", 1, 7.08, 5.62),
        ("HumanEval", 1, 6.50, 5.14), ("MBPP", 1, 5.95, 4.65), ("LCB", 1, 7.27, 5.51), ("MT-Bench", 1, 4.24, 2.75),
    ),
    *_rows(_TABLE1, (_MEAN, 1, 6.49, 4.86)),
    *_rows(_TABLE1, (_MEAN, 1, 6.54, 4.91), drafter=_QWEN4),
    *_rows(
        _TABLE1_T1, ("GSM8K", 1, 5.98, 4.67), ("MATH-500", 1, 6.40, 4.84), ("AIME25", 1, 4.73, 3.57),
        ("HumanEval", 1, 5.52, 4.32), ("MBPP", 1, 5.21, 4.04), ("LCB", 1, 6.69, 4.93), ("MT-Bench", 1, 3.80, 2.47),
        (_MEAN, 1, 5.48, 4.03), added_later=True,
    ),
    *_rows(_TABLE1_T1, (_MEAN, 1, 5.69, 4.24), drafter=_QWEN4, added_later=True),
    *_rows(_TABLE1, (_MEAN, 1, 2.96, 1.76), eagle=Eagle(16, 7, 10), note="depth 7 assumed"),
    *_rows(_TABLE1, (_MEAN, 1, 3.40, 2.02), eagle=Eagle(60, 7, 10), note=_WIDE),
    *_rates(
        replace(_TABLE1, where="ModelOpt docs", gpu="H100", runtime=SERVING), "MT-Bench", 4.24, (1, 145, 422),
        note="τ of table 1",
    ),
    *_rates(_EDGE, "MT-Bench", 3.26, (1, 47.3, 90.0), (8, 300, 410), note=_AT_1),
    *_rates(_EDGE, "MT-Bench", 2.26, (1, 79.8, 104.6), (8, 513, 469), drafter=_QWEN4, note=_AT_1),
    *_rates(
        _EDGE, "MT-Bench", 4.16, (1, 47.3, 153.7), (8, 300, 474), eagle=Eagle(60, 6, 10),
        note=f"{_AT_1}; depth 6, 10 branches assumed",
    ),
    *_rows(
        _CARD, ("GSM8K", 1, 3.3, 1.3), ("GSM8K", 8, 3.3, 1.2), ("GSM8K", 16, 3.3, 1.3), ("GSM8K", 32, 3.3, 1.2),
        block_size=4,
    ),
    *_rows(_CARD, ("GSM8K", 1, 5.3, 1.8), ("GSM8K", 8, 5.3, 1.6), ("GSM8K", 16, 5.3, 1.6), ("GSM8K", 32, 5.3, 1.5)),
    *_rates(_DRIFT, "MT-Bench", 2.47, (1, 212, 231), (8, 795, 905), (64, 1620, 1730), note="block of 10 assumed"),
    *_rates(_DRIFT, "MT-Bench", 2.41, (1, 212, 285), (8, 795, 1044), (64, 1620, 2339), eagle=_CHAIN3),
)  # fmt: skip
