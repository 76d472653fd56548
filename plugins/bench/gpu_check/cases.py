"""What is checked against float64 of each kernel source: cases and references of tests/plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from plugins.bench.gpu_check.parts import KERNEL_SOURCES
from tests.fixtures.noise import NOISE_ERROR, noise
from tests.plugins import accept_reference as accept
from tests.plugins import adjust_reference as adjust
from tests.plugins import attention_cases
from tests.plugins import attention_reference as attention
from tests.plugins import block_linear_reference as linear
from tests.plugins import gated_delta_reference as delta
from tests.plugins import lookup_reference as lookup
from tests.plugins import moe_reference as moe
from tests.plugins import select_reference as select
from tests.plugins.launcher_calls import argmax_arrays
from tests.plugins.library import BFLOAT16

Arrays = dict[str, np.ndarray]
Fields = Mapping[str, int | float]


@dataclass(frozen=True)
class Checked:
    """One use of an operator; `verify` is given its inputs and outputs, and raises
    AssertionError.
    """

    name: str
    operator: str
    fields: Fields
    inputs: Callable[[], Arrays]
    verify: Callable[[Arrays, Arrays], object]


def cases_of(source: str, *, small: bool) -> list[Checked]:
    """Return the cases of a kernel source, a few small ones if `small`."""
    made = {
        "accept": _accept,
        "argmax": _argmax,
        "attention": _attention,
        "block_linear": _block_linear,
        "gated_delta": _gated_delta,
        "lookup": _lookup,
        "adjust": _adjust,
        "moe": _moe,
        "select": _select,
    }
    return list(made[source](small))


def fields_of_all(*, small: bool) -> list[tuple[str, Fields]]:
    """Return operator and fields of every case."""
    found: list[tuple[str, Fields]] = []
    for source in KERNEL_SOURCES:
        found += [(case.operator, case.fields) for case in cases_of(source, small=small)]
    return found


def attention_fields(case: attention.Case) -> dict[str, int | float]:
    """Return the fields of a case's plugin."""
    fields: dict[str, int | float] = {"scale": case.head_dim**-0.5, "window_size": case.window}
    fields |= {"ring": 0, "head_dim": case.head_dim}
    if case.draft:
        return fields | {"causal": int(case.causal)}
    scales = dict(zip(("key_scale", "value_scale"), case.cache_scales or (0, 0), strict=True))
    return fields | {"fp8_cache": int(case.cache_scales is not None)} | scales


def _attention(small: bool) -> Iterator[Checked]:
    Case = attention.Case  # noqa: N806 - a class
    chosen = [
        Case((0, 15), 4),
        Case((9, 40), 8, context_rows=6, committed=(2, 6), causal=False),
    ]
    if not small:
        every = attention_cases
        chosen += [*every.heads_cases()[::5], *every.windows_cases()[::4]]
        chosen += [*every.drafts_cases()[::4], *every.long_cases()]
        chosen += [*every.splits_cases()[::4], *every.mixed_cases()[::3]]
        chosen += [*every.prefill_cases()[::2], *every.edges_cases()[::12]]
        chosen += every.fp8_cases()[::6]
    for case in chosen:

        def verify(given: Arrays, got: Arrays, case: attention.Case = case) -> None:
            caches = {name: got[f"{name}_out"] for name in ("key_cache", "value_cache")}
            attention.assert_close(case, given, {"out": got["out"], **caches})

        yield Checked(
            str(case),
            "DFlashDraftAttention" if case.draft else "DFlashVerifyAttention",
            attention_fields(case),
            lambda case=case: attention.inputs(case),
            verify,
        )


