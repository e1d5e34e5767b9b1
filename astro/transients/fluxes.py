"""A table's fluxes and errors at one zero point, or why they cannot be: nothing is taken for a unit in silence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from astro.transients import photometry, surveys
from astro.transients.columns import Columns
from astro.transients.config_read import ZERO_POINTS
from astro.transients.lightcurve import ZERO_POINT, Floats
from astro.transients.points import counted
from astro.transients.surveys import TABLE
from astro.transients.tables import invalid

NEGATIVE = ("f", "0", "0.0", "false", "-1", "-1.0")
"""Words of ``isdiffpos``"""
_ROUNDING = 0.1 / np.sqrt(12.0)
_REDUCED_FLOOR = 3.4
"""Median flux error of the 1,669 detections in PLAsTiCC's full light curves beside the reduced ones."""


def read_fluxes(columns: Columns) -> tuple[Floats, Floats]:
    """((N,) flux, (N,) error) at `ZERO_POINT`. Raises `DataInvalid`."""
    name, is_magnitude = _value_column(columns)
    value = columns.numbers(name)
    text = not pd.api.types.is_numeric_dtype(columns.frame[name])
    if text and not np.isfinite(value).any() and columns.frame[name].notna().any():
        raise invalid(columns.source, f"no numbers in {name}", "fluxes", "name their column", name)
    if columns.layout.name == "plasticc_reduced":
        flux = np.sinh(value)
        return flux, np.hypot(_ROUNDING * np.sqrt(1 + flux**2), _REDUCED_FLOOR)
    error_name = _error_column(columns, is_magnitude)
    error = columns.numbers(error_name)
    if is_magnitude:
        columns.say(f"magnitudes taken as AB, to flux at zero point {ZERO_POINT}")
        flux, error = photometry.from_magnitudes(value, error * _magnitudes(columns, error_name))
        return flux * _signs(columns), error
    zero_point = _zero_point(columns, name)
    sure = columns.layout is not TABLE or name.lower() in surveys.STATED_ZERO_POINTS
    if columns.config.check_magnitudes and not sure and photometry.look_like_magnitudes(value, error):
        found = "all values between 10 and 30 with errors below 1: magnitudes given as fluxes?"
        mend = "set data.read.unit=mag to convert them; data.read.check_magnitudes=false if they are fluxes"
        raise invalid(columns.source, found, "fluxes", mend, name)
    own = _unit(columns, error_name) if error_name in columns.table.units else zero_point
    with np.errstate(over="ignore"):
        return value * photometry.factor(zero_point), error * photometry.factor(own)


def _value_column(columns: Columns) -> tuple[str, bool]:
    """(column, whether it holds magnitudes)."""
    config, told = columns.config, columns.config.flux_column
    flux, magnitude = columns.column("flux"), columns.column("mag")
    name = (told or magnitude or flux) if config.unit == "mag" else (flux or magnitude)
    if name is None:
        raise columns.no("flux", "no column of fluxes or magnitudes")
    unit = _unit_text(columns, name)
    stated = unit.startswith("mag")
    if stated and unit not in ("mag", "mag(ab)"):
        raise invalid(columns.source, f"unit {unit}", "AB magnitudes", "convert the column", name)
    is_magnitude = config.unit == "mag" or stated or (told is None and name == magnitude)
    if is_magnitude and config.unit not in (None, "mag"):
        found = f"{name} holds magnitudes, unit={config.unit} was told"
        raise invalid(columns.source, found, "one of them", "set data.read.unit=mag", name)
    if is_magnitude and config.zero_point is not None:
        found = f"{name} holds magnitudes, zero_point={config.zero_point:g} was told"
        raise invalid(columns.source, found, "AB magnitudes, which need none", "leave it out", name)
    return name, is_magnitude


def _unit_text(columns: Columns, name: str) -> str:
    """As the column states it, in small letters; empty where it does not."""
    return columns.table.units.get(name, "").lower().replace(" ", "")


def _magnitudes(columns: Columns, error_name: str) -> float:
    """What errors are multiplied with to be magnitudes: 0.001 where their column says mmag."""
    unit = _unit_text(columns, error_name) or "mag"
    if unit not in ("mag", "mag(ab)", "mmag"):
        raise invalid(columns.source, f"unit {unit}", "mag or mmag", "convert the column", error_name)
    return 1e-3 if unit == "mmag" else 1.0


def _signs(columns: Columns) -> Floats:
    """−1 for differences that ZTF's ``isdiffpos`` says are negative, of which a magnitude tells the size alone."""
    name = columns.known(columns.frame, ("isdiffpos",))
    if name is None:
        return np.ones(1)
    negative = columns.frame[name].astype(str).str.strip().str.lower().isin(NEGATIVE).to_numpy()
    if negative.any():
        columns.say(f"{counted(int(negative.sum()), 'difference')} negative by {name}")
    return np.where(negative, -1.0, 1.0)


