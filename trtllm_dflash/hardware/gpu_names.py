"""Finds the architecture and the GPU that people mean by a name: "b200", "5090", "sm_120", "12.0".

An architecture is known by its number in any of CUDA's spellings. A GPU is known by its name in
`catalog/gpus.json` or a part of it, in any case, with or without its brand. Products outside that
table stand for their architecture alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from trtllm_dflash.catalog.gpus import GPUS, GpuSpec, gpus_of
from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS, Arch

_ARCH = re.compile(r"(?:sm|compute|cc)?[ _-]?(\d{2,3}|\d{1,2}\.\d)[af]?")
_NOT_PART_OF_A_NAME = re.compile(
    r"nvidia|geforce|tesla|gpu|dgx|hgx|generation|edition|workstation|server|max|q|sxm\d?|hbm\d?e?"
)
# Where names are written without a blank: rtx5090, pro6000, rtxa6000, 5070ti, 6000ada.
_BRAND = re.compile(r"(dgx|hgx|rtx|pro)(?=pro|spark|[abh]?\d)")
_SUFFIX = re.compile(r"(?<=\d)(ti|super|ada|blackwell)\b")
_MEMORY = re.compile(r"\d+gb")
_MIN_PART = 3  # letters of a part of a word that may stand for the whole
_MIN_SIMILARITY, _MAX_COMPARED = 0.6, 64

_GENERATIONS = {
    "ampere": ("sm80", "sm86"),
    "adalovelace": ("sm89",),
    "lovelace": ("sm89",),
    "hopper": ("sm90",),
    "gracehopper": ("sm90",),
    "blackwell": ("sm100", "sm103", "sm120", "sm121"),
    "graceblackwell": ("sm100", "sm103", "sm121"),
    "blackwellultra": ("sm103",),
}
# Products that the table of GPUs does not have, without blanks.
_OTHER_PRODUCTS = {
    r"a800(40gb|80gb)?|a30x": "sm80",
    r"(rtx)?30[5-9]0(ti)?|rtxa[2456]\d00|a2|a10g|a16|a[2456]\d00": "sm86",
    r"(rtx)?40[5-9]0(ti|d)?(super)?|(rtx)?(2000|4000|4500|5000)ada|l2|l20|l40": "sm89",
    r"h800|h20|gh200|h100(nvl|pcie)": "sm90",
    r"b100|gb200nvl72": "sm100",
    r"gb300nvl72": "sm103",
    r"(rtx)?50[5-9]0(ti|d|dv2)?|rtxpro[2456][05]00(blackwell)?": "sm120",
}


@dataclass(frozen=True)
class NamedHardware:
    """What a name stands for.

    `gpus` are the GPUs of the table that it fits. There are none where it names an architecture, or
    a product outside the table (`is_unlisted`).
    """

    arch: Arch
    gpus: tuple[GpuSpec, ...] = ()
    is_unlisted: bool = False


def find_hardware(name: str, option: str = "--arch") -> NamedHardware:
    """Return the architecture that a name stands for, and the GPUs if it is theirs.

    Raises:
        UsageError: for a name that is unknown or fits several architectures, with what `option`
            could have meant.
    """
    arch = _arch_of_number(name)
    if arch is not None:
        return NamedHardware(arch)
    archs = _archs_of_generation(name)
    gpus = () if archs else _fitting(name, GPUS)
    archs = archs or tuple(dict.fromkeys(gpu.arch for gpu in gpus)) or _archs_of_product(name)
    if not archs:
        raise UsageError(_unknown_message(name, option))
    if len(archs) > 1:
        fits = [f"{gpu.name} ({gpu.arch})" for gpu in gpus] or archs
        raise UsageError(
            f"{option} {name!r} fits {', '.join(fits)}: give more of the name, or one of"
            f" {', '.join(archs)}"
        )
    return NamedHardware(ARCHS[archs[0]], gpus, is_unlisted=bool(_archs_of_product(name)))


def arch_named(name: str, option: str = "--arch") -> str:
    """Return the key in ARCHS of the architecture that a name stands for.

    Raises:
        UsageError: as `find_hardware` does.
    """
    return find_hardware(name, option).arch.name


def find_gpu(name: str, arch: str | None = None, option: str = "--gpu") -> GpuSpec:
    """Return the one GPU of the table that a name stands for, among those of `arch` if given.

    Raises:
        UsageError: for a name that fits none of them, or several.
    """
    gpus = GPUS if arch is None else gpus_of(arch)
    found = _fitting(name, gpus)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(gpu.name for gpu in found)
        raise UsageError(f"{option} {name!r} fits {names}: give more of the name")
    meant = find_hardware(name, option)  # says what is unknown
    if arch is not None and meant.arch.name != arch:
        raise UsageError(f"{option} {name!r} is {meant.arch.name}, and not {arch}")
    listed = ", ".join(gpu.name for gpu in gpus_of(meant.arch.name)) or "none"
    raise UsageError(
        f"{option} {name!r}: the table has no figures of it. Of {meant.arch.name} it has: {listed}"
    )


def _arch_of_number(name: str) -> Arch | None:
    """Return the arch of "sm120", "sm_120a", "120" or "12.0", None for anything else."""
    text = name.strip().casefold()
    if text in ARCHS:
        return ARCHS[text]
    found = _ARCH.fullmatch(text)
    return None if found is None else ARCHS.get(f"sm{found[1].replace('.', '')}")


def _words(name: str) -> list[str]:
    """Return the words of a GPU's name without its maker and its form."""
    text = _SUFFIX.sub(r" \1", _BRAND.sub(r"\1 ", name.casefold()))
    words = re.findall(r"[a-z0-9]+", text)
    return [word for word in words if not _NOT_PART_OF_A_NAME.fullmatch(word)]