def _accept(small: bool) -> Iterator[Checked]:
    for vocab in (97, 8193) if small else (97, 8193, 32003, 151_936):
        rng = np.random.default_rng(vocab)
        logits = rng.integers(-99, 100, (2, 5, vocab)).astype(np.float32)
        choice = logits.argmax(-1)
        ids = np.concatenate([choice[:, :1], choice[:, :4]], axis=1)
        ids[1, 3] = -1  # slot 0 accepts all drafts, slot 1 two
        greedy = accept.accept_case(logits, input_ids=ids)

        def verify(given: Arrays, got: Arrays, choice: np.ndarray = choice) -> None:
            for name, expected in accept.accept_prefix(given, choice).items():
                np.testing.assert_array_equal(got[name], expected, err_msg=name)

        fields: Fields = {}
        yield Checked(
            f"greedy, vocabulary {vocab}",
            "DFlashAccept",
            fields,
            lambda greedy=greedy: greedy,
            verify,
        )
        settings = {"temperature": rng.uniform(0.3, 2, 8), "top_p": [1, 0.9, 0.5, 1e-6] * 2}
        settings |= {"top_k": [0, 20] * 4, "min_p": [0, 0, 0.04, 0.04] * 2}
        language = 2 * rng.standard_exponential((8, 1, vocab)) - 7
        sampled = accept.accept_case(language, **settings)
        yield Checked(
            f"sampled, vocabulary {vocab}",
            "DFlashAccept",
            fields,
            lambda sampled=sampled: sampled,
            lambda given, got: accept.assert_admissible(given, got["bonus"][:, 0]),
        )


def _argmax(small: bool) -> Iterator[Checked]:
    """Few values, which tie everywhere: the first of the largest counts, or the best by noise."""
    for rows, vocab in ((5, 97),) if small else ((5, 97), (9, 16_385), (105, 151_936)):
        logits = np.random.default_rng(vocab).integers(-3, 4, (rows, vocab)).astype(BFLOAT16)

        def verify(given: Arrays, got: Arrays) -> None:
            scores = given["logits"].astype(np.float64)
            if given["temperature"][0] > 0:
                positions = int(given["next_len"][0]) + 1 + np.arange(len(scores))
                scores += noise(given["noise_key"][0], positions, np.arange(scores.shape[1]))
            chosen = scores[np.arange(len(scores)), got["places"]]
            assert (chosen >= scores.max(-1) - NOISE_ERROR).all()
            if not given["temperature"][0]:
                np.testing.assert_array_equal(got["places"], scores.argmax(-1))

        for temperature in (0.0, 1.0):
            arrays = argmax_arrays({"logits": logits}, slots=1, temperature=temperature)
            yield Checked(
                f"{rows} rows of {vocab}, temperature {temperature:g}",
                "DFlashArgmax",
                {},
                lambda arrays=arrays: arrays,
                verify,
            )


def _lookup(small: bool) -> Iterator[Checked]:
    """Histories in which tokens come again and again, and every choice of a source."""

    def verify(given: Arrays, got: Arrays) -> None:
        for name, expected in lookup.lookup(given).items():
            np.testing.assert_array_equal(got[name], expected, err_msg=name)

    for case in lookup.CASES[1:3] if small else (*lookup.CASES, lookup.LONG):
        yield Checked(
            f"{case.batch} histories of {case.rows} rows, width {case.width}",
            "DFlashLookup",
            {},
            lambda case=case: lookup.inputs(case),
            verify,
        )


def _adjust(small: bool) -> Iterator[Checked]:
    """Penalties, biases, bad words and masks, slot by slot; of slots without, nothing counts."""

    def verify(given: Arrays, got: Arrays) -> None:
        expected = adjust.adjust(given)
        asks = given["adjusts"] != 0
        np.testing.assert_array_equal(got["history_out"], expected["history_out"])
        np.testing.assert_array_equal(got["adjusted"][asks], expected["adjusted"][asks])

    for case in adjust.CASES[1:4] if small else adjust.CASES:
        yield Checked(
            f"{case.batch} slots, {case.rows} rows of {case.vocab}, text of {case.length}",
            "DFlashAdjust",
            {},
            lambda case=case: adjust.inputs(case),
            verify,
        )


