"""DICOM headers and pixels through pydicom: what a series says about itself, and its images one by one.

Headers are read without pixels and only the tags named here; values that could name a person are used for hiding them
from messages and for hashes, never kept. Classic MR (one image a file) and enhanced MR (many frames a file) look alike
from outside. ``force`` is never used. Every refusal is an `ItemError`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import MediaStorageDirectoryStorage

from shared.errors import ItemError

_TAGS = [
    "SOPClassUID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "ProtocolName", "ImageType", "ContrastBolusAgent", "ScanningSequence", "EchoTime", "RepetitionTime",
    "InversionTime", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PatientName",
    "PatientID",
]  # fmt: skip
_IGNORED_SUFFIXES = {
    ".txt", ".md", ".json", ".xml", ".csv", ".tsv", ".html", ".htm", ".pdf", ".log", ".ini", ".inf", ".exe", ".jpg",
    ".jpeg", ".png", ".gif", ".bval", ".bvec", ".nii", ".gz", ".zip",
}  # fmt: skip
_IGNORED_NAMES = {"readme", "license", "lockfile", "version", "thumbs.db"}
_DECODERS = (
    "`pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`, or decompress with `gdcmconv --raw`"
)


@dataclass(frozen=True)
class Slice:
    """One image plane. Lengths in mm, directions in patient coordinates (LPS)."""

    path: Path
    frame: int | None
    """Index within a multi-frame file."""
    position: NDArray[np.float64]
    """Centre of the first voxel, (3,)."""
    right: NDArray[np.float64]
    """Unit vector along a row (growing column index), (3,)."""
    down: NDArray[np.float64]
    """Unit vector along a column (growing row index), (3,)."""
    spacing: tuple[float, float]
    """Between columns, between rows."""
    shape: tuple[int, int]
    """Columns, rows."""
    slope: float
    intercept: float


@dataclass
class Series:
    """Images that share a SeriesInstanceUID. `headers` hold no pixels; `slices` are built on first use."""

    uid: str
    headers: list[tuple[Path, Any]] = field(default_factory=list)

    @property
    def first(self) -> Any:
        return self.headers[0][1]

    @property
    def is_mr_image(self) -> bool:
        return text_of(self.first, "Modality") == "MR" and number_of(self.first, "Rows") is not None

    @property
    def count(self) -> int:
        return sum(int(number_of(header, "NumberOfFrames") or 1) for _, header in self.headers)

    @property
    def name(self) -> str:
        """How messages call it, such as: series 4 "T1 post" (155 images)."""
        number = number_of(self.first, "SeriesNumber")
        title = (
            text_of(self.first, "SeriesDescription")
            or text_of(self.first, "ProtocolName")
            or "no description"
        )
        return f'series {"?" if number is None else int(number)} "{title[:40]}" ({self.count} images)'

    @property
    def frame_of_reference(self) -> str:
        return text_of(self.first, "FrameOfReferenceUID")

    def slices(self) -> list[Slice]:
        """Every plane, in file order. Raises `ItemError` naming the file and the missing or odd tag."""
        out: list[Slice] = []
        for path, header in self.headers:
            with quiet():
                out += _frames(path, header)
        return out


# ---------------------------------------------------------------- headers


@contextmanager
def quiet() -> Iterator[None]:
    """No pydicom warnings: they repeat header values, which may name a person."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def looks_like_dicom(path: Path) -> bool:
    """Whether a regular file carries the DICOM mark after its 128-byte preamble. Reads 132 bytes."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> Any:
    """The tags of `_TAGS` of a DICOM file. Raises `ItemError`."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with quiet():
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except InvalidDicomError:
        found = "empty file" if path.stat().st_size == 0 else "not DICOM (no DICM mark)"
        raise ItemError(path, found, "a DICOM file", "remove it, or export it again") from None
    except OSError as err:
        raise ItemError(
            path, err.strerror or "unreadable", "a readable file", "check its permissions"
        ) from None
    except Exception as err:  # noqa: BLE001 - a damaged header makes the reader raise anything; its text may hold values
        raise ItemError(
            path, f"damaged DICOM header ({type(err).__name__})", "a whole file", "copy it again"
        ) from None


