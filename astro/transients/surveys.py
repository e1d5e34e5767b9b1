"""What the columns, bands and types of each survey's tables are called, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from astro.transients.lightcurve import WAVELENGTHS, ZERO_POINT

Names = Mapping[str, tuple[str, ...]]
TRUTH = re.compile(r"(sim|true|tflux|libid)_|sntype$", re.IGNORECASE)
"""Begins the columns of truth or bookkeeping: never a feature (MANIFEST's traps)."""

# ---------------------------------------------------------------- labels

PLASTICC_CLASSES: Mapping[str, str] = {
    "6": "single microlens",
    "15": "TDE",
    "16": "eclipsing binary",
    "42": "SN II",
    "52": "SN Iax",
    "53": "Mira",
    "62": "SN Ibc",
    "64": "kilonova",
    "65": "M-dwarf flare",
    "67": "SN Ia-91bg",
    "88": "AGN",
    "90": "SN Ia",
    "92": "RR Lyrae",
    "95": "SLSN-I",
}
"""The 14 codes in the order of t2's columns; 99 (991 to 994 unblinded) is none of them."""
_SNE = {
    "Ia": (
        *("SN Ia", "SN Ia-91T", "SN Ia-91T-like", "SN Ia-91bg", "SN Ia-91bg-like", "SN Ia-pec", "SN Ia-CSM"),
        *("SN Iax", "SN Iax[02cx-like]"),
    ),
    "II": ("SN II", "SN IIP", "SN IIL", "SN II-pec"),
    "IIn": ("SN IIn",),
    "Ibc": ("SN Ib", "SN Ic", "SN Ib/c", "SN Ic-BL", "SN IIb", "SN Ib-pec", "SN Ibn", "SN Icn"),
    "SLSN": ("SLSN-I", "SLSN-II"),
}
LABELS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "plasticc": {**{code: (code,) for code in PLASTICC_CLASSES}, "99": ("99", "991", "992", "993", "994")},
    "snpcc": {"Ia": ("Ia",), "Ibc": ("Ib", "Ic", "Ibc"), "II": ("II", "IIn", "IIP", "IIL")},
    "mallorn": {
        "AGN": ("AGN",),
        "TDE": ("TDE",),
        "Ia": _SNE["Ia"],
        "II": _SNE["II"] + _SNE["IIn"],
        "Ibc": _SNE["Ibc"],
        "SLSN": _SNE["SLSN"],
    },
    "ztf_bts": _SNE,
}
"""Format → class → the types it joins: snpcc and ztf_bts as the MANIFEST's reference scores do, mallorn in six
classes that hold all of its 16 types. A type in no class has no label."""


def class_of(layout: str, kind: str) -> str | None:
    """The class of a type as written, or None; without a table of classes, the type itself."""
    if layout not in LABELS:
        return kind
    return next((name for name, kinds in LABELS[layout].items() if kind in kinds), None)


# ---------------------------------------------------------------- bands

PASSBANDS = dict(zip("012345", "ugrizy"))
FILTER_IDS = {"1": "g", "2": "r", "3": "i"}
_BAND_PREFIXES = ("lsst", "des", "decam", "ztf", "sdss", "ps1")


def band_name(value: Any, survey: str, extra: Mapping[str, str]) -> str | None:
    """`value` (r, R, lsstr, ztf_r, a number where `extra` knows it) as one of the survey's bands, or None."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.strip()
    text = text[:-2] if re.fullmatch(r"\d+\.0", text) else text
    text = extra.get(text, text)
    bands = WAVELENGTHS[survey]
    if text in bands:
        return text
    low = text.lower().replace("-", "").replace("_", "").replace("::", "").replace(":", "")
    low = next((low[len(p) :] for p in _BAND_PREFIXES if low.startswith(p) and len(low) > len(p)), low)
    return low if low in bands else None


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Layout:
    """A kind of table: `columns` of the observations and `about` each object, role → accepted names."""

    name: str
    columns: Names
    about: Names = field(default_factory=dict)
    survey: str = "lsst"
    zero_point: float | None = None
    """Of its fluxes; None = not said (tables) or magnitudes."""
    bands: Mapping[str, str] = field(default_factory=dict)
    metadata: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) from the light curves' file name to that of the metadata beside it."""
    all_detected: bool = False
    dust_corrected: bool = False
    zero_is_galactic: bool = False
    notes: tuple[str, ...] = ()

    def metadata_names(self, name: str) -> list[str]:
        """Of metadata beside a file of light curves."""
        return [new for pattern, to in self.metadata if (new := re.sub(pattern, to, name)) != name]


def _exact(**roles: str) -> Names:
    return {role: tuple(names.split("|")) for role, names in roles.items()}


