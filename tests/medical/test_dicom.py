"""DICOM studies: recognised, stacked as MONAI does, refused with position and mm, and silent about the patient."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from medical.brats_seg.cases import read_case
from medical.brats_seg.config import BratsConfig, BratsPredictConfig
from medical.brats_seg.layouts import discover
from medical.dicom import read_study
from medical.dicom.rules import Traits, modality_of
from medical.nifti import read_volume, write_labels
from shared.errors import ItemError

WANTED = ("flair", "t1ce", "t1", "t2")
TILTED = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)  # rows and columns turned by 16° within the axial plane
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
NAME, ID = "Doe^Jane^Quincy", "PID-4711"


# ---------------------------------------------------------------- builders


def image(pixels: NDArray[np.uint16], **tags: Any) -> FileDataset:
    """One classic MR image of `pixels` (rows, columns)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    out.SOPClassUID, out.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    out.Modality, out.PatientName, out.PatientID = "MR", NAME, ID
    out.Rows, out.Columns = pixels.shape
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.BitsAllocated = out.BitsStored = 16
    out.HighBit, out.PixelRepresentation = 15, 0
    out.SliceThickness = 99  # nonsense on purpose: positions count
    out.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(out, name, value)
    return out


def voxels(columns: int = 12, rows: int = 10, count: int = 6, seed: int = 0) -> NDArray[np.uint16]:
    """(columns, rows, count): a smooth blob on zero, unlike in every voxel."""
    rng = np.random.default_rng(seed)
    out = rng.integers(1, 4000, (columns, rows, count)).astype(np.uint16)
    out[:2] = 0
    out[:, :2] = 0
    return out


class Writer:
    """Writes the series of one study; every file gets a name that says nothing about its order."""

    def __init__(self, root: Path) -> None:
        self.root, self.study, self.frame, self.number = root, generate_uid(), generate_uid(), 0

    def series(
        self,
        folder: str,
        description: str,
        data: NDArray[np.uint16] | None = None,
        *,
        spacing: tuple[float, float] = (0.9, 1.1),
        step: float = 1.5,
        orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
        origin: Sequence[float] = (-20.0, -30.0, 5.0),
        edit: Callable[[list[FileDataset]], None] = lambda images: None,
        **tags: Any,
    ) -> Path:
        """`spacing`: between rows, between columns. `edit` may change, drop or add images before they are written."""
        data = voxels() if data is None else data
        self.number += 1
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        right, down = np.array(orientation[:3]), np.array(orientation[3:])
        common = {
            "StudyInstanceUID": self.study,
            "SeriesInstanceUID": generate_uid(),
            "FrameOfReferenceUID": self.frame,
            "SeriesNumber": self.number,
            "SeriesDescription": description,
            "ImageOrientationPatient": list(map(float, orientation)),
            "PixelSpacing": list(spacing),
            **tags,
        }
        images = []
        for index in range(data.shape[2]):
            at = np.array(origin) + index * step * np.cross(right, down)
            images.append(
                image(
                    data[:, :, index].T,
                    ImagePositionPatient=[round(float(v), 6) for v in at],
                    InstanceNumber=index + 1,
                    **common,
                )
            )
        edit(images)
        for index, one in enumerate(images):
            shuffled = hashlib.md5(f"{index} {self.number} {self.study}".encode()).hexdigest()[:8]
            one.save_as(place / f"im{shuffled}.dcm", enforce_file_format=True)
        return place


def study(root: Path, folders: bool = True, **kwargs: Any) -> Writer:
    writer = Writer(root)
    texts = {"flair": "AX T2 FLAIR", "t1ce": "AX T1 POST GD", "t1": "AX T1 PRE", "t2": "AX T2 TSE"}
    for seed, (name, text) in enumerate(texts.items()):
        writer.series(name if folders else "", text, voxels(seed=seed), **kwargs)
    return writer


