"""One table of observations, with what its columns mean decided, to rows and objects and then to light curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from astro.transients import photometry, surveys
from astro.transients.columns import EXACT, Columns, banded, last_rows, names_of
from astro.transients.fluxes import read_fluxes
from astro.transients.lightcurve import Floats, LightCurve
from astro.transients.points import SNR_RULE, Ints, Objects, Rows, counted, curves_of
from astro.transients.surveys import LAYOUTS, TABLE
from astro.transients.tables import invalid
from shared.errors import Fault


class Reader(Columns):
    """One reading of one table: `read` once."""

    def read(self) -> list[LightCurve]:
        """The curves, in order. Raises `DataInvalid`."""
        code, objects = self._objects()
        given = code >= 0
        if not given.all():
            what = f"{int((~given).sum())} rows without an object id"
            self.faults.append(Fault(self.source, what, "", "left out", severity="warning"))
            self.frame, code = self.frame[given], code[given]
        flux, error = read_fluxes(self)
        band, unknown = self._bands()
        rows = Rows(code, self._times(), band, flux, error, self._detected(), None, unknown)
        config = self.config
        if config.dust and self.layout.dust_corrected:
            self.say("corrected for dust already by the survey: not corrected again")
            config = config.model_copy(update={"dust": False})
        return curves_of(rows, objects, self.survey, config, tuple(self.common))

    # ------------------------------------------------------------ objects

    def _objects(self) -> tuple[Ints, Objects]:
        code, ids = self._ids()
        about = None
        if self.about is not None:
            names = self.layout.about["id"]
            told = self.config.id_column if self.config.id_column in self.about.columns else None
            name = told or self.known(self.about, names)
            if name is None:
                raise self.no("id", "no column of ids in the metadata", self.about)
            row_code, row_ids = names_of(self.about[name])
            about = self.about.iloc[last_rows(row_code, len(row_ids))].set_axis(row_ids)
            if twice := int((row_code >= 0).sum()) - len(row_ids):
                found = f"{twice} rows of the metadata on objects that have one already"
                self.faults.append(Fault(self.source, found, "", "the last counts", severity="warning"))
            absent = about.index.difference(ids, sort=False)
            if self.config.objects == "metadata":
                first = [*row_ids, *(i for i in ids if i not in about.index)]
                place = np.append(pd.Index(first).get_indexer(pd.Index(ids)), -1).astype(np.int64)
                code, ids = place[code], first
            elif len(absent):
                self.notes.append(f"{len(absent)} objects of the metadata have no light curve here")
            about = about.reindex(ids)
        return code, self._described(Objects.named(ids, self.source), code, about)

    def _ids(self) -> tuple[Ints, list[str]]:
        name = self.column("id")
        if name is not None:
            column = self.frame[name]
            if pd.api.types.is_float_dtype(column) and (column.abs() >= EXACT).any():
                found = f"ids in {name} with decimal point, whose last digits are lost"
                raise invalid(self.source, found, "whole numbers or text", "write them so", name)
            return names_of(column)
        meta = {str(key).lower(): value for key, value in self.table.meta.items()}
        said = next((meta[key] for key in TABLE.columns["id"] if meta.get(key) is not None), None)
        if said is None and self.config.id_column != "":
            raise self.no("id", "no column of ids")
        return np.zeros(len(self.frame), np.int64), [str(said or Path(self.source).stem)]

    def _described(self, objects: Objects, code: Ints, about: pd.DataFrame | None) -> Objects:
        """`objects` with redshift, E(B−V) and label, of the metadata or of their rows, and the notes on them."""
        ebv = self._of_objects("ebv", code, objects, about)
        if ebv is None and (a_v := self._of_objects("a_v", code, objects, about)) is not None:
            ebv = a_v / photometry.RV
        objects.ebv = objects.ebv if ebv is None else np.where(ebv >= 0, ebv, np.nan)
        z = self._of_objects("redshift", code, objects, about)
        if z is not None:
            error = self._of_objects("redshift_error", code, objects, about)
            clean = photometry.clean_redshift(
                z, np.full(len(z), np.nan) if error is None else error, self.layout.zero_is_galactic
            )
            objects.redshift, objects.redshift_error, bad = clean
            for index in np.flatnonzero(bad):
                objects.notes[index].append(f"redshift {z[index]:g} taken as absent")
        self._label(objects, code, about)
        return objects

    def _source(self, role: str, about: pd.DataFrame | None) -> tuple[pd.DataFrame | None, str | None]:
        names = self.layout.about.get(role, ())
        for frame in (about, self.frame):
            if frame is not None and (name := self.find(role, frame, names)) is not None:
                return frame, name
        if self.config.column(role):
            raise self.no(role, f"no column {self.config.column(role)}")
        return None, None

    def _of_objects(
        self, role: str, code: Ints, objects: Objects, about: pd.DataFrame | None
    ) -> Floats | None:
        """(M,) numbers of a role: the metadata's, or the first in an object's rows; None where there is no column."""
        frame, name = self._source(role, about)
        if frame is None or name is None:
            meta = self.table.meta.get({"redshift": "z", "ebv": "mwebv"}.get(role, role))
            if len(objects.ids) == 1 and isinstance(meta, (int, float)):
                return np.array([float(meta)])
            return None
        values = self.numbers(name, frame)
        if frame is about:
            return values
        out = np.full(len(objects.ids), np.nan)
        here = np.flatnonzero(np.isfinite(values) & (code >= 0))[::-1]
        out[code[here]] = values[here]
        return out

    def _label(self, objects: Objects, code: Ints, about: pd.DataFrame | None) -> None:
        frame, name = self._source("label", about)
        if frame is None or name is None:
            return
        kind_code, kinds = names_of(frame[name])
        if frame is about:
            of_object = kind_code
        else:
            of_object = np.full(len(objects.ids), -1)
            here = np.flatnonzero((kind_code >= 0) & (code >= 0))[::-1]
            of_object[code[here]] = kind_code[here]
            if odd := len(set(code[here[kind_code[here] != of_object[code[here]]]])):
                found = f"{counted(odd, 'object')} whose rows have several labels"
                self.faults.append(
                    Fault(self.source, found, "", "the first counts", field=name, severity="warning")
                )
        family = self.layout.name.removesuffix("_reduced")
        raw = self.config.labels == "raw"
        classes = [kind if raw else surveys.class_of(family, kind) for kind in kinds]
        for index, kind in enumerate(of_object):
            if kind >= 0:
                objects.label[index] = classes[kind]
                if classes[kind] is None:
                    objects.notes[index].append(f"type {kinds[kind]} is in none of the classes: no label")

    # ------------------------------------------------------------ observations

    def _times(self) -> Floats:
        name = self.needed("time")
        column = self.frame[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            self.say("times: dates, taken as UTC, to MJD")
            since = column.to_numpy("datetime64[ns]")
            time = photometry.to_mjd(since.astype("int64").astype(float), "nanoseconds")
            return np.where(np.isnat(since), np.nan, time)
        time = self._days(name)
        if len(time) and not np.isfinite(time).any() and column.notna().any():
            raise invalid(self.source, f"no numbers in {name}", "times as MJD", "convert them", name)
        kind = self.config.time
        guess = photometry.guess_time(time)
        if kind == "auto" and guess == "jd" and name.lower() in surveys.JD_NAMES:
            kind = "jd"
        if kind == "auto" and guess != "mjd":
            raise self._ask_time(name, time, guess)
        if kind == "jd" and guess == "mjd" and self.config.time != "auto" and len(time):
            raise invalid(
                self.source, "values below 2400000", "Julian dates, as told", "set data.read.time=mjd", name
            )
        scale = self.table.scales.get(name, "as given (TAI and UTC differ by 37 s: no matter here)")
        self.notes.append(f"times: {'mjd' if kind == 'auto' else kind}, scale {scale}")
        return self._dated(name, photometry.to_mjd(time, kind))

    def _dated(self, name: str, mjd: Floats) -> Floats:
        """`mjd`, NaN where it says that there is none: 0 or −999, or ages later, among dates of our time."""
        middle = np.nanmedian(mjd) if np.isfinite(mjd).any() else np.nan
        if not photometry.dated(middle):
            return mjd
        odd = (mjd <= 0) | (mjd >= photometry.DATED[1])
        if odd.any():
            self.say(f"{int(odd.sum()):,} times in {name} are no dates: their points left out")
        return np.where(odd, np.nan, mjd)

    def _days(self, name: str) -> Floats:
        """Numbers of a column of times; by its unit, where it has one, to days."""
        time, unit = self.numbers(name), self.table.units.get(name, "d")
        if unit == "d":
            return time
        from astropy import units

        try:
            return time * float(units.Unit(unit).to(units.d))
        except (units.UnitConversionError, ValueError, TypeError):
            raise invalid(self.source, f"unit {unit}", "a unit of time", "convert the column", name) from None

    def _ask_time(self, name: str, time: Floats, guess: str | None) -> Exception:
        low, high = np.nanmin(time), np.nanmax(time)
        found = f"values {low:.10g} to {high:.10g} cannot be MJD"
        if guess == "mixed":
            return invalid(
                self.source, f"{found} alone", "one kind of time", "convert the others to MJD", name
            )
        if guess is None:
            return invalid(self.source, found, "times as MJD", "convert them", name)
        mend = f"set data.read.time={guess} if they are, else convert them to MJD"
        return invalid(
            self.source, f"{found}; they look like {photometry.TIME_NAMES[guess]}", "MJD", mend, name
        )

    def _bands(self) -> tuple[Ints, tuple[str, ...]]:
        """((N,) index into the survey's bands or −1 − index of an unknown one, the unknown ones)."""
        name = self.needed("band")
        extra = self.layout.bands
        if self.layout is TABLE and name.lower() == "fid" and self.survey == "ztf":
            extra = surveys.FILTER_IDS
        elif self.layout is TABLE and name.lower() == "passband" and self.survey == "lsst":
            extra = LAYOUTS["plasticc"].bands
        code, values = pd.factorize(self.frame[name], use_na_sentinel=True)
        return banded(code, list(values), self.survey, extra)

    def _detected(self) -> Floats | None:
        if self.layout.all_detected:
            return np.ones(len(self.frame))
        name = self.column("detected")
        if name is None:
            self.say(SNR_RULE)
            return None
        column = self.frame[name]
        if not pd.api.types.is_numeric_dtype(column):
            words = {"true": 1, "t": 1, "yes": 1, "1": 1, "false": 0, "f": 0, "no": 0, "0": 0}
            column = column.astype(str).str.strip().str.lower().map(words)
        return column.to_numpy(dtype=float, na_value=np.nan)
