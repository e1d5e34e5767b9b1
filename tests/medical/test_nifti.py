"""NIfTI in and out: values, scaling, byte order, form codes and affines as in the file; anything hostile refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medical.nifti import (
    axcodes,
    irregular,
    is_nifti,
    offset_mm,
    read_header,
    read_volume,
    reorient,
    stem,
    write_float,
    write_labels,
)
from shared.errors import ItemError
from tests.samples import LPS, SHAPE, head, nifti_bytes, write_nifti

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.9, -0.9, 3.0]), [12.5, -31.25, 7.0]
)


def ramp(dtype: str = "int16", shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
def test_values_and_affine_of_every_flavour(tmp_path: Path, name: str, order: str, version: int) -> None:
    path = tmp_path / name
    content = nifti_bytes(ramp(), OBLIQUE, order=order, version=version)
    path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    volume = read_volume(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, ramp("float32"))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(volume.zooms, (0.9, 0.9, 3.0), rtol=1e-5)
    assert volume.warnings == ()


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "int64", "uint64"]
)
def test_labels_keep_their_integers(tmp_path: Path, dtype: str) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", ramp(dtype)), labels=True)
    assert volume.data.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.data, ramp(dtype))


def test_scaling_is_applied_and_a_bad_one_is_named(tmp_path: Path) -> None:
    scaled = read_volume(write_nifti(tmp_path / "a.nii", ramp(), fields={"scl_slope": 0.5, "scl_inter": -3}))
    np.testing.assert_allclose(scaled.data, ramp() * 0.5 - 3)
    none = read_volume(write_nifti(tmp_path / "b.nii", ramp(), fields={"scl_slope": 0}))
    np.testing.assert_array_equal(none.data, ramp())
    assert none.warnings == ()
    for version in (1, 2):
        odd = read_volume(
            write_nifti(tmp_path / "c.nii", ramp(), version=version, fields={"scl_slope": np.inf})
        )
        np.testing.assert_array_equal(odd.data, ramp())
        assert any("scl_slope inf" in text for text in odd.warnings)


def test_form_codes_decide_and_disagreement_is_said(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), LPS)
    image.set_sform(OBLIQUE, 2)
    image.set_qform(LPS, 1)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert any("sform and qform differ" in text for text in volume.warnings)
    unset = read_volume(write_nifti(tmp_path / "b.nii", ramp(), codes=(0, 0)))
    assert any("neither sform nor qform" in text for text in unset.warnings)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 1), (0, 0)])
@pytest.mark.parametrize("affine", [LPS, OBLIQUE], ids=["lps", "oblique"])
def test_round_trip_keeps_codes_affine_units_and_writes_uint8(
    tmp_path: Path, codes: tuple[int, int], affine: np.ndarray
) -> None:
    """Acceptance fact 16: LPS affine difference 0.0, oblique below 1e-6 mm, codes kept, dtype uint8."""
    like = read_volume(
        write_nifti(tmp_path / "in.nii.gz", ramp(), affine, codes=codes, fields={"xyzt_units": 10})
    )
    labels = (ramp() % 5).astype(np.int64)
    write_labels(tmp_path / "out.nii.gz", labels, like)
    out = nib.load(tmp_path / "out.nii.gz")
    assert out.shape == (5, 6, 7)
    assert out.header.get_data_dtype() == np.uint8
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == codes
    assert out.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(np.asarray(out.dataobj), labels)
    tolerance = 0.0 if affine is LPS or codes[0] else 1e-5
    if codes != (0, 0):
        np.testing.assert_allclose(out.affine, like.affine, atol=tolerance, rtol=0)
    write_float(tmp_path / "p.nii", np.full((5, 6, 7), 0.25, np.float64), like)
    assert read_volume(tmp_path / "p.nii").data[2, 2, 2] == 0.25


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    like = read_volume(write_nifti(tmp_path / "in.nii.gz", ramp()))
    for name in ("one.nii.gz", "two.nii.gz"):
        write_labels(tmp_path / name, ramp("uint8") % 3, like)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="grid"):
        write_labels(tmp_path / "three.nii.gz", np.zeros((5, 6, 8)), like)
    assert not (tmp_path / "three.nii.gz").exists()


def test_dimensions(tmp_path: Path) -> None:
    assert read_volume(write_nifti(tmp_path / "a.nii", ramp(shape=(4, 5, 6, 1)))).data.shape == (4, 5, 6)
    four = write_nifti(tmp_path / "b.nii", ramp(shape=(4, 5, 6, 2)))
    assert read_volume(four, dims=4).data.shape == (4, 5, 6, 2)
    with pytest.raises(ItemError, match=r"b\.nii:dim: 4-D \(4, 5, 6, 2\); 3-D"):
        read_volume(four)
    with pytest.raises(ItemError, match=r"2-D"):
        read_volume(write_nifti(tmp_path / "c.nii", ramp(shape=(4, 5))))


def test_members_and_padding_of_gzip_are_read(tmp_path: Path) -> None:
    content = nifti_bytes(ramp())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + bytes(3) + gzip.compress(content[400:]) + bytes(512))
    np.testing.assert_array_equal(read_volume(path).data, ramp())


def test_reorient_only_flips_and_permutes(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii", ramp()))
    ras = np.eye(4)
    data, affine = reorient(volume.data, volume.affine, ras)
    assert (axcodes(volume.affine), axcodes(affine)) == ("LPS", "RAS")
    np.testing.assert_array_equal(data, volume.data[::-1, ::-1])
    back, again = reorient(data, affine, volume.affine)
    np.testing.assert_array_equal(back, volume.data)
    np.testing.assert_allclose(again, volume.affine)


def test_offset_is_the_largest_at_the_corners() -> None:
    moved = LPS.copy()
    moved[:3, 3] += (5, 0, -2)
    np.testing.assert_allclose(offset_mm(LPS, moved, SHAPE), (5, 0, 2))
    stretched = LPS @ np.diag([1.01, 1, 1, 1])
    np.testing.assert_allclose(offset_mm(LPS, stretched, (101, 4, 4)), (1, 0, 0), atol=1e-9)


def test_names(tmp_path: Path) -> None:
    assert is_nifti(Path("x.NII.gz")) and is_nifti(Path("x.nii")) and not is_nifti(Path("x.gz"))
    assert (stem(Path("a.b.nii.gz")), stem(Path("a.b.nii"))) == ("a.b", "a.b")
    assert irregular(tmp_path) == "a folder"
    assert irregular(tmp_path / "none") == "No such file or directory"
    assert irregular(Path("a\0b")) is not None


def test_header_is_read_without_the_voxels(tmp_path: Path) -> None:
    """A cut file still gives its header: `check` can judge thousands of headers before any decoding."""
    path = write_nifti(tmp_path / "a.nii.gz", head((64, 64, 64))[0]["t1"])
    path.write_bytes(path.read_bytes()[:6000])
    assert list(read_header(path)["dim"][:4]) == [3, 64, 64, 64]
    with pytest.raises(ItemError, match="truncated gzip stream"):
        read_volume(path)


PLAIN = nifti_bytes(ramp("float32", (3, 4, 5)), OBLIQUE)
PACKED = gzip.compress(PLAIN, mtime=0)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(1, 255)), min_size=1, max_size=6), st.booleans())
def test_flipped_header_bytes_read_or_raise_item_error(
    tmp_path: Path, flips: list[tuple[int, int]], labels: bool
) -> None:
    content = bytearray(PLAIN)
    for at, mask in flips:
        content[at] ^= mask
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    try:
        volume = read_volume(path, labels=labels, max_bytes=2**24)
    except ItemError as err:
        assert str(path) in str(err) and "\n" not in str(err)
    else:
        assert volume.data.ndim == 3 and np.isfinite(volume.affine).all()
        write_labels(tmp_path / "out.nii", np.ones(volume.data.shape), volume)
        again = read_volume(tmp_path / "out.nii", max_bytes=2**24)
        np.testing.assert_allclose(
            again.affine, volume.affine, rtol=1e-3, atol=1e-3 * np.abs(volume.affine).max()
        )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(1, 255)), max_size=4), st.integers(0, 400)
)
def test_damaged_gzip_reads_the_same_or_raises_item_error(
    tmp_path: Path, flips: list[tuple[int, int]], lost: int
) -> None:
    content = bytearray(PACKED)
    for at, mask in flips:
        content[at] ^= mask
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content[: len(content) - lost if lost else None])
    try:
        volume = read_volume(path, max_bytes=2**24)
    except ItemError as err:
        assert str(path) in str(err)
    else:  # only bytes without meaning (time stamp, name of the system) may change unnoticed
        np.testing.assert_array_equal(volume.data, ramp("float32", (3, 4, 5)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=800))
def test_any_bytes_raise_item_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ItemError):
        read_volume(path)
