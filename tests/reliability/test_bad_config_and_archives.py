"""Rows 54 and 55 of the reliability sheet: configurations and archives, hostile or merely wrong, by their row."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medical.brats_seg.config import BratsConfig
from shared.config import parse_yaml, read_yaml, resolve
from shared.errors import ItemError, UsageError
from shared.io.archive import unpack
from tests.reliability.messages import in_one_line
from tests.samples import make_fifo

# ---------------------------------------------------------------- configuration, row 54

CONFIG: dict[str, tuple[str, tuple[str, ...]]] = {
    "config-54-unknown-key": (
        "seed: 1\ntrain:\n  learning_rat: 1\n",
        (":line 3: unknown key train.learning_rat", "did you mean"),
    ),
    "config-54-key-without-section": (
        "epochs: 3\n",
        (":line 1: unknown key epochs", "did you mean train.epochs?"),
    ),
    "config-54-wrong-type": (
        "train:\n  epochs: many\n",
        (":line 2:train.epochs: found 'many'", "valid integer"),
    ),
    "config-54-out-of-range": ("train:\n  lr: -1\n", (":line 2:train.lr: found -1", "greater than 0")),
    "config-54-infinite": ("train: {lr: .inf}\n", (":line 1:train.lr", "finite")),
    "config-54-section-is-a-number": ("train: 3\n", (":line 1:train: found 3",)),
    "config-54-duplicate-key": ("seed: 1\nseed: 2\n", (":line 2: duplicate key 'seed'",)),
    "config-54-tabs": ("train:\n\tepochs: 2\n", (":line 2: ", "cannot start any token")),
    "config-54-two-megabytes": ("seed: 1\n" + "# x\n" * 500_000, ("2,000,008 bytes; at most 1 MB",)),
    "config-54-alias-bomb": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        (":line 2: aliases are not allowed",),
    ),
    "config-54-object-tag": (
        "seed: !!python/object/apply:os.system [ls]\n",
        (":line 1: could not determine a constructor",),
    ),
    "config-54-deep": ("[" * 1500 + "]" * 1500, ("more than 20 levels",)),
    "config-54-list-as-key": ("? [a, b]\n: 1\n", (":line 1: a list as key",)),
    "config-54-impossible-date": ("seed: 2026-13-45\n", ("month must be in 1..12",)),
    "config-54-not-yaml": ("}{", (":line 1",)),
    "config-54-a-list": ("- 1\n", ("a list; a mapping wanted",)),
    "config-54-long-value": ("train:\n  lr: " + "x" * 5000 + "\n", (":line 2:train.lr", "…")),
    "config-54-long-key": ("x" * 500 + ": 1\n", ("unknown key x", "…")),
}


@pytest.mark.parametrize(("text", "words"), CONFIG.values(), ids=CONFIG)
def test_configuration(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve(BratsConfig, [("preset", {"seed": 3}), (str(path), read_yaml(path))], [])
    assert str(caught.value).startswith(f"{path}:")
    assert caught.value.exit_code == 2
    in_one_line(caught.value, tmp_path, *words)


@pytest.mark.parametrize(
    "text",
    ["\0", "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe"],
    ids=lambda t: f"config-54-bytes-{t!r}",
)
def test_configuration_of_odd_bytes(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"mine\.yaml"):
        read_yaml(path)


def test_config_54_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert resolve(BratsConfig, [("f", parse_yaml("train: {lr: 1e-3}", "f"))]).train.lr == 1e-3


def test_config_56_a_pipe_or_a_folder_is_no_configuration(tmp_path: Path) -> None:
    for path, words in ((make_fifo(tmp_path / "a.yaml"), "not a regular file"), (tmp_path, "a folder")):
        with pytest.raises(UsageError, match=words):
            read_yaml(path)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab:-[]{},&*!|>%@`'\"#?<=~ \n\t0129.eE+_x"), max_size=40))
def test_any_text_is_yaml_or_one_error(text: str) -> None:
    try:
        value = parse_yaml(text, "mine.yaml")
    except UsageError as err:
        assert str(err).startswith("mine.yaml") and "\n" not in str(err)
        return
    if isinstance(value, dict):
        with pytest.raises(UsageError) if value else contextlib.nullcontext():
            resolve(BratsConfig, [("mine.yaml", value)])


# ---------------------------------------------------------------- archives, row 55


def zip_of(
    *names: str, content: bytes = b"x", mode: int = 0o100644, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("good.txt", "good")
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, content)
    return buffer.getvalue()


def tar_of(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"x", size: int | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for given, type_ in (("good.txt", tarfile.REGTYPE), (name, kind)):
            info = tarfile.TarInfo(given)
            info.type, info.linkname = type_, link if type_ != tarfile.REGTYPE else ""
            info.size = len(content) if type_ == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "archive-55-zip-parent": ("a.zip", lambda: zip_of("../evil"), "'../evil': leaves the folder"),
    "archive-55-zip-inner-parent": ("a.zip", lambda: zip_of("x/../../evil"), "leaves the folder"),
    "archive-55-zip-absolute": ("a.zip", lambda: zip_of("/evil"), "leaves the folder"),
    "archive-55-zip-backslash": ("a.zip", lambda: zip_of("..\\evil"), "leaves the folder"),
    "archive-55-zip-drive": ("a.zip", lambda: zip_of("C:evil"), "leaves the folder"),
    "archive-55-zip-link": (
        "a.zip",
        lambda: zip_of("l", content=b"/etc/passwd", mode=0o120777),
        ":l: is a link",
    ),
    "archive-55-zip-device": ("a.zip", lambda: zip_of("d", mode=0o020666), ":d: is a special file"),
    "archive-55-zip-file-as-folder": ("a.zip", lambda: zip_of("good.txt/x"), "lies below the file good.txt"),
    "archive-55-zip-double": ("a.zip", lambda: zip_of("y", "./y"), ":y: comes twice"),
    "archive-55-zip-ratio": (
        "a.zip",
        lambda: zip_of("z", content=bytes(70 * 2**20)),
        "times its size; at most 300 times",
    ),
    "archive-55-zip-ratio-bzip2": (
        "a.zip",
        lambda: zip_of("z", content=bytes(70 * 2**20), method=zipfile.ZIP_BZIP2),
        "times its size",
    ),
    "archive-55-zip-cut": ("a.zip", lambda: zip_of("y")[:-40], "damaged"),
    "archive-55-zip-empty-file": ("a.zip", lambda: b"", "damaged"),
    "archive-55-zip-flipped": (
        "a.zip",
        lambda: zip_of("y", content=b"abc" * 99, method=zipfile.ZIP_STORED).replace(b"abcabc", b"abcabd", 1),
        "damaged (Bad CRC-32",
    ),
    "archive-55-tar-parent": ("a.tar", lambda: tar_of("../evil"), "'../evil': leaves the folder"),
    "archive-55-tar-absolute": ("a.tar", lambda: tar_of("/evil"), "leaves the folder"),
    "archive-55-tar-symlink": ("a.tar", lambda: tar_of("l", tarfile.SYMTYPE, "/etc"), ":l: is a link"),
    "archive-55-tar-hardlink": ("a.tar", lambda: tar_of("l", tarfile.LNKTYPE, "good.txt"), ":l: is a link"),
    "archive-55-tar-fifo": ("a.tar", lambda: tar_of("f", tarfile.FIFOTYPE), ":f: is a special file"),
    "archive-55-tar-device": ("a.tar", lambda: tar_of("d", tarfile.CHRTYPE), ":d: is a special file"),
    "archive-55-tar-gz-ratio": (
        "a.tar.gz",
        lambda: gzip.compress(tar_of("z", content=bytes(70 * 2**20)), 6),
        "times its size",
    ),
    "archive-55-tar-gz-cut": (
        "a.tgz",
        lambda: gzip.compress(tar_of("y", content=bytes(range(256)) * 99))[:-30],
        "damaged",
    ),
    "archive-55-tar-gz-trailer-zeroed": (
        "a.tgz",
        lambda: gzip.compress(tar_of("y"))[:-8] + bytes(8),
        "damaged (CRC check failed",
    ),
    "archive-55-tar-of-text": ("a.tar", lambda: b"hello" * 999, "damaged"),
}


@pytest.mark.parametrize(("name", "make", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_archive(tmp_path: Path, name: str, make: Callable[[], bytes], words: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = folder / name
    path.write_bytes(make())
    with pytest.raises(ItemError) as caught:
        unpack(path, folder / "out")
    in_one_line(caught.value, folder, name, words)
    # The whole archive was refused: not even the good member is there, inside or outside.
    assert list(folder.iterdir()) == [path] and list(tmp_path.iterdir()) == [folder]


def test_archive_55_a_pipe_does_not_hang(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="not a regular file"):
        unpack(make_fifo(tmp_path / "a.zip"), tmp_path / "out")