def refusal(source: Path | Sequence[Path], wanted: Sequence[str] = WANTED, **kwargs: Any) -> str:
    with pytest.raises(ItemError) as caught:
        read_study(source, wanted, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    for secret in (*NAME.split("^"), ID):
        assert secret.lower() not in text.lower()
    return text


def only(series: Path) -> tuple[Path, tuple[str, ...]]:
    return series, ("t1",)


# ---------------------------------------------------------------- stacking


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), TILTED, SAGITTAL], ids=["axial", "oblique", "sagittal"]
)
def test_voxels_and_affine_are_those_of_monai(tmp_path: Path, orientation: Sequence[float]) -> None:
    from monai.data import PydicomReader

    data = voxels()
    folder = Writer(tmp_path).series(
        "s", "t1", data, orientation=orientation, RescaleSlope=2, RescaleIntercept=-7
    )
    volume = read_study(folder, ("t1",))["t1"]
    np.testing.assert_array_equal(volume.data, data.astype(np.float32) * 2 - 7)
    reader = PydicomReader()
    theirs, meta = reader.get_data(reader.read(str(folder)))
    # MONAI may count slices from the other end; compare where each voxel lies, not its index.
    ours = {
        tuple(np.round(volume.affine @ [i, j, k, 1], 3)[:3]): volume.data[i, j, k]
        for i, j, k in np.ndindex(volume.data.shape)
    }
    for index in np.ndindex(theirs.shape):
        place = tuple(np.round(np.asarray(meta["affine"]) @ [*index, 1], 3)[:3])
        assert ours[place] == theirs[index]
    assert len(ours) == theirs.size


def test_affine_by_hand(tmp_path: Path) -> None:
    folder = Writer(tmp_path).series("s", "t1", step=1.5, spacing=(0.9, 1.1), origin=(-20, -30, 5))
    volume = read_study(folder, ("t1",))["t1"]
    # Columns are 1.1 mm apart along +x (LPS) = −x (RAS); rows 0.9 mm; slices 1.5 mm by position, not 99 by thickness.
    expected = [[-1.1, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 1.5, 5], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)
    assert volume.zooms == pytest.approx((1.1, 0.9, 1.5))


def test_slope_may_differ_between_slices(tmp_path: Path) -> None:
    def edit(images: list[FileDataset]) -> None:
        for index, one in enumerate(images):
            one.RescaleSlope, one.RescaleIntercept = index + 1, 10 * index

    data = voxels()
    folder = Writer(tmp_path).series("s", "t1", data, edit=edit)
    steps = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(read_study(folder, ("t1",))["t1"].data, data * (steps + 1) + 10 * steps)


def test_rle_is_decoded(tmp_path: Path) -> None:
    data = voxels()
    folder = Writer(tmp_path).series(
        "s", "t1", data, edit=lambda images: [one.compress(RLELossless) for one in images] and None
    )
    assert pydicom.dcmread(next(folder.iterdir())).file_meta.TransferSyntaxUID == RLELossless
    np.testing.assert_array_equal(read_study(folder, ("t1",))["t1"].data, data.astype(np.float32))


def test_missing_decoder_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pydicom.pixels

    class Absent:
        is_available = False

    folder = Writer(tmp_path).series(
        "s", "t1", edit=lambda images: [one.compress(RLELossless) for one in images] and None
    )
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = JPEGLSLossless
        one.save_as(path)
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda syntax: Absent())
    text = refusal(*only(folder))
    assert "JPEG-LS Lossless" in text and "pylibjpeg" in text and "gdcmconv --raw" in text


def enhanced(path: Path, data: NDArray[np.uint16], order: Sequence[int]) -> None:
    """`data` (columns, rows, frames) as one enhanced MR file, its frames in `order`."""
    frames = np.stack([data[:, :, index].T for index in order])
    out = image(
        frames[0],
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        SeriesDescription="t1 3d",
    )
    out.SOPClassUID = out.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    out.NumberOfFrames, out.PixelData = len(frames), frames.astype("<u2").tobytes()
    measures, turn, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, turn.ImageOrientationPatient = [0.9, 1.1], [1.0, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept = 3, 1
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PlaneOrientationSequence = DicomSequence([turn])
    shared.PixelValueTransformationSequence = DicomSequence([values])
    out.SharedFunctionalGroupsSequence = DicomSequence([shared])
    out.PerFrameFunctionalGroupsSequence = DicomSequence()
    for index in order:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [0.0, 0.0, 2.0 * index]
        frame.PlanePositionSequence = DicomSequence([place])
        out.PerFrameFunctionalGroupsSequence.append(frame)
    out.save_as(path, enforce_file_format=True)


def test_enhanced_mr_is_read_frame_by_frame(tmp_path: Path) -> None:
    data = voxels()
    enhanced(tmp_path / "e.dcm", data, [3, 0, 5, 1, 4, 2])
    volume = read_study(tmp_path, ("t1",))["t1"]
    np.testing.assert_array_equal(volume.data, data.astype(np.float32) * 3 + 1)
    assert volume.zooms == pytest.approx((1.1, 0.9, 2.0))
    assert "(6 images)" in volume.origin


def test_frames_without_geometry_are_refused(tmp_path: Path) -> None:
    enhanced(tmp_path / "e.dcm", voxels(), range(6))
    one = pydicom.dcmread(tmp_path / "e.dcm")
    del one.PerFrameFunctionalGroupsSequence
    one.save_as(tmp_path / "e.dcm")
    assert "several frames without PerFrameFunctionalGroupsSequence" in refusal(*only(tmp_path))


# ---------------------------------------------------------------- rows 17 to 20 of the list of bad inputs


@pytest.mark.parametrize(
    "content", [b"patient notes\n" * 50, b"", b"x" * 200], ids=["text", "empty", "bytes"]
)
def test_not_dicom(tmp_path: Path, content: bytes) -> None:
    folder = Writer(tmp_path).series("s", "t1")
    (folder / "im00.dcm").write_bytes(content)
    text = refusal(*only(folder))
    assert "im00.dcm" in text and ("not DICOM" if content else "empty file") in text


def _raw(folder: Path) -> None:
    """A data set without preamble and file meta: only `force` would open it, and guess its syntax."""
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[132:])


