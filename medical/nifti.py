"""NIfTI volumes, read with suspicion and written back on the grid they came from.

The header is judged before any voxel is decoded; gzip streams are read to their end so that the checksum counts.
Every refusal is an `ItemError` naming the file and the header field.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import ItemError
from shared.io.atomic import atomic_path

MAX_BYTES = 8 * 2**30
"""Largest decoded volume accepted by default."""
SUFFIXES = (".nii", ".nii.gz")
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 20
_RGB = (128, 2304)


@dataclass(frozen=True)
class Volume:
    """One 3-D (or 4-D) image. `data` (D, H, W[, C]) is scaled float32, or the stored integers for labels."""

    path: Path
    data: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any
    """The nibabel header, kept so that an output repeats its codes and units."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def zooms(self) -> tuple[float, float, float]:
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    name = path.name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else name[: -len(".nii")]


# ---------------------------------------------------------------- reading


def read_header(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The checked header of a NIfTI file; reads 348 bytes or so. Raises `ItemError`."""
    import nibabel as nib

    raw = _head(path)
    kind: type[Any] = nib.Nifti1Header
    if int.from_bytes(raw[:4], "little") == 540 or int.from_bytes(raw[:4], "big") == 540:
        kind = nib.Nifti2Header
    elif 348 not in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")):
        raise ItemError(
            path, "not a NIfTI file", "a NIfTI header", "convert it (dcm2niix, nibabel)", "sizeof_hdr"
        )
    size = 540 if kind is nib.Nifti2Header else 348
    if len(raw) < size:
        raise ItemError(path, f"truncated: {len(raw)} bytes", "a whole NIfTI file", "copy it again")
    header = kind(raw[:size], check=False)
    _check_header(path, header, max_bytes)
    return header


def _head(path: Path) -> bytes:
    """The first 540 bytes, decompressed. Special files are refused before they can block."""
    try:
        mode = path.stat().st_mode
    except OSError as err:
        raise ItemError(path, err.strerror or "unreadable", "a NIfTI file", "check the path") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ItemError(path, what, "a NIfTI file", "give the file itself")
    try:
        with open(path, "rb") as file:
            start = file.read(540)
        if not start:
            raise ItemError(path, "empty file", "a NIfTI file", "copy it again")
        if not start.startswith(_GZIP_MAGIC):
            return start
        with gzip.open(path) as stream:
            return stream.read(540)
    except EOFError:
        raise ItemError(path, "truncated gzip stream", "a whole file", "copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as err:
        raise ItemError(path, f"damaged gzip stream ({err})", "a whole file", "copy it again") from None
    except OSError as err:
        raise ItemError(path, err.strerror or str(err), "a readable file", "check its permissions") from None


def _check_header(path: Path, header: Any, max_bytes: int) -> None:
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise ItemError(path, f"{dims[0]} dimensions", "3 or 4", "repair the header", "dim[0]")
    shape = dims[1 : 1 + dims[0]]
    for axis, length in enumerate(shape, 1):
        if length <= 0:
            raise ItemError(path, str(length), "a positive length", "repair the header", f"dim[{axis}]")
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except Exception:  # noqa: BLE001 - nibabel raises several kinds for an unknown code
        raise ItemError(
            path, f"unknown code {code}", "a NIfTI data type", "save it again", "datatype"
        ) from None
    if code in _RGB or dtype.kind not in "iuf":
        raise ItemError(
            path, f"colour or complex data ({dtype})", "one number a voxel", "export intensities", "datatype"
        )
    needed = int(np.prod(shape, dtype=object)) * max(dtype.itemsize, 4)
    if needed > max_bytes:
        raise ItemError(
            path,
            f"{'×'.join(map(str, shape))} voxels, {needed / 2**30:.1f} GiB decoded",
            f"at most {max_bytes / 2**30:.1f} GiB",
            "raise -s max_bytes=…, or crop the volume",
            "dim",
        )
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < 0:
        raise ItemError(path, str(offset), "a finite offset", "repair the header", "vox_offset")


def read_volume(path: Path, *, dims: int = 3, labels: bool = False, max_bytes: int = MAX_BYTES) -> Volume:
    """The volume in `path`. `dims`: 3, or 4 for a file of channels; `labels` keeps integers unscaled by float32.

    Trailing axes of length 1 are dropped. Raises `ItemError`.
    """
    header = read_header(path, max_bytes)
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    while len(shape) > dims and shape[-1] == 1:
        shape.pop()
    if len(shape) != dims:
        found = f"{len(shape)}-D ({', '.join(map(str, shape))})"
        raise ItemError(path, found, f"{dims}-D", "split or merge the file", "dim")
    image, content = _decode(path)
    warnings = _scaling_warnings(image.header, content)
    affine, more = _affine(path, image)
    data = np.asarray(image.dataobj)
    data = data.reshape(shape) if labels else np.asarray(data, np.float32).reshape(shape)
    return Volume(path, data, affine, image.header.copy(), (*warnings, *more))


def _decode(path: Path) -> tuple[Any, bytes]:
    """The image over fully read, checksum-verified bytes, and its header's bytes as stored."""
    import nibabel as nib

    try:
        packed = path.read_bytes()
        content = _gunzip(path, packed) if packed.startswith(_GZIP_MAGIC) else packed
        kind: Any = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        image = kind.from_bytes(content)
        expected = int(image.header["vox_offset"]) + int(
            np.prod(image.shape, dtype=object) * image.header.get_data_dtype().itemsize
        )
    except ItemError:
        raise
    except MemoryError:
        raise ItemError(path, "not enough memory to decode it", "more memory", "crop the volume") from None
    except OSError as err:
        raise ItemError(path, err.strerror or str(err), "a readable file", "check its permissions") from None
    except Exception as err:  # noqa: BLE001 - whatever a hostile header makes the reader raise is the file's fault
        text = " ".join(str(err).split())[:120]
        raise ItemError(
            path, f"unreadable ({text or type(err).__name__})", "NIfTI", "save it again"
        ) from None
    if len(content) < expected:
        raise ItemError(path, f"truncated: {len(content):,} bytes", f"{expected:,} bytes", "copy it again")
    return image, content[:348]


def _gunzip(path: Path, packed: bytes) -> bytes:
    try:
        return gzip.decompress(packed)
    except EOFError:
        raise ItemError(path, "truncated gzip stream", "a whole file", "copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as err:
        raise ItemError(path, f"damaged gzip stream ({err})", "a whole file", "copy it again") from None


def _scaling_warnings(header: Any, raw: bytes) -> list[str]:
    # nibabel clears the slope on loading; the stored one is at byte 112 in either byte order.
    order = "<" if int.from_bytes(raw[:4], "little") in (348, 540) else ">"
    if int.from_bytes(raw[:4], "little" if order == "<" else "big") != 348:
        return []
    slope, inter = np.frombuffer(raw[112:120], f"{order}f4")
    if np.isfinite(slope) and np.isfinite(inter):
        return []
    return [f"scl_slope {slope}, scl_inter {inter}: not finite; values used unscaled"]


def _affine(path: Path, image: Any) -> tuple[NDArray[np.float64], list[str]]:
    """Voxel → mm, and warnings. Raises `ItemError` for one that cannot be inverted."""
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all():
        raise ItemError(path, "NaN or infinite affine", "a finite 4×4 matrix", "repair the header", "affine")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    if (lengths < 1e-6).any() or volume < 1e-4 * float(np.prod(lengths)):
        column = int(np.argmin(lengths))
        raise ItemError(
            path,
            f"column {column} is zero or dependent",
            "an invertible matrix",
            "repair the header",
            "affine",
        )
    warnings = []
    sform, s_code = image.header.get_sform(coded=True)
    qform, q_code = image.header.get_qform(coded=True)
    if s_code and q_code and sform is not None and qform is not None:
        apart = float(np.abs(sform - qform).max())
        if np.isfinite(apart) and apart > 1e-2:
            warnings.append(f"sform and qform differ by up to {apart:.2f}; sform used")
    if not s_code and not q_code:
        warnings.append("neither sform nor qform is set; axes and spacing guessed from pixdim")
    return affine, warnings


# ---------------------------------------------------------------- writing


def write_labels(path: Path, labels: NDArray[np.generic], like: Volume) -> None:
    """`labels` (D, H, W) as uint8 on the grid of `like`: its affine, form codes and units."""
    _write(path, np.asarray(labels, np.uint8), like)


def write_float(path: Path, data: NDArray[np.generic], like: Volume) -> None:
    """`data` (D, H, W) as float32 on the grid of `like`."""
    _write(path, np.asarray(data, np.float32), like)


def _write(path: Path, data: NDArray[Any], like: Volume) -> None:
    import nibabel as nib

    if data.shape != like.data.shape[:3]:
        raise ValueError(f"{data.shape} voxels for a grid of {like.data.shape[:3]}")
    image = nib.Nifti1Image(data, like.affine)
    try:
        image.header.set_xyzt_units(*like.header.get_xyzt_units())
    except (KeyError, AttributeError):
        image.header.set_xyzt_units("mm")
    sform, s_code = like.header.get_sform(coded=True)
    qform, q_code = like.header.get_qform(coded=True)
    if s_code or not q_code:
        image.set_sform(sform if s_code else like.affine, int(s_code))
    else:
        image.set_sform(None, 0)
    if q_code:
        image.set_qform(qform, int(q_code), strip_shears=True)
    elif s_code:
        image.set_qform(None, 0)
    with atomic_path(path) as temp:
        content = image.to_bytes()
        # No time stamp in the gzip header: equal masks are equal files.
        temp.write_bytes(
            gzip.compress(content, compresslevel=6, mtime=0) if path.name.endswith(".gz") else content
        )


# ---------------------------------------------------------------- geometry


def reorient(
    data: NDArray[Any], affine: NDArray[np.float64], like: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """`data` with its axes flipped and permuted to those of the affine `like`, and its new affine; no resampling."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

    change = ornt_transform(io_orientation(affine), io_orientation(like))
    return apply_orientation(data, change), affine @ inv_ornt_aff(change, data.shape[:3])


def axcodes(affine: NDArray[np.float64]) -> str:
    """Direction of the voxel axes, for example LPS."""
    from nibabel.orientations import aff2axcodes

    return "".join(str(code) for code in aff2axcodes(affine))


def offset_mm(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Largest distance per world axis, mm, between where the two affines put the corners of a grid of `shape`."""
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.asarray(shape[:3]) - 1
    return np.abs((corners @ one.T - corners @ other.T)[:, :3]).max(axis=0)