_PAIR = (r"lightcurves", "metadata")
_PLASTICC_ABOUT = _exact(
    id="object_id",
    redshift="hostgal_photoz",
    redshift_error="hostgal_photoz_err",
    ebv="mwebv",
    label="target|true_target",
)
_PLASTICC_FILES = (
    (r"_(full|reduced)_lightcurves", "_train_metadata"),
    (r"_lightcurves(_\d+)?", "_metadata"),
    (r"(test_set)(_batch\d+|_sample)?(?=\.)", r"\1_metadata"),
    (r"(training_set)(?=\.)", r"\1_metadata"),
)
LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "plasticc",
            _exact(
                id="object_id",
                time="mjd",
                band="passband",
                flux="flux",
                error="flux_err",
                detected="detected|detected_bool",
            ),
            _PLASTICC_ABOUT,
            zero_point=ZERO_POINT,
            bands=PASSBANDS,
            metadata=_PLASTICC_FILES,
            dust_corrected=True,
            zero_is_galactic=True,
        ),
        Layout(
            "plasticc_reduced",
            _exact(id="object_id", time="mjd_rel", band="passband", flux="arcsinh_flux"),
            _PLASTICC_ABOUT,
            zero_point=ZERO_POINT,
            bands=PASSBANDS,
            metadata=_PLASTICC_FILES,
            all_detected=True,
            dust_corrected=True,
            zero_is_galactic=True,
            notes=(
                "errors are not in the file: rounding of arcsinh(flux) to 0.1 and 3.4 flux units are assumed",
            ),
        ),
        Layout(
            "snpcc",
            _exact(id="SNID", time="MJD", band="FLT", flux="FLUXCAL", error="FLUXCALERR"),
            _exact(
                id="SNID",
                redshift="HOST_GALAXY_PHOTO-Z",
                redshift_error="HOST_GALAXY_PHOTO-Z_ERR",
                ebv="MWEBV",
                label="type",
            ),
            survey="des",
            zero_point=ZERO_POINT,
            metadata=(_PAIR,),
        ),
        Layout(
            "mallorn",
            _exact(id="object_id", time="Time (MJD)", band="Filter", flux="Flux", error="Flux_err"),
            _exact(id="object_id", redshift="Z", redshift_error="Z_err", ebv="EBV", label="SpecType"),
            zero_point=23.9,
            metadata=(_PAIR,),
        ),
        Layout(
            "ztf_bts",
            _exact(id="ZTFID", time="ant_mjd", band="ant_passband", mag="ant_mag", error="ant_magerr"),
            _exact(id="ZTFID", a_v="A_V", label="type"),
            survey="ztf",
            metadata=(_PAIR,),
            all_detected=True,
            notes=(
                "redshift left out: it may rest on the spectrum that gave the type "
                "(data.read.redshift_column reads it)",
            ),
        ),
    )
}
_Z = "redshift|z|photoz|photo_z|zphot|z_phot|host_z|hostgal_photoz|hostgal_zphot|redshift_helio"
TABLE = Layout(
    "table",
    _exact(
        id="object_id|diaobjectid|snid|ztfid|oid|objectid|objid|object|id|name|unique_id",
        time="mjd|midpointmjdtai|midpointtai|time|jd|hjd|bjd|time_mjd|t",
        band="band|filter|passband|flt|filtername|fid|bandpass",
        flux="flux|fluxcal|psfflux|psflux|flux_njy|flux_ujy|njy|ujy",
        mag="mag|magnitude|magpsf|ab_mag|mag_ab",
        flux_error="flux_err|fluxerr|flux_error|fluxcalerr|psffluxerr|psfluxerr|dflux|e_flux"
        "|flux_err_njy|flux_err_ujy|dnjy|dujy|sigma_flux",
        mag_error="mag_err|magerr|mag_error|sigmapsf|dmag|e_mag|magnitude_error",
        error="error|err|sigma|uncertainty",
        detected="detected|detected_bool|is_detected|detection",
        zero_point="zp|zeropoint|zero_point|magzp|magzpsci",
    ),
    _exact(
        id="object_id|diaobjectid|snid|ztfid|oid|objectid|objid|object|id|name|unique_id",
        redshift=_Z,
        redshift_error="redshift_err|redshift_error|z_err|z_error|photoz_err|zphot_err|hostgal_photoz_err"
        "|hostgal_zphot_err",
        ebv="mwebv|ebv|e_bv|e(b-v)|mw_ebv",
        label="label|class|type|target|spectype",
    ),
    metadata=(_PAIR, (r"light_curves", "metadata")),
)
STATED_ZERO_POINTS: Mapping[str, float] = {
    "fluxcal": ZERO_POINT,
    **dict.fromkeys(("psfflux", "flux_njy", "njy"), 31.4),
    **dict.fromkeys(("flux_ujy", "ujy"), 23.9),
}
"""Lower-case column names that say the zero point of what they hold."""
JD_NAMES = ("jd", "hjd", "bjd")


def metadata_names(name: str) -> list[str]:
    """Of metadata beside a file of light curves of any layout."""
    return [each for layout in (*LAYOUTS.values(), TABLE) for each in layout.metadata_names(name)]


def recognised(columns: Iterable[str]) -> Layout:
    """The survey's layout whose columns are all there by exact name, else `TABLE`."""
    have = set(columns)
    for layout in LAYOUTS.values():
        needed = [names for role, names in layout.columns.items() if role != "detected"]
        if all(have.intersection(names) for names in needed):
            return layout
    return TABLE