def _drop(index: int) -> Callable[[list[FileDataset]], None]:
    return lambda images: images.pop(index) and None


def _move(index: int, by: Sequence[float]) -> Callable[[list[FileDataset]], None]:
    def edit(images: list[FileDataset]) -> None:
        for one in images[index:]:
            one.ImagePositionPatient = [float(a) + b for a, b in zip(one.ImagePositionPatient, by)]

    return edit


def _spread(images: list[FileDataset]) -> None:
    for index, one in enumerate(images):
        one.ImagePositionPatient = [0, 0, index * 1.5 if index < 3 else 3 + (index - 2) * 2.5]


def _shear(images: list[FileDataset]) -> None:
    for index, one in enumerate(images):
        one.ImagePositionPatient = [0, index * 0.5, index * 1.5]


def _aside(images: list[FileDataset]) -> None:
    images[2].ImagePositionPatient = [-18.0, -30.0, 8.0]


def _double(images: list[FileDataset]) -> None:
    images[4].ImagePositionPatient = images[1].ImagePositionPatient


def _turned(images: list[FileDataset]) -> None:
    images[3].ImageOrientationPatient = [float(v) for v in SAGITTAL]


def _smaller(images: list[FileDataset]) -> None:
    images[3].Rows = 9


def _coarser(images: list[FileDataset]) -> None:
    images[3].PixelSpacing = [1.0, 1.0]


def _unplaced(images: list[FileDataset]) -> None:
    del images[2].ImagePositionPatient


def _cut(images: list[FileDataset]) -> None:
    images[2].PixelData = images[2].PixelData[:100]


def _colour(images: list[FileDataset]) -> None:
    images[0].PhotometricInterpretation = "MONOCHROME1"


BAD_SERIES = [
    ("missing-slice", _drop(2), ["gap of 3.00 mm after 6.50 mm", "1 missing at 1.50 mm"]),
    ("gap", _move(4, (0, 0, 4.5)), ["gap of 6.00 mm after 9.50 mm", "3 missing"]),
    ("two-spacings", _spread, ["two spacings, 1.50 mm and 2.50 mm from 3.00 mm on"]),
    ("tilt", _shear, ["sideways by 2.50 mm", "tilt 18.4°", "0.00 to 7.50 mm"]),
    ("slice-aside", _aside, ["slice at 8.00 mm", "2.00 mm sideways"]),
    ("duplicate", _double, ["two images at 6.50 mm", ".dcm and im"]),
    ("orientations", _turned, ["is turned against the others", "9.50) mm"]),
    ("sizes", _smaller, ["12×9 pixels, others 12×10"]),
    ("pixel-spacings", _coarser, ["1×1 mm, others 1.1×0.9 mm"]),
    ("no-position", _unplaced, ["ImagePositionPatient: absent"]),
    ("cut-pixels", _cut, ["PixelData: pixel data cut or damaged"]),
    ("inverted", _colour, ["MONOCHROME1; MONOCHROME2"]),
    ("one-slice", lambda images: images.__delitem__(slice(1, None)), ["1 image; a volume of at least 2"]),
]


