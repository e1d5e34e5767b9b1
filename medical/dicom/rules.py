"""Which of the four modalities an MR series is: from its words first, then from contrast agent and timings.

The rules, in order: maps, scouts, diffusion, perfusion and T2* are none of the four; "flair" (or TI ≥ 1500 ms with
TE ≥ 60 ms) is FLAIR unless it says T1; "t2" is T2; "t1", MPRAGE and the like are T1, and T1 with contrast when the
words say so, or when a contrast agent is recorded and the words do not deny it. Without such words TE, TR and TI
decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medical.dicom.slices import Series, number_of, text_of

_OTHER = re.compile(
    r"loc(?![a-z])|localizer|localiser|scout|survey|adc|dwi|diff|trace|dti|(?<![a-z])(fa|b0|b1000)(?![a-z0-9])|"
    r"perf|(?<![a-z])(dsc|dce|asl|cb[fv]|mtt|ttp|swi|swan|mra|tof|bold)(?![a-z])|t2\s?\*|t2[ _-]?star|t2s(?![a-z])|"
    r"hemo|phase|angio|fmri|spectro|mrs(?![a-z])|(?<![a-z])(mip|sub)(?![a-z])|subtract|field.?map|report"
)
_OTHER_TYPES = {
    "LOCALIZER",
    "PROJECTION IMAGE",
    "MIP",
    "ADC",
    "DIFFUSION",
    "PERFUSION",
    "SUBTRACT",
    "PHASE",
    "P",
}
_FLAIR = re.compile(r"flair|dark[ _-]?fluid|t2f(?![a-z])")
_T1 = re.compile(r"(?<![0-9])t1(?![0-9])|mprage|mp2?rage|bravo|spgr|vibe|(?<![a-z])(tfl|tfe|ffe3d)(?![a-z])")
_T2 = re.compile(r"(?<![0-9])t2(?![0-9])")
_POST = re.compile(
    r"(?<![a-z])(gd|gad|gado[a-z]*|ce|km|dotarem|prohance|magnevist|enhanced)(?![a-z])|"
    r"(?<![a-z])post(?!([ _-]?op)|[a-z])|post[ _-]?(gd|gad|contrast|km)|t1w?(ce|c|gd|post)(?![a-z])|"
    r"c\s?\+|\+\s?(c|gd|km)(?![a-z])|contrast|[ _-]c$"
)
_PRE = re.compile(
    r"(?<![a-z])(pre|native?|plain|unenhanced|ohne)(?![a-z])|pre[ _-]?(gd|gad|contrast|km)|non?[ _-]?contrast|"
    r"without|(?<![a-z])w/?o(?![a-z])|(?<![a-z])c-(?![a-z0-9])|\s-c(?![a-z])"
)
_NO_AGENT = re.compile(r"^(|0|-|n|no|none|nil|without|no contrast)$")


@dataclass(frozen=True)
class Traits:
    """What decides: words in lower case, the recorded agent, times in ms (None = not said)."""

    words: str
    agent: str = ""
    te: float | None = None
    tr: float | None = None
    ti: float | None = None
    gradient_echo: bool = False
    types: tuple[str, ...] = ()


def traits_of(series: Series) -> Traits:
    """From the first image; enhanced MR keeps its times in functional groups."""
    header = series.first
    words = text_of(header, "SeriesDescription").lower()
    if not any(pattern.search(words) for pattern in (_OTHER, _FLAIR, _T1, _T2)):
        # Second choice, because one protocol ("brain with and without contrast") covers many series.
        words = f"{words} {text_of(header, 'ProtocolName').lower()}".strip()
    kinds = header.get("ImageType") or ()
    return Traits(
        words,
        text_of(header, "ContrastBolusAgent"),
        _time(header, "EchoTime", "MREchoSequence", "EffectiveEchoTime"),
        _time(header, "RepetitionTime", "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
        _time(header, "InversionTime", "MRModifierSequence", "InversionTimes"),
        "GR" in text_of(header, "ScanningSequence"),
        tuple(str(kind).upper() for kind in ([kinds] if isinstance(kinds, str) else kinds)),
    )


def _time(header: Any, name: str, group: str, inner: str) -> float | None:
    value = number_of(header, name)
    if value is not None:
        return value
    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(header.get(place) or [])[:1]:
            for holder in item.get(group) or []:
                found = number_of(holder, inner)
                if found is not None:
                    return found
    return None


def modality_of(traits: Traits) -> tuple[str | None, str]:
    """(flair, t1ce, t1, t2 or None; the reason in a few words)."""
    words = traits.words
    other = _OTHER.search(words)
    if other or _OTHER_TYPES & set(traits.types):
        return None, "another kind of image"
    t1, t2, flair = _T1.search(words), _T2.search(words), _FLAIR.search(words)
    if flair and not (t1 and not t2):
        return "flair", f"says {flair.group()}"
    if t1 and t2:
        return None, "says both t1 and t2"
    if t1:
        return _contrast(traits, f"says {t1.group()}")
    long_inversion = (traits.ti or 0) >= 1500 and (traits.te or 0) >= 60
    if long_inversion:
        return "flair", f"TI {traits.ti:g} ms, TE {traits.te:g} ms"
    if t2:
        return "t2", f"says {t2.group()}"
    return _by_times(traits)


def _contrast(traits: Traits, reason: str) -> tuple[str, str]:
    if _PRE.search(traits.words):
        return "t1", f"{reason}, and without contrast"
    post = _POST.search(traits.words)
    if post:
        return "t1ce", f"{reason} and {post.group().strip()}"
    if not _NO_AGENT.match(traits.agent.strip().lower()):
        return "t1ce", f"{reason}, contrast agent recorded"
    return "t1", f"{reason}, no contrast agent"


def _by_times(traits: Traits) -> tuple[str | None, str]:
    if traits.te is None or traits.tr is None:
        return None, "no telling words, TE or TR"
    said = f"TE {traits.te:g} ms, TR {traits.tr:g} ms"
    if traits.te >= 60 and traits.tr >= 2000:
        return "t2", said
    inverted = 500 <= (traits.ti or 0) < 1500
    if traits.te <= 30 and (traits.tr <= 900 or inverted) and not (traits.gradient_echo and traits.te > 10):
        return _contrast(traits, said)
    return None, f"{said} fit none"


def assign(found: Sequence[Series]) -> dict[str, list[tuple[Series, str]]]:
    """Modality → the series that fit it and why; the key "" holds the others."""
    out: dict[str, list[tuple[Series, str]]] = {}
    for series in found:
        name, reason = modality_of(traits_of(series)) if series.is_mr_image else (None, "no MR image")
        out.setdefault(name or "", []).append((series, reason))
    return out
