"""NIfTI volumes, read with suspicion and written back on the grid they came from.

The header is judged before any voxel is decoded; gzip streams are read to their end so that the checksum counts.
Every refusal is an `ItemError` naming the file and the header field.
"""

from __future__ import annotations

import gzip
import math
import stat
import zlib
from collections.abc import Iterator
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
_BLOCK, _HEADER_BLOCK = 1 << 20, 1 << 12
_TRAILING = 16 << 20
"""Bytes tolerated after the last voxel."""
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
    origin: str = ""
    """What it was read from, where `path` does not say it (a DICOM series)."""

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
    """The checked header of a NIfTI file, values as stored; reads a few kB at most. Raises `ItemError`."""
    import nibabel as nib

    raw = b""
    for block in _blocks(path, _HEADER_BLOCK):
        raw += block
        if len(raw) >= 540:
            break
    if not raw:
        raise ItemError(path, "empty file", "a NIfTI file", "copy it again")
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    if 540 not in sizes and 348 not in sizes:
        found = f"not a NIfTI file, begins {raw[:4]!r}"
        raise ItemError(path, found, "a NIfTI header", "convert it (dcm2niix, nibabel)", "sizeof_hdr")
    kind: type[Any] = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    size = 540 if 540 in sizes else 348
    if len(raw) < size:
        raise ItemError(path, f"truncated: {len(raw)} bytes", "a whole NIfTI file", "copy it again")
    header = kind(raw[:size], check=False)
    _check_header(path, header, max_bytes)
    return header


def irregular(path: Path) -> str | None:
    """Why `path` cannot be opened as a file (absent, a folder, a pipe that would block, a link to itself), or None."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as err:
        if isinstance(err, FileNotFoundError) and path.is_symlink():
            return "a link to a file that is not there"
        return str(getattr(err, "strerror", None) or err)
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "not a regular file"


def _blocks(path: Path, size: int = _BLOCK) -> Iterator[bytes]:
    """The file's bytes, decompressed if it is a gzip stream, whose checksums are verified. Raises `ItemError`."""
    odd = irregular(path)
    if odd:
        raise ItemError(path, odd, "a NIfTI file", "give the file itself")
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            blocks = iter(lambda: file.read(size), b"")
            yield from _inflate(path, blocks, size) if packed else blocks
    except OSError as err:
        raise ItemError(path, err.strerror or str(err), "a readable file", "check its permissions") from None


