"""Stamps of a table: which column holds them, what they mean, their step, and the calendar they lie on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from timeseries.forecast.config import ForecastDataConfig

Positions = NDArray[np.int64]
NAMES = ("ds", "date", "datetime", "timestamp", "date_time", "time", "day", "month", "year", "period")
"""Names that a column of stamps usually has, best first."""
ACCEPTED = "s, min, h, D, B, W, MS, ME, QS, QE, YS, YE, with a number before (15min)"
_OLD = {
    "H": "h",
    "T": "min",
    "S": "s",
    "L": "ms",
    "M": "ME",
    "Q": "QE",
    "Y": "YE",
    "A": "YE",
    "AS": "YS",
    "BM": "BME",
}
_ZONE = re.compile(r"[ Tt]\d.*(?:[Zz]|[+-]\d)")
"""After the hour: a zone."""
_DATED = re.compile(r"^\d{1,4}[-/.]\d{1,2}(?:[-/.]\d{1,4})?(?:[ T]\d{1,2}:\d.*)?$")
_UNITS = (
    ("D", 86_400 * 10**9),
    ("h", 3_600 * 10**9),
    ("min", 60 * 10**9),
    ("s", 10**9),
    ("ms", 10**6),
    ("us", 10**3),
    ("ns", 1),
)
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def shown(stamp: Any) -> str:
    """A stamp as briefly as it can be said."""
    text = str(stamp)
    return text.removesuffix(":00") if text.count(":") == 2 else text


# ---------------------------------------------------------------- the column


def find_column(frame: pd.DataFrame, taken: Sequence[str] = ()) -> str | None:
    """The column that holds stamps, by its content; None when there is none."""
    candidates = [name for name in frame.columns if name not in taken and _like_dates(frame[name], name)]
    by_name = [name for wanted in NAMES for name in candidates if name.lower() == wanted]
    return next(iter(by_name or candidates), None)


def _like_dates(column: pd.Series, name: str) -> bool:
    if isinstance(column.dtype, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(column.dtype):
        return True
    if pd.api.types.is_numeric_dtype(column.dtype):
        return not pd.api.types.is_bool_dtype(column.dtype) and _counts_or_dates(column, name.lower())
    some = [cell for cell in (*column.iloc[:100], *column.iloc[-20:]) if not missing(cell)]
    like = [
        c for c in some if (not isinstance(c, str) and hasattr(c, "year")) or _DATED.match(str(c).strip())
    ]
    return bool(some) and len(like) > len(some) / 2


def _counts_or_dates(column: pd.Series, name: str) -> bool:
    """Numbers under a name that says stamps; under a weaker one (a ``day`` may be one of 31) only if they can be."""
    if name in NAMES[:5]:
        return True
    if name not in (*NAMES, "step", "t"):
        return False
    values = column.to_numpy(np.float64, na_value=np.nan)
    parsed = _from_numbers(values, None)
    return not len(parsed.bad) and len(np.unique(values)) == len(values)


def missing(cell: Any) -> bool:
    """Whether a cell holds nothing."""
    return (
        cell is None
        or cell is pd.NaT
        or cell is pd.NA
        or str(cell).strip() in ("", "nan", "NaN", "NaT", "NA")
    )


@dataclass(frozen=True)
class Parsed:
    """Stamps of a column. `times` has NaT where a cell could not be read (`bad`, positions); None: rows are steps,
    beginning at `first`."""

    times: pd.DatetimeIndex | None
    bad: Positions
    wanted: str = "a stamp"
    mend: str = "correct or remove these rows"
    notes: tuple[str, ...] = ()
    first: int = 0


_NONE = np.empty(0, np.int64)


def parse(column: pd.Series, data: ForecastDataConfig) -> Parsed:
    """Stamps without a zone, in the order of the rows. Never raises; bad cells are listed."""
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return _unzoned(pd.DatetimeIndex(column))
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _from_numbers(column.to_numpy(np.float64, na_value=np.nan), data.date_format)
    if all(hasattr(cell, "year") and not isinstance(cell, str) for cell in column.iloc[:50]):
        column = column.map(lambda cell: cell.isoformat() if hasattr(cell, "isoformat") else cell)
    if data.date_format is None and (plain := _iso(column)) is not None:
        return Parsed(plain, _NONE)
    texts = column.map(lambda cell: "" if missing(cell) else str(cell).strip())
    if data.date_format is not None:
        times = pd.to_datetime(texts, format=data.date_format, errors="coerce")
        return _with_bad(pd.DatetimeIndex(times), f"stamps as {data.date_format}", "correct data.date_format")
    return _from_text(texts)


def _iso(column: pd.Series) -> pd.DatetimeIndex | None:
    """The stamps of a column that is plain ISO throughout: no zone, no empty cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            times = pd.DatetimeIndex(pd.to_datetime(column, format="ISO8601"))
    except (ValueError, TypeError, OverflowError):
        return None
    return None if times.tz is not None or times.isna().any() else times.as_unit("ns")