def _error_column(columns: Columns, is_magnitude: bool) -> str:
    roles = ["mag_error" if is_magnitude else "flux_error", "error"]
    if columns.config.unit == "mag":
        roles.append("flux_error")  # magnitudes in a column called flux
    names = tuple(name for role in roles for name in columns.layout.columns.get(role, ()))
    found = columns.find("error", columns.frame, names)
    if found is None:
        raise columns.no("error", "no column of errors")
    return found


def _zero_point(columns: Columns, name: str) -> float | Floats:
    """Of the fluxes in column `name`: told nowhere, or twice differently, it is a fault naming both."""
    config, layout, said = columns.config, columns.layout, dict[str, float]()
    if config.unit is not None:
        said[f"unit={config.unit}"] = photometry.UNIT_ZERO_POINTS[config.unit]
    if config.zero_point is not None:
        said[f"zero_point={config.zero_point:g}"] = config.zero_point
    if layout.zero_point is not None:
        said[f"format {layout.name} ({layout.zero_point:g})"] = layout.zero_point
    if name in columns.table.units:
        said[f"the column's unit {columns.table.units[name]}"] = _unit(columns, name)
    elif layout is TABLE and name.lower() in surveys.STATED_ZERO_POINTS:
        stated = surveys.STATED_ZERO_POINTS[name.lower()]
        said[f"a column named {name} ({stated:g})"] = stated
    by_row = _zero_points_by_row(columns, said)
    if by_row is not None:
        return by_row
    if not said:
        mend = "set data.read.unit (nJy, uJy, mJy, Jy, mag) or data.read.zero_point (27.5 for PLAsTiCC and FLUXCAL)"
        raise invalid(columns.source, f"no unit for {name}", "a unit, as the table has none", mend, name)
    values = list(said.values())
    if max(values) - min(values) > 1e-6:
        found = f"two zero points: {' and '.join(said)}"
        raise invalid(
            columns.source, found, "one", "leave out what is wrong, or set data.read.format=table", name
        )
    same = abs(values[0] - ZERO_POINT) < 1e-6
    columns.say(f"fluxes {'at' if same else f'from zero point {values[0]:g} to'} {ZERO_POINT}")
    return _where_stated(columns, values[0])


def _where_stated(columns: Columns, zero_point: float) -> float | Floats:
    """The zero point, NaN in rows that lack one where others have it: theirs may be another."""
    name = columns.column("zero_point")
    stated = np.ones(1, bool) if name is None else np.isfinite(_zero_points(columns, name))
    if stated.all() or not stated.any():
        return zero_point
    columns.say(f"{(~stated).sum():,} rows without a zero point in {name}, where others have one: left out")
    return np.where(stated, zero_point, np.nan)


def _zero_points(columns: Columns, name: str) -> Floats:
    """(N,) of a column of them, NaN where there is none."""
    values = columns.numbers(name)
    return np.where((values >= ZERO_POINTS[0]) & (values <= ZERO_POINTS[1]), values, np.nan)


def _zero_points_by_row(columns: Columns, said: dict[str, float]) -> Floats | None:
    """(N,) where the configuration names their column; else the one zero point in it is added to `said`."""
    name = columns.column("zero_point")
    if name is None:
        return None
    values = _zero_points(columns, name)
    if columns.config.zero_point_column is not None:
        columns.say(f"fluxes from the zero points in {name} to {ZERO_POINT}")
        return values
    kinds = np.unique(values[np.isfinite(values)])
    if len(kinds) > 1:
        some = " and ".join(f"{z:g}" for z in kinds[:4]) + (" and more" if len(kinds) > 4 else "")
        mend = f"convert them to one, or set data.read.zero_point_column={name} to have each row converted"
        raise invalid(columns.source, f"mixed zero points: {some}", "one in a table", mend, name)
    if len(kinds) == 1:
        said[f"column {name} ({kinds[0]:g})"] = float(kinds[0])
    return None


def _unit(columns: Columns, name: str) -> float:
    """Zero point of the column's astropy unit."""
    from astropy import units

    text = columns.table.units[name]
    try:
        scale = float(units.Unit(text).to(units.nJy))
    except (units.UnitConversionError, ValueError, TypeError):
        mend = "convert the column, or drop its unit and set zero_point"
        wanted = "a flux density (nJy, uJy, Jy) or mag"
        raise invalid(columns.source, f"unit {text}", wanted, mend, name) from None
    return photometry.UNIT_ZERO_POINTS["nJy"] - 2.5 * float(np.log10(scale))