def is_directory(header: Any) -> bool:
    """Whether the file is a DICOMDIR: a table of contents, not an image."""
    return str(header.file_meta.get("MediaStorageSOPClassUID", "")) == MediaStorageDirectoryStorage


def collect(paths: Iterable[Path]) -> tuple[list[Series], list[str], ItemError | None]:
    """Series among the files `paths` in the order of their number; words to hide; the first refusal, if any.

    Directories (DICOMDIR) and files with suffixes no scanner writes (.txt, .json, …) are passed over.
    """
    series: dict[str, Series] = {}
    hidden: dict[str, None] = {}
    refusal: ItemError | None = None
    for path in paths:
        mark = looks_like_dicom(path)
        named = path.name.lower() in _IGNORED_NAMES or path.suffix.lower() in _IGNORED_SUFFIXES
        if named or (not mark and not path.is_file()):
            continue
        try:
            header = read_header(path)
            if is_directory(header):
                continue
            uid = text_of(header, "SeriesInstanceUID")
            if not uid:
                raise ItemError(path, "absent", "a series", "export it again", "SeriesInstanceUID")
        except ItemError as err:
            refusal = refusal or err
            continue
        hidden |= dict.fromkeys(_private_words(header))
        series.setdefault(uid, Series(uid)).headers.append((path, header))
    ordered = sorted(series.values(), key=lambda one: (number_of(one.first, "SeriesNumber") or 0, one.uid))
    return ordered, list(hidden), refusal


def _private_words(header: Any) -> list[str]:
    words = re.split(r"[\s^=,_]+", f"{text_of(header, 'PatientName')} {text_of(header, 'PatientID')}")
    return [word for word in words if len(word) > 2] + [text_of(header, "PatientID")]


def hide(text: str, words: Sequence[str]) -> str:
    """`text` with the given words replaced by an ellipsis, whatever their case."""
    for word in sorted(filter(None, words), key=len, reverse=True):
        near = "A-Za-z" if word.isalpha() else "A-Za-z0-9"
        text = re.sub(rf"(?<![{near}]){re.escape(word)}(?![{near}])", "…", text, flags=re.IGNORECASE)
    return text


def text_of(header: Any, name: str) -> str:
    """A tag as one line of printable text; "" when absent or unreadable."""
    try:
        value = header.get(name)
    except Exception:  # noqa: BLE001 - a malformed value is as good as none
        return ""
    return "" if value is None else re.sub(r"[^\x20-\x7e\u00a0-\uffff]+", " ", str(value)).strip()


def number_of(header: Any, name: str) -> float | None:
    """A tag as a finite number; None when absent or malformed."""
    try:
        value = header.get(name)
        number = float(value) if value not in (None, "") else None
    except Exception:  # noqa: BLE001 - a malformed value is as good as none
        return None
    return number if number is not None and np.isfinite(number) else None


def _numbers(path: Path, holder: Any, name: str, count: int) -> NDArray[np.float64]:
    try:
        values = np.asarray([float(v) for v in holder.get(name)], np.float64)
    except Exception:  # noqa: BLE001 - absent and malformed values are refused alike
        raise ItemError(
            path, "absent or not numbers", f"{count} numbers", "export it with geometry", name
        ) from None
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ItemError(path, f"{values.size} values", f"{count} finite numbers", "export it again", name)
    return values


# ---------------------------------------------------------------- planes


def _frames(path: Path, header: Any) -> list[Slice]:
    samples = number_of(header, "SamplesPerPixel") or 1
    photometric = text_of(header, "PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or photometric != "MONOCHROME2":
        raise ItemError(
            path, photometric, "MONOCHROME2", "export the original images", "PhotometricInterpretation"
        )
    if header.get("ModalityLUTSequence"):
        raise ItemError(
            path, "a look-up table", "RescaleSlope and RescaleIntercept", "export the original images"
        )
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if (number_of(header, "NumberOfFrames") or 1) > 1:
            what = "several frames without PerFrameFunctionalGroupsSequence"
            raise ItemError(
                path, what, "enhanced MR, or one image a file", "export as classic or enhanced MR"
            )
        return [_slice(path, None, header, [header])]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [_slice(path, index, header, [frame, *shared]) for index, frame in enumerate(per_frame)]


_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}


