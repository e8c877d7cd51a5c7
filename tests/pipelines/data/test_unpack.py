"""Untrusted archives: only data is unpacked, and nothing is written outside the target folder."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data import unpack as unpack_module
from pipelines.data.unpack import unpack


def make_zip(file: Path, members: dict[str, bytes], *, modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (modes or {}).get(name, 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return file


def make_tar(file: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]], mode: Any = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:
        for entry, content in members:
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content))
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return the folder to unpack into; a folder next to it must not change."""
    (tmp_path / "neighbour.txt").write_text("untouched")
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_only_data_is_unpacked(kind: str, target: Path, tmp_path: Path) -> None:
    content = {
        "set/images/a.JPG": b"picture",
        "set/labels/a.txt": b"0 .5 .5 1 1\n",
        "set/numpy.py": b"evil",
        "set/.bashrc": b"evil",
        "__MACOSX/set/a.txt": b"",
        "set/run.sh": b"evil",
        "top.yaml": b"a",
    }
    file = tmp_path / "archive"
    if kind == "zip":
        make_zip(file, content)
    else:
        make_tar(file, [(member(name), value) for name, value in content.items()], kind)
    done = unpack(file, target, strip="set")
    assert all_files(target) == ["images/a.JPG", "labels/a.txt", "top.yaml"] == sorted(done.files)
    assert sorted(done.skipped) == ["__MACOSX/set/a.txt", "set/.bashrc", "set/numpy.py", "set/run.sh"]
    assert (target / "images/a.JPG").read_bytes() == b"picture"
    assert (target / "images/a.JPG").stat().st_mode & 0o111 == 0


@pytest.mark.parametrize(
    "name",
    [
        "../neighbour.txt",
        "a/../../neighbour.txt",
        "/tmp/evil.txt",
        "..\\neighbour.txt",
        "C:/evil.txt",
        "a/" * 3000 + "a",
    ],
)
def test_names_outside_folder_raise(name: str, target: Path, tmp_path: Path) -> None:
    archives = [make_zip(tmp_path / "a.zip", {name: b"evil"}), make_tar(tmp_path / "a.tar", [(member(name), b"evil")])]
    for archive in archives:
        with pytest.raises(ValueError, match=r"is outside the target folder; the archive is not used") as caught:
            unpack(archive, target)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "neighbour.txt").read_text() == "untouched"
    assert all_files(target) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "images is a link; only files and folders"),
        (tarfile.LNKTYPE, "images is a link; only files and folders"),
        (tarfile.FIFOTYPE, "images is a device; only files and folders"),
        (tarfile.CHRTYPE, "images is a device; only files and folders"),
        (tarfile.BLKTYPE, "images is a device; only files and folders"),
        (tarfile.GNUTYPE_SPARSE, "images is a device; only files and folders"),
    ],
)
def test_links_and_devices_raise(kind: bytes, message: str, target: Path, tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", [(member("images", kind, "/etc"), b""), (member("images/passwd.txt"), b"x")])
    with pytest.raises(ValueError, match=message):
        unpack(archive, target)
    assert list(target.iterdir()) == []


def test_link_in_zip_raises(target: Path, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"images": b"/etc"}, modes={"images": 0o120777})
    with pytest.raises(ValueError, match=r"images is a link"):
        unpack(archive, target)


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w:bz2", "w:xz"])
def test_decompression_bombs_raise_early(
    kind: str, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_module, "_MIN_LIMIT_BYTES", 4 << 20)
    zeros = bytes(1 << 20)
    names = [f"{number}.txt" for number in range(6)]
    file = tmp_path / "bomb"
    if kind == "zip":
        make_zip(file, dict.fromkeys(names, zeros))
    else:
        make_tar(file, [(member(name), zeros) for name in names], kind)
    with pytest.raises(ValueError, match=r"more than 4 MB, perhaps an archive bomb"):
        unpack(file, target)
    assert sum(path.stat().st_size for path in target.iterdir()) <= 4 << 20


def test_header_claiming_gigabytes_raises(target: Path, tmp_path: Path) -> None:
    entry = member("x", tarfile.XHDTYPE)
    entry.size = 8 << 30
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ValueError, match=r"damaged archive|not a zip"):
        unpack(tmp_path / "a.tar", target)


def test_wrong_sizes_are_detected(target: Path, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.txt": b"x" * 1000})
    content = bytearray(archive.read_bytes())
    for at in (content.find(b"PK\x03\x04") + 22, content.find(b"PK\x01\x02") + 24):
        struct.pack_into("<I", content, at, 100)
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged archive"):
        unpack(archive, target)


def test_no_overwrites_and_no_duplicate_names(target: Path, tmp_path: Path) -> None:
    (target / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.txt already exists"):
        unpack(make_zip(tmp_path / "a.zip", {"a.txt": b"theirs"}), target)
    assert (target / "a.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"b\.txt already exists"):
        unpack(make_tar(tmp_path / "b.tar", [(member("b.txt"), b"1"), (member("b.txt"), b"2")]), target)


def test_member_count_is_limited(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_module, "MAX_MEMBERS", 3)
    with pytest.raises(ValueError, match=r"more than 3 members, perhaps an archive bomb; the archive is not used"):
        unpack(make_zip(tmp_path / "a.zip", {f"{n}.txt": b"" for n in range(4)}), target)


def test_full_disk_and_negative_size_are_not_bombs(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_tar(tmp_path / "a.tar", [(member("a.txt"), bytes(3_000_000))])
    with monkeypatch.context() as patched:
        patched.setattr(unpack_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
        with pytest.raises(ValueError, match=r"unpacks to more than the free 2 MB; free some space"):
            unpack(archive, target)
    below_zero = (unpack_module._Member("a.txt", -5, "file"), None)
    with pytest.raises(ValueError, match=r"^a\.txt has a size of -5 bytes, so the archive is damaged$"):
        list(unpack_module._checked(iter([below_zero]), 100, 100))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x05\x06" + bytes(10), b"\x1f\x8b junk", b"BZh9junk", b"\xfd7zXZ\0junk"]
)
def test_non_archive_is_reported(content: bytes, target: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a zip or tar|damaged archive"):
        unpack(tmp_path / "a", target)


@given(st.data(), st.sampled_from(["zip", "w", "w:gz", "w:xz"]))
def test_mutated_archives_unpack_or_raise_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("mutilated")
    members = {"images/a.png": bytes(range(256)) * 4, "labels/a.txt": b"0 0.5 0.5 1 1\n"}
    archive = folder / "a"
    if kind == "zip":
        make_zip(archive, members)
    else:
        make_tar(archive, [(member(name), value) for name, value in members.items()], kind)
    content = bytearray(archive.read_bytes())
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[position] = value
    archive.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    (folder / "out").mkdir()
    try:
        unpack(archive, folder / "out")
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "out"]
    assert not any(path.is_symlink() for path in (folder / "out").rglob("*"))