@pytest.mark.parametrize(
    ("edit", "said"), [row[1:] for row in BAD_SERIES], ids=[f"dicom-19-{row[0]}" for row in BAD_SERIES]
)
def test_bad_series(tmp_path: Path, edit: Callable[[list[FileDataset]], None], said: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Writer(tmp_path).series("s", "t1 Jane Doe", edit=edit)
        text = refusal(*only(folder))
    for part in said:
        assert part in text, text
    assert "s" in text.split(":")[0]


def test_dicom_17_text(tmp_path: Path) -> None:
    writer = study(tmp_path)
    (tmp_path / "t2" / "slice.dcm").write_text("export failed")
    (tmp_path / "t2" / "README.txt").write_text("passed over")
    (case,) = discover([tmp_path])
    with pytest.raises(ItemError, match=r"slice\.dcm: not DICOM \(no DICM mark\); a DICOM file"):
        read_case(case, BratsConfig())
    assert writer.number == 4


def test_dicom_18_never_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path)
    _raw(tmp_path / "t1")
    asked: list[Any] = []
    original = pydicom.dcmread
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *args, **kw: asked.append(kw.get("force", False)) or original(*args, **kw)
    )
    assert "not DICOM (no DICM mark)" in refusal(tmp_path)
    assert asked and not any(asked)


def test_dicom_19_foreign_slice(tmp_path: Path) -> None:
    def edit(images: list[FileDataset]) -> None:
        images[3].SeriesInstanceUID = generate_uid()

    writer = study(tmp_path)
    writer.series("t1x", "AX T1 PRE", edit=edit)
    text = refusal(tmp_path)
    assert "3 series fit t1" in text and "(5 images)" in text and "(1 images)" in text


def test_dicom_19_two_studies_in_one_folder(tmp_path: Path) -> None:
    study(tmp_path, folders=False)
    study(tmp_path, folders=False)
    assert "2 studies in one folder" in refusal(tmp_path)


def test_dicom_20_patient_stays_unnamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "DOE_JANE PID-4711" / "visit"
    writer = Writer(root)
    for seed, text in enumerate(("T2 FLAIR Jane", "T1 gd doe", "T1 native", "T2 PID-4711")):
        step = 1.5 if seed else 2.0
        writer.series(f"Jane{seed}", text, voxels(seed=seed), step=step)
    (case,) = discover([tmp_path])
    read = read_case(case, BratsConfig())
    shown = repr(
        [case.id, case.patient, case.matched, read.id, read.matched, read.warnings, str(read.reference.path)]
    )
    writer.series("Jane9", "T1 native again")
    (case,) = discover([tmp_path])
    with pytest.raises(ItemError) as caught:
        read_case(case, BratsConfig())
    shown += (
        str(caught.value)
        + caplog.text
        + repr(pydicom.dcmread(next((root / "Jane0").iterdir())).SeriesInstanceUID)
    )
    for secret in ("doe", "jane", "quincy", "4711"):
        assert secret not in shown.lower(), shown
    assert case.id == f"study-{hashlib.sha256(writer.study.encode()).hexdigest()[:12]}"
    assert case.patient == f"patient-{hashlib.sha256(ID.encode()).hexdigest()[:12]}"
    assert any("interpolated linearly" in text for text in read.warnings)


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("traits", "wanted"),
    [
        (Traits("t2_tirm_tra_dark-fluid"), "flair"),
        (Traits("sag 3d flair post"), "flair"),
        (Traits("ax t1 flair"), "t1"),
        (Traits("t2_tirm_tra", ti=2500, te=120, tr=9000), "flair"),
        (Traits("ax t1 +c"), "t1ce"),
        (Traits("t1_mprage_km"), "t1ce"),
        (Traits("ax t1 c+ fs"), "t1ce"),
        (Traits("t1ce"), "t1ce"),
        (Traits("t1 post op"), "t1"),
        (Traits("mprage", agent="Gadovist 7.5 ml"), "t1ce"),
        (Traits("mprage", agent="NONE"), "t1"),
        (Traits("t1 pre contrast", agent="Gadovist"), "t1"),
        (Traits("t1 without contrast"), "t1"),
        (Traits("axial t1 se native"), "t1"),
        (Traits("t2w_tse"), "t2"),
        (Traits("t2* gre"), None),
        (Traits("swi t2"), None),
        (Traits("dwi adc"), None),
        (Traits("localizer t1"), None),
        (Traits("t1 t2 mapping"), None),
        (Traits("ax t1 post", types=("DERIVED", "SECONDARY", "SUBTRACT")), None),
        (Traits("ax series", te=95, tr=5000), "t2"),
        (Traits("ax series", te=95, tr=9000, ti=2500), "flair"),
        (Traits("ax series", te=10, tr=500), "t1"),
        (Traits("ax series", te=10, tr=500, agent="Dotarem"), "t1ce"),
        (Traits("3d", te=3, tr=2000, ti=900, gradient_echo=True), "t1"),
        (Traits("ax pd", te=15, tr=3000), None),
        (Traits(""), None),
    ],
    ids=lambda value: (value.words or "nothing") if isinstance(value, Traits) else str(value),
)
def test_modality_rules(traits: Traits, wanted: str | None) -> None:
    found, reason = modality_of(traits)
    assert found == wanted, reason
    assert reason