def _from_text(texts: pd.Series) -> Parsed:
    zoned = texts.map(lambda text: bool(_ZONE.search(text))).to_numpy(bool)
    filled = (texts != "").to_numpy()
    if zoned.any() and not zoned[filled].all():
        odd = np.flatnonzero(filled & (~zoned if zoned.sum() * 2 >= filled.sum() else zoned))
        return Parsed(None, odd, "a time zone in every stamp or in none", "write all stamps in UTC")
    if zoned.any():
        utc = pd.DatetimeIndex(pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce"))
        if utc.isna().any():
            return _with_bad(utc.tz_localize(None), "ISO stamps", "correct or remove these rows")
        wall = texts.str.replace(r"\s*(?:Z|[+-]\d\d:?\d\d)$", "", regex=True)
        return _unzoned(utc, pd.DatetimeIndex(pd.to_datetime(wall, format="ISO8601", errors="coerce")))
    # As if in UTC: without a zone anywhere this changes nothing, and pandas cannot stumble over an odd one.
    times = pd.DatetimeIndex(pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")).tz_localize(
        None
    )
    odd_texts = [text for text in texts[times.isna() & filled].head(2000)]
    looks = [text for text in odd_texts if _DATED.match(text)]
    if looks and not re.match(r"\d{4}", looks[0]):
        return Parsed(None, np.flatnonzero(times.isna()), "ISO stamps (2016-02-13 00:00)", _ask_format(looks))
    return _with_bad(times, "ISO stamps (2016-02-13 00:00)", "correct or remove these rows")


def _ask_format(texts: Sequence[str]) -> str:
    """The format that these day-and-month stamps can have, as far as their numbers tell."""
    parts = [re.split(r"[-/. T]", text)[:3] for text in texts]
    sep = re.search(r"[-/.]", texts[0])
    mark = sep.group() if sep else "/"
    clock = {0: "", 1: " %H:%M", 2: " %H:%M:%S"}.get(texts[0].count(":"), "")
    year = "%Y" if len(parts[0]) > 2 and len(parts[0][2]) == 4 else "%y"
    day, month = f"%d{mark}%m{mark}{year}{clock}", f"%m{mark}%d{mark}{year}{clock}"
    if any(part[0].isdigit() and int(part[0]) > 12 for part in parts):
        return f"set data.date_format='{day}'"
    if any(len(part) > 1 and part[1].isdigit() and int(part[1]) > 12 for part in parts):
        return f"set data.date_format='{month}'"
    return f"set data.date_format='{day}' or '{month}', whichever is meant"


def _with_bad(times: pd.DatetimeIndex, wanted: str, mend: str) -> Parsed:
    bad = np.flatnonzero(times.isna())
    return Parsed(times.as_unit("ns") if not len(bad) else times, bad, wanted, mend)


def _from_numbers(values: NDArray[np.float64], date_format: str | None) -> Parsed:
    """YYYYMMDD, years, Unix seconds or milliseconds; numbers that count rows are steps."""
    bad = np.flatnonzero(~(np.abs(values) < 2**53) | (values != np.floor(values)))
    if len(bad) or not len(values):
        wanted = "stamps, or whole numbers that count the rows"
        return Parsed(None, bad, wanted, "correct them, or set data.date_column='' if rows are steps")
    whole = values.astype(np.int64)
    low, high = whole.min(), whole.max()
    if date_format is not None:
        times = pd.to_datetime(pd.Series(whole.astype(str)), format=date_format, errors="coerce")
        return _with_bad(pd.DatetimeIndex(times), f"stamps as {date_format}", "correct data.date_format")
    for least, most, form, unit in (
        (19_000_101, 21_001_231, "%Y%m%d", ""),
        (10**8, 4 * 10**9, "", "s"),
        (10**11, 4 * 10**12, "", "ms"),
    ):
        if least <= low and high <= most:
            if form:
                texts = pd.Series(whole.astype(str))
                return _with_bad(
                    pd.DatetimeIndex(pd.to_datetime(texts, format=form, errors="coerce")),
                    "dates as YYYYMMDD",
                    "correct them",
                )
            said = "seconds" if unit == "s" else "milliseconds"
            return Parsed(
                pd.DatetimeIndex(pd.to_datetime(whole, unit=unit)).as_unit("ns"),  # type: ignore[call-overload]
                _NONE,
                notes=(f"stamps read as {said} since 1970",),
            )
    if (np.diff(whole) == 1).all() and not (low >= 1700 and high <= 2200):
        return Parsed(None, _NONE, first=int(low), notes=("its stamps count the rows",))
    if low >= 1700 and high <= 2200:
        return Parsed(pd.DatetimeIndex(pd.to_datetime(whole.astype(str), format="%Y")).as_unit("ns"), _NONE)
    jump = np.flatnonzero(np.diff(whole) != 1) + 1
    return Parsed(
        None,
        jump,
        "stamps, or numbers that count the rows",
        "set data.date_format, or data.date_column='' for steps",
    )


def _unzoned(times: pd.DatetimeIndex, wall: pd.DatetimeIndex | None = None) -> Parsed:
    """Stamps with a zone in UTC, except days, weeks and months, which are those of the place itself."""
    if times.tz is None:
        return _with_bad(times, "a stamp", "correct or remove these rows")
    if times.isna().any():
        return _with_bad(times.tz_localize(None), "a stamp", "correct or remove these rows")
    local = times.tz_localize(None) if wall is None else wall
    if len(local) and (local == local.normalize()).all():
        return Parsed(
            local.as_unit("ns"), _NONE, notes=("stamps have a time zone; their local days are kept",)
        )
    utc = times.tz_convert("UTC").tz_localize(None)
    return Parsed(utc.as_unit("ns"), _NONE, notes=("stamps have a time zone; UTC is used",))


# ---------------------------------------------------------------- the step


def offset_of(freq: str) -> Any:
    """pandas' offset for a user's step, old spellings such as ``H`` and ``M`` too. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d*)\s*([A-Za-z]+)(-[A-Za-z]{3})?\s*", freq)
    if match is None:
        raise ValueError(freq)
    count, base, anchor = match.groups()
    text = f"{count}{_OLD.get(base, base)}{(anchor or '').upper()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            offset = pd.tseries.frequencies.to_offset(text)
        except (ValueError, TypeError):
            raise ValueError(freq) from None
    if offset is None or offset.n < 1:
        raise ValueError(freq)
    return offset


def step_key(freq: str) -> tuple[str, int]:
    """What two steps share that differ at most in their anchor: ('months', k), ('business days', k), ('ns', k)."""
    offset = offset_of(freq)
    base = offset.rule_code.split("-")[0]
    months = {"M": 1, "Q": 3, "Y": 12}.get(base.lstrip("B")[:1], 0) if base not in ("min", "ms", "B") else 0
    if months and base[-1] in "SE":
        return "months", months * offset.n
    if base in ("B", "C"):
        return "business days", offset.n
    if base == "W":
        return "ns", 7 * _UNITS[0][1] * offset.n
    try:
        return "ns", int(pd.Timedelta(offset).value)
    except ValueError:
        return base, offset.n


def infer(times: pd.DatetimeIndex) -> tuple[str | None, float]:
    """(step, share of the steps that have it) of sorted, distinct stamps; gaps do not disturb it. None: no step."""
    if len(times) < 2:
        return None, 0.0
    steps = np.diff(times.asi8)
    values, counts = np.unique(steps, return_counts=True)
    common = int(values[counts.argmax()])
    share = counts.max() / len(steps)
    day = _UNITS[0][1]
    if np.median(steps) >= 28 * day:
        monthly = _monthly(times)
        if monthly is not None or share < 0.8:
            return monthly or (None, 0.0)
    if common == day and _business(times):
        return "B", float((np.diff(_business_days(times)) == 1).mean())
    if common % (7 * day) == 0:
        weekday = int(np.bincount(times.dayofweek, minlength=7).argmax())
        weeks = common // (7 * day)
        return f"{weeks if weeks > 1 else ''}W-{_DAYS[weekday]}", float(share)
    return fixed_step(common), float(share)


def anchored(freq: str, times: pd.DatetimeIndex) -> str:
    """`freq` with the anchor that most of `times` have: the day of weeks, the month of quarters and years."""
    offset = offset_of(freq)
    base, count = offset.rule_code.split("-")[0], f"{offset.n if offset.n > 1 else ''}"
    if base == "W":
        return f"{count}W-{_DAYS[int(np.bincount(times.dayofweek, minlength=7).argmax())]}"
    if step_key(freq)[0] != "months" or base.lstrip("B")[0] == "M":
        return offset.freqstr
    period = 12 if base.lstrip("B")[0] == "Y" else 3
    month = int(np.bincount(_months(times) % period, minlength=period).argmax())
    first = 9 if period == 3 and base[-1] == "E" else 0  # pandas names quarters' ends by OCT, NOV, DEC
    return f"{count}{base}-{_MONTHS[first + month]}"


def fixed_step(ns: int) -> str:
    """The step of so many nanoseconds: ``h``, ``15min``, ``3D``."""
    name, size = next((name, size) for name, size in _UNITS if ns % size == 0)
    return f"{ns // size if ns > size else ''}{name}"


def _business(times: pd.DatetimeIndex) -> bool:
    """Days without a single week-end, although there were some."""
    return bool(
        (times.dayofweek < 5).all() and len(times) >= 5 and np.diff(times.asi8).max() >= 3 * _UNITS[0][1]
    )


def _months(times: pd.DatetimeIndex) -> Positions:
    return np.asarray(times.year * 12 + times.month - 1, np.int64)


def _business_days(times: pd.DatetimeIndex) -> Positions:
    days = times.to_numpy().astype("datetime64[D]")
    return np.busday_count("1900-01-01", days).astype(np.int64)


def _month_kinds(times: pd.DatetimeIndex) -> dict[str, NDArray[np.bool_]]:
    """Which stamps lie on the first or last (business) day of their month."""
    days = times.normalize()
    first = days - pd.to_timedelta(days.day - 1, unit="D")
    last = first + pd.offsets.MonthEnd(0)
    late = last - pd.to_timedelta(np.maximum(last.dayofweek - 4, 0), unit="D")
    early = first + pd.to_timedelta(np.where(first.dayofweek >= 5, 7 - first.dayofweek, 0), unit="D")
    found = {"MS": first, "ME": last, "BMS": early, "BME": late}
    return {kind: np.asarray(days == want) for kind, want in found.items()}


def _monthly(times: pd.DatetimeIndex) -> tuple[str, float] | None:
    kinds = _month_kinds(times)
    kind = max(kinds, key=lambda k: kinds[k].mean())
    if kinds[kind].mean() < 0.8:
        return None
    months = _months(times)
    values, counts = np.unique(np.diff(months), return_counts=True)
    step, share = int(values[counts.argmax()]), float(counts.max() / (len(times) - 1))
    if step < 1:
        return None
    end = kind[-1]
    business = kind[:-2]
    anchor = int(np.bincount(months % 12, minlength=12).argmax())
    if step % 12 == 0:
        years = step // 12
        return f"{years if years > 1 else ''}{business}Y{end}-{_MONTHS[anchor]}", share
    if step == 3:
        names = ("OCT", "NOV", "DEC") if end == "E" else ("JAN", "FEB", "MAR")
        return f"{business}Q{end}-{names[anchor % 3]}", share
    return f"{step if step > 1 else ''}{kind}", share


def positions(times: pd.DatetimeIndex, freq: str) -> tuple[Positions, NDArray[np.bool_], pd.Timestamp]:
    """(position of every sorted stamp on the calendar of `freq`, whether it lies on it, the calendar's first stamp).

    The calendar runs through the stamps' most common phase, so that one odd stamp does not move it.
    """
    kind, size = step_key(freq)
    if kind == "ns":
        phase = times.asi8 % size
        values, counts = np.unique(phase, return_counts=True)
        on = phase == values[counts.argmax()]
        places = times.asi8 // size
    else:
        clock = (times - times.normalize()).asi8
        values, counts = np.unique(clock, return_counts=True)
        on = clock == values[counts.argmax()]
        if kind == "months":
            base = offset_of(freq).rule_code.split("-")[0]
            on &= _month_kinds(times)[("B" if base.startswith("B") else "") + "M" + base[-1]]
            units = _months(times)
        else:
            on &= np.asarray(times.dayofweek < 5)
            units = _business_days(times)
        phase = units % size
        values, counts = np.unique(phase[on] if on.any() else phase, return_counts=True)
        on &= phase == values[counts.argmax()]
        places = units // size
    first = int(np.argmax(on))
    return places - places[first], on, times[first]
