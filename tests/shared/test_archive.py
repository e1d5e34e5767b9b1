"""Archives: what comes out is what went in, and nothing at all comes out of a hostile one."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.bundle import Bundle
from shared.config import RunConfig
from shared.errors import ItemError, ModelUnusable
from shared.io.archive import Limits, is_archive, unpack

FORMATS = ("zip", "tar", "tar.gz", "tgz")
TREE = {"case/a.txt": b"one" * 1000, "case/deep/ž 🧠.bin": bytes(range(256)) * 50, "empty": b""}


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if "gz" in path.suffix else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / f"x.{kind}", TREE)
    assert is_archive(path)
    out = unpack(path, tmp_path / "new" / "out")
    assert tree(out) == TREE
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o111 == 0 for p in out.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_limits_count_bytes_and_members(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / f"x.{kind}", TREE)
    for limits, words in ((Limits(unpacked_bytes=15_000), "unpacked"), (Limits(members=2), "over 2 members")):
        with pytest.raises(ItemError, match=words):
            unpack(path, tmp_path / "out", limits)
    assert not (tmp_path / "out").exists()


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a": b"x" * 5000})
    content = path.read_bytes().replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(ItemError, match=r"x\.zip"):
        unpack(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_a_huge_extended_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**31
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))
    with pytest.raises(ItemError, match="header of 2,147,483,648 bytes"):
        unpack(path, tmp_path / "out")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=5),
    st.floats(0, 1),
)
def test_damage_gives_one_error_or_files_inside(
    tmp_path: Path, kind: str, flips: list[tuple[int, int]], keep: float
) -> None:
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    path = pack(folder / f"x.{kind}", {"case/a": b"one" * 99, "b": bytes(range(99))})
    content = bytearray(path.read_bytes())
    for at, mask in flips:
        content[at % len(content)] ^= mask
    path.write_bytes(content[: int(len(content) * keep)] if keep < 0.5 else content)
    out = folder / "out"
    try:
        unpack(path, out)
    except ItemError as err:
        assert str(path) in str(err) and "\n" not in str(err)
        assert not out.exists()
    else:
        import shutil

        shutil.rmtree(out)
    path.unlink()
    assert list(folder.iterdir()) == [] and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("below", ["", "bundle/"])
def test_a_zipped_bundle_is_a_model(workdir: Path, below: str) -> None:
    import torch

    from pipelines import registry
    from shared.tracking.locate import locate

    pipeline = registry.load("brats-seg")
    bundle = Bundle.save(
        workdir / "b",
        pipeline=pipeline.name,
        config=RunConfig(),
        state_dict={"w": torch.ones(3)},
        card="card",
    )
    files = {f"{below}{name}": content for name, content in tree(bundle.path).items()}
    path = pack(workdir / "model.zip", files)
    found = locate(str(path), pipeline)
    assert Bundle.open(found).hash == bundle.hash
    assert locate(str(path), pipeline) == found
    pack(workdir / "evil.zip", {"../x": b""})
    with pytest.raises(ModelUnusable, match=r"evil\.zip:.*leaves the folder"):
        locate(str(workdir / "evil.zip"), pipeline)
