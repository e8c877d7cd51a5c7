"""Safe unpacking of archives of images and labels: no path traversal, only data files, no archive bombs."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from bz2 import BZ2File
from collections.abc import Iterator
from dataclasses import dataclass, field
from gzip import GzipFile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kernels.host.paths import printable
from kernels.host.quantity import quantity
from pipelines.data.listing import IMAGE_SUFFIXES

DATA_SUFFIXES = IMAGE_SUFFIXES | {".csv", ".json", ".md", ".txt", ".xml", ".yaml", ".yml"}
"""Suffixes of files to unpack; other files are skipped, because the target may be on Python's path."""
MAX_MEMBERS = 10_000_000
MAX_GROWTH = 100
"""Maximum compression ratio; label files reach 10, archive bombs 1000 and more."""
_MIN_LIMIT_BYTES = 64 << 20
_MAX_NAME_BYTES = 4096
_MAX_READ_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_FAILURES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    OverflowError,
    IndexError,
    MemoryError,
)
"""Exceptions of the standard library for damaged archives."""


@dataclass
class Unpacked:
    """Relative names of the unpacked files, and of the skipped ones."""

    files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str
    """ "file", "folder" or another type."""


class _BoundedReader:
    """A decompressed stream that rejects large single reads, because a tar header may claim any size."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"header of {quantity(size, 'byte')}")
        return self._stream.read(size)


def unpack(archive: Path, folder: Path, *, strip: str = "") -> Unpacked:
    """Unpack images, labels and text files from a zip or tar (plain, gzip, bzip2, xz) into a folder.

    Args:
        archive: the archive; its type is determined from the content.
        folder: an existing folder; no file in it is overwritten.
        strip: a leading folder to strip from member names.
    Raises:
        ValueError: the archive is invalid or too large, or a member is outside the folder, a link or device, or exists
            already. Files unpacked before remain.
        OSError: the folder cannot be written.
    """
    try:
        return _unpack(archive, folder, strip)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{printable(archive)}: damaged archive ({reason})") from None
    except ValueError as error:
        raise ValueError(f"{printable(archive)}: {error}; the archive is not used") from None
    except OSError as error:
        if error.errno is None:  # the decompressors' own
            raise ValueError(f"{printable(archive)}: damaged archive ({error})") from None
        raise


def _unpack(archive: Path, folder: Path, strip: str) -> Unpacked:
    done = Unpacked()
    limit = max(_MIN_LIMIT_BYTES, MAX_GROWTH * archive.stat().st_size)
    free = shutil.disk_usage(folder).free
    with archive.open("rb") as file:
        source = _zip_members(file) if zipfile.is_zipfile(archive) else _tar_members(file)
        for member, path, stream in _checked(source, limit, free):
            if member.kind == "folder":
                continue
            if _is_hidden(path) or path.suffix.lower() not in DATA_SUFFIXES:
                done.skipped.append(member.name)
                continue
            inside = path.relative_to(strip) if strip and path.parts[0] == strip and len(path.parts) > 1 else path
            _write(stream, folder / inside, member)
            done.files.append(str(inside))
    return done


def _checked(
    members: Iterator[tuple[_Member, IO[bytes] | None]], limit: int, free: int
) -> Iterator[tuple[_Member, PurePosixPath, Any]]:
    """Reject unsafe members, and archives that are too large."""
    total = 0
    for number, (member, stream) in enumerate(members):
        shown = printable(member.name[:200])
        total += max(member.size, 0)
        if number >= MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} members, perhaps an archive bomb")
        if member.size < 0:
            raise ValueError(f"{shown} has a size of {quantity(member.size, 'byte')}, so the archive is damaged")
        if total > limit:
            raise ValueError(f"unpacks to more than {limit / 1e6:.0f} MB, perhaps an archive bomb")
        if total > free:
            raise ValueError(f"unpacks to more than the free {free / 1e6:.0f} MB; free some space")
        if member.kind not in ("file", "folder"):
            raise ValueError(f"{shown} is a {member.kind}; only files and folders are unpacked")
        yield member, _safe_path(member.name), stream


def _safe_path(name: str) -> PurePosixPath:
    """Return the name as a relative path inside the target folder."""
    path = PurePosixPath(name)
    bad = (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or ":" in path.parts[0]
        or len(name) > _MAX_NAME_BYTES
    )
    if bad:
        raise ValueError(f"{printable(name[:200])!r} is outside the target folder")
    return path


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _write(stream: IO[bytes], target: Path, member: _Member) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    try:
        file = target.open("xb")
    except FileExistsError:
        raise ValueError(f"{printable(member.name)} already exists") from None
    with file:
        while chunk := stream.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
    if left:
        raise ValueError(f"{printable(member.name)} has a different size than the archive states")


def _zip_members(file: IO[bytes]) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            member = _zip_member(entry)
            with archive.open(entry) as stream:
                yield member, stream


def _zip_member(entry: zipfile.ZipInfo) -> _Member:
    mode = entry.external_attr >> 16
    kind = "folder" if entry.is_dir() else "file"
    if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "link" if stat.S_ISLNK(mode) else "device"
    if entry.flag_bits & 1:
        raise ValueError(f"{printable(entry.filename)} is encrypted")
    return _Member(entry.filename, entry.file_size, kind)


def _tar_members(file: IO[bytes]) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    start = file.read(6)
    file.seek(0)
    stream: Any = file
    if start.startswith(b"\x1f\x8b"):
        stream = GzipFile(fileobj=file)
    elif start.startswith(b"BZh"):
        stream = BZ2File(file)
    elif start == b"\xfd7zXZ\0":
        stream = lzma.LZMAFile(file)  # noqa: SIM115 - ends with the file below it
    try:
        archive = tarfile.TarFile(fileobj=_BoundedReader(stream))  # type: ignore[arg-type]
    except tarfile.ReadError:
        raise ValueError("not a zip or tar archive") from None
    with archive:
        for entry in archive:
            yield _tar_member(entry), archive.extractfile(entry) if entry.isreg() else None


def _tar_member(entry: tarfile.TarInfo) -> _Member:
    kind = "folder" if entry.isdir() else "file" if entry.isreg() and not entry.issparse() else "device"
    if entry.issym() or entry.islnk():
        kind = "link"
    return _Member(entry.name, entry.size, kind)