def _fitting(name: str, gpus: Sequence[GpuSpec]) -> tuple[GpuSpec, ...]:
    """Return the GPUs that a name fits.

    Those whose whole name it is go before those that end so, those before others that have all of
    its words. A mere part of a word counts last, and not for the name of another product.
    """
    words = _words(name)
    if all(map(_MEMORY.fullmatch, words)):
        return ()
    rules: tuple[Callable[[list[str], list[str]], bool], ...] = (
        lambda wanted, own: "".join(wanted) == "".join(own),
        lambda wanted, own: wanted == own[-len(wanted) :],
        lambda wanted, own: set(wanted) <= set(own),
    )
    for fits in rules:
        found = []
        for gpu in gpus:
            own, memory = _words(gpu.name), f"{gpu.memory_gb:g}gb"
            # The memory may stand behind any name, as in "H100 80GB".
            wanted = [word for word in words if word != memory or word in own]
            if wanted and fits(wanted, own):
                found.append(gpu)
        if found:
            return tuple(found)
    part = "".join(words)
    if len(part) < _MIN_PART or _archs_of_product(name):
        return ()
    return tuple(gpu for gpu in gpus if part in "".join(_words(gpu.name)))


def _archs_of_generation(name: str) -> tuple[str, ...]:
    """Return the archs of a generation's name or of its beginning, () for anything else."""
    text = "".join(_words(name))
    if text in _GENERATIONS or len(text) <= _MIN_PART:
        return _GENERATIONS.get(text, ())
    found = [archs for known, archs in _GENERATIONS.items() if known.startswith(text)]
    return tuple(dict.fromkeys(arch for archs in found for arch in archs))


def _archs_of_product(name: str) -> tuple[str, ...]:
    text = "".join(_words(name))
    for pattern, arch in _OTHER_PRODUCTS.items():
        if re.fullmatch(pattern, text):
            return (arch,)
    return ()


def _unknown_message(name: str, option: str) -> str:
    known = {"".join(_words(gpu.name)): f"{gpu.name} ({gpu.arch})" for gpu in GPUS}
    known |= {arch: arch for arch in ARCHS}
    wanted = "".join(_words(name))[:_MAX_COMPARED]
    near = get_close_matches(wanted, known, n=3, cutoff=_MIN_SIMILARITY)
    nearest = f"; did you mean {', '.join(known[match] for match in near)}?" if near else "."
    archs = "\n".join(f"  {arch.name:<6} {arch.hardware}" for arch in ARCHS.values())
    return f"{option} {name!r} is no known architecture or GPU{nearest} There are:\n{archs}"
