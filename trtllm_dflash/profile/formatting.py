"""A profile in words and cells, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.profile.result import Profile, SystemResult

PLAIN = "plain"
RATE = "tok/s"  # of all sequences: what the best side of a batch size is best in
# The table of all figures.
COLUMNS = (
    "system",
    "batch",
    "TTFT ms",
    "TPOT ms",
    "step ms",
    "tok/s per user",
    RATE,
    "× plain",
    "[AL] τ",
    "[DAR]",
    "same text",
)


def cells(profile: Profile, result: SystemResult) -> list[str]:
    """A row of the table of all figures, in the order of COLUMNS."""
    draft_acceptance_rate = result.acceptance.draft_acceptance_rate
    ratio = speedup(profile, result)
    return [
        result.system,
        str(result.batch),
        milliseconds(result.ttft_seconds.mean),
        milliseconds(result.tpot_seconds.mean),
        milliseconds(result.step_seconds.mean),
        f"{result.tokens_per_second_per_user:.1f}",
        f"{result.tokens_per_second:.1f}",
        f"{ratio:.2f}" if ratio is not None else "",
        f"{result.acceptance.acceptance_length:.2f}" if result.draft_len else "",
        f"{draft_acceptance_rate:.0%}" if draft_acceptance_rate is not None else "",
        f"{result.same_tokens}/{len(result.by_prompt)}",
    ]


def speedup(profile: Profile, result: SystemResult) -> float | None:
    """A side's tokens/s over the plain engine's at the same batch size; None where that one has no
    figure.
    """
    for other in profile.results:
        if other.system == PLAIN and other.batch == result.batch:
            return result.tokens_per_second / other.tokens_per_second
    return None


def category_cells(profile: Profile, results: Sequence[SystemResult]) -> list[list[str]]:
    """A row for each kind: its name, then τ of each system, and its tokens/s per user over the plain
    engine's.
    """
    rows = []
    for index, kind in enumerate(results[0].by_category):
        row = [f"{kind.category} ({kind.prompts})"]
        for result in results:
            own, plain = result.by_category[index], _plain(profile, result.batch).by_category[index]
            rate, base = own.tokens_per_second_per_user, plain.tokens_per_second_per_user
            row.append(
                f"{own.acceptance.acceptance_length:.2f}"
                + (f" · {rate / base:.2f}×" if rate and base else "")
            )
        rows.append(row)
    return rows


PROMPT_COLUMNS = (
    "prompt",
    "kind",
    "its tokens",
    "new tokens",
    "[AL] τ",
    "TTFT ms",
    "TPOT ms",
    "× plain",
)


def prompt_cells(profile: Profile, result: SystemResult) -> list[list[str]]:
    """A row for each prompt, in the order of PROMPT_COLUMNS."""
    rows = []
    for own, plain in zip(result.by_prompt, _plain(profile, result.batch).by_prompt, strict=True):
        per_token, base = (one.decode_seconds / max(1, one.tokens - 1) for one in (own, plain))
        rows.append(
            [
                str(own.index + 1),
                own.category,
                str(own.prompt_tokens),
                str(own.tokens),
                f"{own.acceptance_length:.2f}",
                milliseconds(own.ttft_seconds),
                milliseconds(per_token),
                f"{base / per_token:.2f}" if per_token and base else "",
            ]
        )
    return rows


def _plain(profile: Profile, batch: int) -> SystemResult:
    return next(
        result for result in profile.results if (result.system, result.batch) == (PLAIN, batch)
    )


def headline(profile: Profile) -> list[tuple[str, str]]:
    """(figure, what it is): the few to see first, at the smallest batch."""
    first = profile.advice.batches[0]
    best = recommended_result(profile)
    plain = _plain(profile, first.batch)
    figures = [
        (f"{first.speedup:.2f}×", f"tokens/s over the plain engine at batch {first.batch}"),
        (
            f"{best.tokens_per_second_per_user:.1f}",
            (
                f"tokens/s per user with {_drafts(first.draft_len)}; plain"
                f" {plain.tokens_per_second_per_user:.1f}"
            ),
        ),
    ]
    if best.acceptance.draft_acceptance_rate is not None:
        figures += [
            (f"{best.acceptance.acceptance_length:.2f}", "[AL] τ: tokens a step, bonus included"),
            (
                f"{best.acceptance.draft_acceptance_rate:.0%}",
                f"[DAR]: accepted of {_drafts(best.draft_len)} a step",
            ),
        ]
    same = sum(
        result.same_tokens for result in profile.results if result.implementation == "dflash"
    )
    answers = sum(
        len(result.by_prompt) for result in profile.results if result.implementation == "dflash"
    )
    return [
        *figures,
        (f"{same}/{answers}", "DFlash answers that are the plain engine's, token for token"),
    ]


def advice_sentences(profile: Profile) -> list[str]:
    """The advice, a sentence for each batch size and one for the end of it all."""
    sentences = []
    for row in profile.advice.batches:
        what = (
            f"verify {row.block_size} tokens a step ({_drafts(row.draft_len)})"
            if row.draft_len
            else "draft nothing"
        )
        sentences.append(
            f"Batch {row.batch}: {what}: {row.tokens_per_second_per_user:.1f} tokens/s per user, "
            f"{row.speedup:.2f} times the plain engine."
        )
    stop = profile.advice.stops_paying_at
    tried = profile.advice.batches[-1].batch
    if stop is None:
        sentences.append(f"DFlash pays at batch {tried}, the largest that was tried.")
    else:
        sentences.append(
            f"From batch {stop} on DFlash does not pay here: a plain engine is at least as fast."
        )
    return sentences


def milliseconds(seconds: float) -> str:
    """Three digits of it."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def recommended_result(profile: Profile) -> SystemResult:
    """The DFlash side that the advice takes at the smallest batch."""
    first = profile.advice.batches[0]
    wanted = ("dflash", first.batch, first.draft_len)
    return next(
        one for one in profile.results if (one.implementation, one.batch, one.draft_len) == wanted
    )


def _drafts(count: int) -> str:
    return "1 draft" if count == 1 else f"{count} drafts"