def _gated_delta(small: bool) -> Iterator[Checked]:
    Case, Slot = delta.Case, delta.Slot  # noqa: N806 - classes
    chosen = [Case((Slot(5, 2, 1), Slot(0, 0, 3)), 4, group=2)]
    if not small:
        chosen += [
            Case((Slot(40, 15, 1),), 16, key_heads=16),  # of Qwen3.6-27B
            Case((Slot(0, 0, 75),), 75, group=1, most_open=63),
            Case((Slot(70, 60, 3), Slot(2, 1, 36)), 36, group=1, most_open=63),
            Case((Slot(3, 15, 9),), 16, group=2, kind="repeated"),
            Case((Slot(30, 6, 2),), 8, kind="vanishing"),
        ]
    for case in chosen:

        def verify(given: Arrays, got: Arrays, case: delta.Case = case) -> None:
            written = {name: got[f"{name}_out"] for name in ("window", "state")}
            delta.assert_close(case, given, {"out": got["out"], **written})

        yield Checked(
            str(case),
            "DFlashGatedDelta",
            case.fields,
            lambda case=case: delta.inputs(case),
            verify,
        )


def _moe(small: bool) -> Iterator[Checked]:
    Case = moe.Case  # noqa: N806 - a class
    chosen = [moe.gpt_oss(Case(5, 1, 64, 96, experts=5, top_k=4))]
    if not small:
        for weight_format in moe.FORMATS:
            for n, tokens in enumerate((1, 10, 70, 300)):
                sizes = ((1184, 96), (160, 1120), (256, 288), (96, 64))[n]
                case = Case(tokens, weight_format, *sizes, experts=9, top_k=4, seed=n)
                case = moe.gpt_oss(case) if weight_format in (1, 2) else case
                chosen.append(moe.fitting(case, (moe.FP8_BLOCK, 1)[n % 2]))
        chosen.append(replace(chosen[1], logits="one", order="reverse"))
    for case in chosen:

        def verify(given: Arrays, got: Arrays, case: moe.Case = case) -> None:
            moe.assert_close(case, given, got["out"])

        yield Checked(
            str(case), "DFlashMoE", case.fields, lambda case=case: moe.inputs(case), verify
        )


def _block_linear(small: bool) -> Iterator[Checked]:
    sizes = [(3, 129, 272)]
    if not small:
        sizes += [(1, 264, 1040), (8, 127, 2064), (16, 1024, 4096), (33, 200, 2064)]
        sizes += [(65, 130, 144), (300, 1000, 528)]
    for n, (tokens, out_size, in_size) in enumerate(sizes):
        case = linear.Case(tokens, out_size, in_size, bias=n % 2 == 0, seed=n)

        def verify(given: Arrays, got: Arrays, case: linear.Case = case) -> None:
            linear.assert_close(case, given, got["out"])

        yield Checked(
            str(case), "DFlashBlockLinear", {}, lambda case=case: linear.inputs(case), verify
        )


def _select(small: bool) -> Iterator[Checked]:
    Case = select.Case  # noqa: N806 - a class
    chosen = [Case(2, 3, 211, 12, 16)]
    if not small:
        chosen += [
            Case(1, 7, 8192, 8, 16),
            Case(2, 3, 16387, 65, 7),
            Case(1, 63, 130, 24, 64),
            Case(1, 2, 40000, 7, 64),
            Case(4, 7, 4001, 256, 16, whole=False),
        ]
    for case in chosen:

        def verify(given: Arrays, got: Arrays, case: select.Case = case) -> None:
            select.assert_selected(case, given, got["places"])

        fields: Fields = {"top_k": case.top_k}
        name = f"{case.batch}x{case.rows} rows of {case.vocab}, rank {case.rank}"
        yield Checked(
            f"{name}, top_k {case.top_k}",
            "DFlashSelect",
            fields,
            lambda case=case: select.inputs(case),
            verify,
        )
