"""A profile as sentences and table cells, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.profile.result import (
    DFLASH,
    PLAIN,
    BatchAdvice,
    Profile,
    PromptResult,
    SystemResult,
)

RATE = "tok/s"  # of all sequences, by which systems of a batch size are compared
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
PROMPT_COLUMNS = (
    "prompt",
    "category",
    "its tokens",
    "new tokens",
    "[AL] τ",
    "TTFT ms",
    "TPOT ms",
    "× plain",
)


def cells(profile: Profile, result: SystemResult) -> list[str]:
    """Return a row of the table of all figures, in the order of COLUMNS."""
    acceptance = result.acceptance
    rate = acceptance.draft_acceptance_rate
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
        f"{acceptance.acceptance_length:.2f}" if result.draft_len else "",
        f"{rate:.0%}" if rate is not None else "",
        f"{result.same_tokens}/{len(result.by_prompt)}",
    ]


def speedup(profile: Profile, result: SystemResult) -> float | None:
    """Return a system's tokens/s over the plain engine's at the same batch size.

    It is None where the plain engine has no figure.
    """
    for other in profile.results:
        if other.system == PLAIN and other.batch == result.batch:
            return result.tokens_per_second / other.tokens_per_second
    return None


def category_cells(profile: Profile, results: Sequence[SystemResult]) -> list[list[str]]:
    """Return a row for each category: its name, and for each system τ and the speedup.

    The speedup is in tokens/s per user over the plain engine's. Where not all texts are the plain
    engine's, the cell says how many are.
    """
    rows = []
    for index, category in enumerate(results[0].by_category):
        row = [f"{category.category} ({category.prompts})"]
        for result in results:
            cell = f"{result.by_category[index].acceptance.acceptance_length:.2f}"
            ratio = category_speedup(profile, result, index)
            if ratio is not None:
                cell += f" · {ratio:.2f}×"
            row.append(cell + differing_texts(result, category.category))
        rows.append(row)
    return rows


def category_speedup(profile: Profile, result: SystemResult, index: int) -> float | None:
    """Return a system's tokens/s per user over the plain engine's, of the prompts of a category.

    `index` is the category's place. It is None where one of the two has no figure.
    """
    own = result.by_category[index].tokens_per_second_per_user
    plain = _plain(profile, result.batch).by_category[index].tokens_per_second_per_user
    return own / plain if own and plain else None


def differing_texts(result: SystemResult, category: str) -> str:
    """Return what a cell says beside its figure: nothing where all texts are the plain engine's."""
    rows = [row for row in result.by_prompt if row.category == category]
    same = sum(row.same_tokens for row in rows)
    return "" if same == len(rows) else f" [{same} of {len(rows)} texts equal]"


def prompt_cells(profile: Profile, result: SystemResult) -> list[list[str]]:
    """Return a row for each prompt, in the order of PROMPT_COLUMNS."""
    plain = _plain(profile, result.batch).by_prompt
    return [_prompt_row(*pair) for pair in zip(result.by_prompt, plain, strict=True)]


def _prompt_row(own: PromptResult, plain: PromptResult) -> list[str]:
    """Return the row of one prompt."""
    own_seconds = _seconds_per_token(own)
    plain_seconds = _seconds_per_token(plain)
    ratio = plain_seconds / own_seconds if own_seconds else 0.0
    return [
        str(own.index + 1),
        own.category,
        str(own.prompt_tokens),
        str(own.tokens),
        f"{own.acceptance_length:.2f}",
        milliseconds(own.ttft_seconds),
        milliseconds(own_seconds),
        f"{ratio:.2f}" if ratio else "",
    ]


def _seconds_per_token(row: PromptResult) -> float:
    return row.decode_seconds / max(1, row.tokens - 1)


def headline(profile: Profile) -> list[tuple[str, str]]:
    """Return the few figures to see first, at the smallest batch, each with its meaning."""
    first = profile.advice.batches[0]
    best = recommended_result(profile)
    plain = _plain(profile, first.batch)
    drafts = _drafts(first.draft_len)
    plain_speed = plain.tokens_per_second_per_user
    figures = [
        (f"{first.speedup:.2f}×", f"tokens/s over the plain engine at batch {first.batch}"),
        (
            f"{best.tokens_per_second_per_user:.1f}",
            f"tokens/s per user with {drafts}; plain {plain_speed:.1f}",
        ),
    ]
    rate = best.acceptance.draft_acceptance_rate
    if rate is not None:
        length = best.acceptance.acceptance_length
        figures.append((f"{length:.2f}", "[AL] τ: tokens a step, bonus included"))
        figures.append((f"{rate:.0%}", f"[DAR]: accepted of {_drafts(best.draft_len)} a step"))
    dflash = [result for result in profile.results if result.implementation == DFLASH]
    same = sum(result.same_tokens for result in dflash)
    answers = sum(len(result.by_prompt) for result in dflash)
    meaning = "DFlash answers that are the plain engine's, token for token"
    return [*figures, (f"{same}/{answers}", meaning)]


def advice_sentences(profile: Profile) -> list[str]:
    """Return the advice: a sentence for each batch size, and one on where DFlash stops paying."""
    batches = profile.advice.batches
    stop = profile.advice.stops_paying_at
    sentences = [_advice_sentence(row) for row in batches]
    if stop is None:
        sentences.append(
            f"DFlash pays at batch {batches[-1].batch}, the largest that was tried."
        )
    else:
        sentences.append(
            f"From batch {stop} on DFlash does not pay here: a plain engine is at least as fast."
        )
    return sentences


def _advice_sentence(row: BatchAdvice) -> str:
    """Return the advice for one batch size."""
    what = "draft nothing"
    if row.draft_len:
        what = f"verify {row.block_size} tokens a step ({_drafts(row.draft_len)})"
    return (
        f"Batch {row.batch}: {what}: {row.tokens_per_second_per_user:.1f} tokens/s per user,"
        f" {row.speedup:.2f} times the plain engine."
    )


def milliseconds(seconds: float) -> str:
    """Return the milliseconds with three digits."""
    value = 1000 * seconds
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def recommended(profile: Profile) -> SystemResult | None:
    """Return the DFlash system that the advice recommends at the smallest batch, if it is there.

    Of those with other sources of drafts it is the last: the advice is for that.
    """
    first = profile.advice.batches[0]
    for result in reversed(profile.results):
        found = (result.implementation, result.batch, result.draft_len)
        if found == (DFLASH, first.batch, first.draft_len) and not result.auto:
            return result
    return None


def recommended_result(profile: Profile) -> SystemResult:
    """Return the DFlash system that the advice recommends at the smallest batch."""
    result = recommended(profile)
    if result is None:
        raise ValueError("the advice names a result that is not in the profile")
    return result


def _plain(profile: Profile, batch: int) -> SystemResult:
    """Return the plain engine's result at a batch size."""
    for result in profile.results:
        if (result.system, result.batch) == (PLAIN, batch):
            return result
    raise ValueError(f"the profile has no plain result at batch {batch}")


def _drafts(count: int) -> str:
    return "1 draft" if count == 1 else f"{count} drafts"