def _inflate(path: Path, blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Members of a gzip stream, one after the other, in pieces of a bounded size."""
    member: Any = None
    for data in blocks:
        while data:
            if member is None:
                data = data.lstrip(b"\0")  # padding between and after members is allowed
                if not data:
                    break
                member = zlib.decompressobj(31)  # 31: gzip framing, length and CRC checked by zlib
            try:
                yield member.decompress(data, 16 * size)
            except zlib.error as err:
                reason = str(err).rpartition(": ")[2]
                found = f"damaged gzip stream ({reason})"
                raise ItemError(path, found, "an undamaged file", "copy it again") from None
            data = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    if member is not None:
        raise ItemError(path, "truncated gzip stream", "a whole file", "copy it again")


def _check_header(path: Path, header: Any, max_bytes: int) -> None:
    magic = bytes(header["magic"])[:3]
    if magic not in (b"n+1", b"n+2"):
        found = "header of a .hdr/.img pair or Analyze file" if magic[:2] in (b"ni", b"") else repr(magic)
        raise ItemError(path, found, "magic n+1 or n+2", "convert it to one .nii file", "magic")
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise ItemError(path, f"{dims[0]} dimensions", "3 or 4", "repair the header", "dim[0]")
    shape = dims[1 : 1 + dims[0]]
    for axis, length in enumerate(shape, 1):
        if length <= 0:
            raise ItemError(path, str(length), "a positive length", "repair the header", f"dim[{axis}]")
    _check_datatype(path, header)
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < header.single_vox_offset:
        wanted = f"{header.single_vox_offset} or more"
        raise ItemError(path, f"{offset:g}", wanted, "repair the header", "vox_offset")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope != 0 and not np.isfinite(inter):
        raise ItemError(path, f"{inter:g}", "a finite intercept", "repair the header", "scl_inter")
    if offset > max_bytes:
        raise ItemError(path, f"{offset:g}", f"at most {max_bytes:,}", "repair the header", "vox_offset")
    needed = _voxels(header) * max(header.get_data_dtype().itemsize, 4)
    if needed > max_bytes:
        raise ItemError(
            path,
            f"{'×'.join(map(str, shape))} voxels, {needed / 2**30:.1f} GiB decoded",
            f"at most {max_bytes / 2**30:.1f} GiB",
            "raise predict.max_bytes, or crop the volume",
            "dim",
        )


def _check_datatype(path: Path, header: Any) -> None:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except Exception:  # noqa: BLE001 - nibabel raises several kinds for an unknown code
        raise ItemError(
            path, f"unknown code {code}", "a NIfTI data type", "save it again", "datatype"
        ) from None
    if code in _RGB or dtype.kind not in "iuf" or dtype.itemsize > 8:
        found = f"colour, complex or extended data ({dtype})"
        raise ItemError(path, found, "one number a voxel", "export intensities", "datatype")


def _voxels(header: Any) -> int:
    return math.prod(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])


def read_volume(
    path: Path,
    *,
    dims: int = 3,
    labels: bool = False,
    max_bytes: int = MAX_BYTES,
    mend: str = "split or merge the file",
) -> Volume:
    """The volume in `path`. `dims`: 3, or 4 for a file of channels; `labels` keeps integers unscaled by float32.

    Trailing axes of length 1 are dropped. Raises `ItemError`; `mend` is what to do about other dimensions.
    """
    stored = read_header(path, max_bytes)
    shape = [int(n) for n in stored["dim"][1 : 1 + int(stored["dim"][0])]]
    while len(shape) > dims and shape[-1] == 1:
        shape.pop()
    if len(shape) != dims:
        found = f"{len(shape)}-D ({', '.join(map(str, shape))})"
        raise ItemError(path, found, f"{dims}-D", mend, "dim")
    try:
        image = _decode(path, stored)
        data = np.asarray(image.dataobj)
        data = data.reshape(shape) if labels else np.asarray(data, np.float32).reshape(shape)
    except MemoryError:
        raise ItemError(path, "not enough memory to decode it", "more memory", "crop the volume") from None
    affine, warnings = _affine(path, image)
    return Volume(path, data, affine, image.header.copy(), (*_scaling_warnings(stored), *warnings))


def _decode(path: Path, stored: Any) -> Any:
    """The nibabel image over fully read, checksum-verified bytes."""
    import nibabel as nib

    content = _content(path, int(stored["vox_offset"]) + _voxels(stored) * stored.get_data_dtype().itemsize)
    kind: Any = nib.Nifti2Image if isinstance(stored, nib.Nifti2Header) else nib.Nifti1Image
    try:
        with (
            nib.imageglobals.LoggingOutputSuppressor()
        ):  # it prints repairs of fields that do not matter here
            return kind.from_bytes(content)
    except MemoryError:
        raise
    except Exception as err:  # noqa: BLE001 - whatever a hostile header makes the reader raise is the file's fault
        text = " ".join(str(err).split())[:100] or type(err).__name__
        raise ItemError(path, f"unreadable ({text})", "a valid NIfTI header", "save it again") from None


def _content(path: Path, wanted: int) -> bytes:
    """The first `wanted` bytes; the rest is read for its checksum only, and refused when it does not end."""
    kept: list[bytes] = []
    total = 0
    for block in _blocks(path):
        if total < wanted:
            kept.append(block if total + len(block) <= wanted else block[: wanted - total])
        total += len(block)
        if total > wanted + _TRAILING:
            found = f"over {_TRAILING >> 20} MiB beyond its voxels"
            raise ItemError(path, found, f"{wanted:,} bytes by its header", "save it again", "dim")
    if total < wanted:
        raise ItemError(path, f"truncated: {total:,} bytes", f"{wanted:,} bytes", "copy it again")
    return b"".join(kept)


def _scaling_warnings(stored: Any) -> list[str]:
    # nibabel clears such a slope on loading, silently; the stored header still has it.
    slope, inter = float(stored["scl_slope"]), float(stored["scl_inter"])
    if np.isfinite(slope) and np.isfinite(inter):
        return []
    return [f"scl_slope {slope:g}, scl_inter {inter:g}: not finite; values used unscaled"]


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
    qform, q_code = _qform(image.header)
    if q_code and qform is None:
        warnings.append("qform is damaged; sform used")
    if s_code and q_code and sform is not None and qform is not None:
        apart = float(np.abs(sform - qform).max())
        if np.isfinite(apart) and apart > 1e-2:
            warnings.append(f"sform and qform differ by up to {apart:.2f}; sform used")
    if not s_code and not q_code:
        warnings.append("neither sform nor qform is set; axes and spacing guessed from pixdim")
    return affine, warnings


def _qform(header: Any) -> tuple[NDArray[np.float64] | None, int]:
    """The qform matrix and its code; no matrix where its quaternion or spacing is nonsense."""
    try:
        qform, code = header.get_qform(coded=True)
    except ValueError:
        return None, int(header["qform_code"])
    usable = qform is None or (np.isfinite(qform).all() and abs(np.linalg.det(qform[:3, :3])) > 0)
    return (qform if usable else None), int(code)


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
    qform, q_code = _qform(like.header)
    if s_code or not q_code:
        image.set_sform(sform if s_code else like.affine, int(s_code))
    else:
        image.set_sform(None, 0)
    if q_code and qform is not None:
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
