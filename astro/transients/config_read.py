"""How light curves are read: what a table of unknown make must be told, and what may be left to its names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from shared.config import Config

ZERO_POINTS = (-20.0, 60.0)
"""Between them lies every zero point; what is beyond says that there is none."""


class ReadConfig(Config):
    format: Literal["auto", "plasticc", "plasticc_reduced", "snpcc", "mallorn", "ztf_bts", "table"] = Field(
        "auto", description="of tables; auto = by the column names. Alerts, FITS and ECSV say what they are"
    )
    metadata: Path | None = Field(
        None, description="table with one row an object; none = the file beside it, where a survey has one"
    )
    objects: Literal["lightcurves", "metadata"] = Field(
        "lightcurves", description="metadata: also objects without any observation, in that table's order"
    )
    survey: Literal["lsst", "des", "ztf"] | None = Field(
        None, description="whose bands these are; none = as the format says, `table_survey` for tables"
    )
    table_survey: Literal["lsst", "des", "ztf"] = Field(
        "lsst",
        description="of tables of no known make; a trained model's own, where it predicts or is evaluated",
    )
    unit: Literal["nJy", "uJy", "mJy", "Jy", "mag"] | None = Field(
        None, description="of fluxes; mag = AB magnitudes; none = as the format or the table says"
    )
    zero_point: float | None = Field(
        None,
        ge=ZERO_POINTS[0],
        le=ZERO_POINTS[1],
        description="AB magnitude of flux 1 instead of a unit; 27.5 = PLAsTiCC, SNANA's FLUXCAL",
    )
    time: Literal["auto", "mjd", "jd", "mjd_seconds", "unix", "nanoseconds"] = Field(
        "auto", description="of times; auto = days, and asks where the values cannot be MJD"
    )
    dust: bool = Field(
        False,
        description="correct for Milky Way dust from E(B−V), R_V = 3.1; PLAsTiCC is corrected already",
    )
    duplicates: Literal["merge", "last"] = Field(
        "merge",
        description="of object, band and time: the inverse-variance mean (whatever the order), or the last row",
    )
    check_magnitudes: bool = Field(True, description="refuse fluxes that look like magnitudes")
    id_column: str | None = Field(None, description="'' = the file is one object; none = by its name")
    time_column: str | None = None
    band_column: str | None = None
    flux_column: str | None = Field(None, description="of fluxes, or of magnitudes with unit mag")
    error_column: str | None = None
    detected_column: str | None = Field(None, description="none = by its name, else S/N > 5; '' = S/N > 5")
    zero_point_column: str | None = Field(
        None, description="naming it has every row converted by its own zero point"
    )
    redshift_column: str | None = Field(None, description="'' = no redshift; none = by its name")
    redshift_error_column: str | None = None
    ebv_column: str | None = None
    label_column: str | None = Field(None, description="'' = no labels; none = by its name")
    labels: Literal["classes", "raw"] = Field(
        "classes", description="classes: a survey's types joined as its scores use them; raw: as written"
    )

    @model_validator(mode="after")
    def _one_scale(self) -> ReadConfig:
        if self.unit is not None and self.zero_point is not None:
            raise ValueError("unit and zero_point say the same thing twice: give one")
        return self

    def column(self, role: str) -> str | None:
        """The name told for `role`; None = not told."""
        name = f"{role}_column"
        return getattr(self, name) if name in type(self).model_fields else None