def test_missing_series_names_what_is_there(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.series("a", "AX FLAIR")
    writer.series("b", "AX T2")
    writer.series("c", "AX DWI b1000")
    text = refusal(tmp_path)
    for part in (
        "no series for t1ce, t1",
        'series 1 "AX FLAIR" (6 images)',
        'series 3 "AX DWI b1000"',
        "dcm2niix",
    ):
        assert part in text


def test_protocol_name_counts_only_where_the_description_is_silent(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for seed, text in enumerate(("flair", "t1 gd", "t1")):
        writer.series(text, text, voxels(seed=seed), ProtocolName="BRAIN T2 WITHOUT CONTRAST")
    writer.series("se", "se axial", voxels(seed=3), ProtocolName="T2 TSE")
    assert {m: v.origin.split('"')[1] for m, v in read_study(tmp_path, WANTED).items()} == {
        "flair": "flair",
        "t1ce": "t1 gd",
        "t1": "t1",
        "t2": "se axial",
    }


def test_missing_series_may_be_filled(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.series("a", "AX FLAIR", voxels(seed=1))
    writer.series("b", "AX T2", voxels(seed=2))
    (case,) = discover([tmp_path])
    read = read_case(case, BratsConfig(predict=BratsPredictConfig(allow_missing=True)))
    assert [bool(channel.any()) for channel in read.images] == [True, False, False, True]
    assert "t1ce missing; zeros used" in read.warnings


def test_other_objects_are_passed_over(tmp_path: Path) -> None:
    writer = study(tmp_path)
    writer.series("sr", "T1 report", Modality="SR")
    writer.series("loc", "localizer T1")
    table = image(voxels()[:, :, 0])
    table.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    for place in (tmp_path, tmp_path / "t1"):
        table.save_as(place / "A-DICOMDIR")
    assert len(discover([tmp_path])) == 1
    assert set(read_study(tmp_path, WANTED)) == set(WANTED)


def test_limit_is_checked_before_pixels_are_read(tmp_path: Path) -> None:
    study(tmp_path)
    assert "raise -s max_bytes=" in refusal(tmp_path, max_bytes=1000)


# ---------------------------------------------------------------- end to end


@pytest.mark.parametrize("folders", [True, False], ids=["a-folder-a-series", "all-mixed"])
def test_a_study_is_one_case(tmp_path: Path, folders: bool) -> None:
    study(tmp_path / "one", folders)
    study(tmp_path / "two", folders)
    cases = discover([tmp_path])
    assert len(cases) == 2 and all(case.layout == "dicom" and case.fault is None for case in cases)
    for case in cases:
        read = read_case(case, BratsConfig())
        for seed, channel in enumerate(read.images):
            np.testing.assert_array_equal(channel, voxels(seed=seed))
        assert read.matched["t1ce"] == 'series 2 "AX T1 POST GD" (6 images): says t1 and post'
        write_labels(tmp_path / "seg.nii.gz", (read.images[0] > 0).astype(np.uint8), read.reference)
        written = read_volume(tmp_path / "seg.nii.gz", labels=True)
        np.testing.assert_allclose(written.affine, read.affine, atol=1e-6)
        assert not written.warnings
        assert written.header.get_sform(coded=True)[1] == written.header.get_qform(coded=True)[1] == 1


def test_series_folders_of_two_studies_side_by_side(tmp_path: Path) -> None:
    one, two = Writer(tmp_path), Writer(tmp_path)
    for seed, text in enumerate(("flair", "t1 gd", "t1", "t2")):
        one.series(f"{text} 1", text, voxels(seed=seed))
        two.series(f"{text} 2", text, voxels(seed=seed + 4))
    cases = discover([tmp_path])
    assert {case.id for case in cases} == {
        f"study-{hashlib.sha256(w.study.encode()).hexdigest()[:12]}" for w in (one, two)
    }
    assert sorted(int(read_case(case, BratsConfig()).images[0].sum()) for case in cases) == sorted(
        int(voxels(seed=seed).sum()) for seed in (0, 4)
    )


def test_own_mask_beside_the_images_does_not_hide_them(tmp_path: Path) -> None:
    study(tmp_path, folders=False)
    volume = read_study(tmp_path, WANTED)["t1"]
    write_labels(tmp_path / "study_seg.nii.gz", np.zeros(volume.data.shape, np.uint8), volume)
    assert [case.layout for case in discover([tmp_path])] == ["dicom"]


# ---------------------------------------------------------------- grids


def ramp(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """A field that is linear in mm, at the voxels of a grid."""
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    return 1000 + at @ np.array([3.0, -5.0, 7.0])


def test_other_grid_in_one_frame_is_interpolated_linearly(tmp_path: Path) -> None:
    from scipy.ndimage import binary_erosion

    writer = Writer(tmp_path)
    grids = {
        "flair": {"step": 2.5, "spacing": (1.3, 1.2), "origin": (-22, -33, 3)},
        "t1 gd": {"step": 1.5, "spacing": (0.9, 1.1), "origin": (-20, -30, 5), "orientation": TILTED},
        "t1": {"step": 1.5, "spacing": (0.9, 1.1), "origin": (-20, -30, 5), "orientation": TILTED},
        "t2": {"step": 2.0, "spacing": (2.0, 2.0), "origin": (-30, -40, 0)},
    }
    slope = 1 / 16
    for text, grid in grids.items():
        turn = np.array(grid.get("orientation", (1, 0, 0, 0, 1, 0)), float)
        affine = np.eye(4)
        affine[:3, 0] = turn[:3] * grid["spacing"][1]
        affine[:3, 1] = turn[3:] * grid["spacing"][0]
        affine[:3, 2] = np.cross(turn[:3], turn[3:]) * grid["step"]
        affine[:3, 3] = grid["origin"]
        shape = (40, 36, 20)
        data = np.round(ramp(np.diag([-1.0, -1, 1, 1]) @ affine, shape) / slope).astype(np.uint16)
        writer.series(text, text, data, RescaleSlope=slope, RescaleIntercept=0, **grid)
    volumes = read_study(tmp_path, WANTED)
    like = volumes["t1ce"]
    expected = ramp(like.affine, like.data.shape)
    for name in WANTED:
        volume = volumes[name]
        np.testing.assert_array_equal(volume.affine, like.affine)
        assert volume.data.shape == like.data.shape
        inside = volume.data != 0
        assert inside.mean() > 0.5
        core = binary_erosion(inside, iterations=2)
        assert np.abs(volume.data - expected)[core].max() < slope
    assert "interpolated linearly to the grid of t1ce" in volumes["flair"].warnings[0]
    assert not volumes["t1"].warnings


def test_outside_of_a_resampled_series_is_zero(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.series("a", "t1 gd", voxels(count=12), origin=(0, 0, 0), step=1.0)
    writer.series("b", "flair", np.full((12, 10, 3), 500, np.uint16), origin=(0, 0, 2.0), step=2.0)
    flair = read_study(tmp_path, ("flair", "t1ce"))["flair"]
    # Slices at 2, 4 and 6 mm, each 2 mm thick: 1 to 7 mm is covered, the rest is not.
    np.testing.assert_array_equal((flair.data[5, 5] > 0).nonzero()[0], range(1, 8))
    assert set(np.unique(flair.data)) == {0.0, 500.0}


def test_other_frame_of_reference_must_be_registered_first(tmp_path: Path) -> None:
    writer = study(tmp_path)
    for path in (tmp_path / "t2").iterdir():
        path.unlink()
    writer.series("t2", "AX T2", step=2.0, FrameOfReferenceUID=generate_uid())
    text = refusal(tmp_path)
    assert "t2" in text and "different frames of reference" in text and "register them first" in text


def test_other_frame_on_the_same_grid_is_taken_with_a_warning(tmp_path: Path) -> None:
    writer = study(tmp_path)
    for path in (tmp_path / "t2").iterdir():
        path.unlink()
    writer.series("t2", "AX T2", FrameOfReferenceUID=generate_uid())
    assert read_study(tmp_path, WANTED)["t2"].warnings == (
        "frame of reference differs from t1ce's, but not the grid",
    )