def _holder(places: Sequence[Any], name: str) -> Any:
    """The data set that holds tag `name`: the image itself, or a functional group of its frame."""
    for place in places:
        for holder in (place, *(place.get(_GROUPS[name]) or [])):
            if name in holder:
                return holder
    return places[0]


def _slice(path: Path, frame: int | None, header: Any, places: Sequence[Any]) -> Slice:
    position = _numbers(path, _holder(places, "ImagePositionPatient"), "ImagePositionPatient", 3)
    directions = _numbers(path, _holder(places, "ImageOrientationPatient"), "ImageOrientationPatient", 6)
    between_rows, between_columns = _numbers(path, _holder(places, "PixelSpacing"), "PixelSpacing", 2)
    right, down = directions[:3], directions[3:]
    if max(abs(right @ right - 1), abs(down @ down - 1), abs(right @ down)) > 1e-3:
        raise ItemError(
            path, "directions not perpendicular", "unit vectors", "export again", "ImageOrientationPatient"
        )
    if min(between_rows, between_columns) <= 0:
        found = f"{between_rows:g}, {between_columns:g}"
        raise ItemError(path, found, "positive mm", "export again", "PixelSpacing")
    slope = number_of(_holder(places, "RescaleSlope"), "RescaleSlope")
    intercept = number_of(_holder(places, "RescaleIntercept"), "RescaleIntercept")
    return Slice(
        path,
        frame,
        position,
        right / np.linalg.norm(right),
        down / np.linalg.norm(down),
        (float(between_columns), float(between_rows)),
        (int(number_of(header, "Columns") or 0), int(number_of(header, "Rows") or 0)),
        1.0 if slope in (None, 0.0) else float(slope),  # type: ignore[arg-type]
        float(intercept or 0.0),
    )


def read_pixels(slices: Sequence[Slice]) -> NDArray[np.float32]:
    """(columns, rows, slices) in the given order, rescaled. Raises `ItemError`."""
    out = np.empty((*slices[0].shape, len(slices)), np.float32)
    open_path, pixels = None, np.empty(0)
    for index, plane in enumerate(slices):
        if plane.path != open_path:
            open_path, pixels = plane.path, _decode(plane.path)
        image = pixels if plane.frame is None else pixels[plane.frame]
        if image.shape != plane.shape[::-1]:
            raise ItemError(
                plane.path, f"{image.shape} pixels", f"{plane.shape[::-1]}", "export it again", "Rows"
            )
        out[:, :, index] = image.T.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
    return out


def _decode(path: Path) -> NDArray[Any]:
    """Stored values of one file: (rows, columns) or (frames, rows, columns)."""
    import pydicom
    from pydicom.pixels import get_decoder

    try:
        with quiet():
            dataset = pydicom.dcmread(path)
            syntax = dataset.file_meta.TransferSyntaxUID
    except Exception as err:  # noqa: BLE001 - see read_header
        raise ItemError(
            path, f"damaged DICOM file ({type(err).__name__})", "a whole file", "copy it again"
        ) from None
    if syntax.is_compressed and syntax.is_encapsulated:
        try:
            decodable = get_decoder(syntax).is_available
        except NotImplementedError:
            decodable = False
        if not decodable:
            raise ItemError(path, syntax.name, "an installed decoder", _DECODERS, "TransferSyntaxUID")
    try:
        with quiet():
            pixels: NDArray[Any] = dataset.pixel_array
    except Exception as err:  # noqa: BLE001 - every decoder raises its own kinds
        found = f"pixel data cut or damaged ({type(err).__name__})"
        raise ItemError(path, found, "whole pixel data", "copy or export it again", "PixelData") from None
    if (
        pixels.ndim == 2
        and int(number_of(dataset, "NumberOfFrames") or 0) == 1
        and "PerFrameFunctionalGroupsSequence" in dataset
    ):
        pixels = pixels[None]
    return pixels
