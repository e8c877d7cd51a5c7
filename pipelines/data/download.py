"""The `download` entry of a dataset yaml: URLs with SHA-256, downloaded only on request; scripts are rejected.

    download: {url: https://example.org/set.zip, sha256: 9f86...}

or a list of these. Optional keys are `bytes`, the size of the archive; `licence`, shown before the download; `into`,
the target folder in the data set; and `form: voc` for Pascal VOC's archives, which are converted to YOLO labels.
Archives are unpacked by `pipelines.data.unpack`.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kernels.host.paths import printable
from kernels.host.safe_yaml import YamlFile
from pipelines.data.fetching import ALLOW_DOWNLOAD, FetchError, WrongContentError, fetch_verified, name_of
from pipelines.data.problems import Problem
from pipelines.data.unpack import Unpacked, unpack
from pipelines.data.yolo_layout import convert_voc_devkit

_SYNTAX = "write `download: {url: https://..., sha256: ...}`"
_KEYS = {"url", "sha256", "bytes", "licence", "into", "form"}
_FORMS = ("yolo", "voc")
_SHOWN_LINES = 4


@dataclass(frozen=True)
class Archive:
    """An archive to download.

    Attributes:
        url, sha256: URL and hexadecimal SHA-256.
        place: file, line and column of the yaml entry.
        bytes: size in bytes, if known.
        licence: licence of the content, if known.
        into: target folder in the data set; "" for the data set's own folder.
        is_voc: whether it is a Pascal VOC archive to convert.
    """

    url: str
    sha256: str
    place: str
    bytes: int | None = None
    licence: str = ""
    into: str = ""
    is_voc: bool = False


def archives(yaml: YamlFile) -> tuple[Archive, ...]:
    """Return the archives in a yaml's `download` entry.

    Raises:
        ValueError: the entry is a script, or has a URL without a checksum.
    """
    value = yaml.data.get("download")
    if value is None or value in ("", []):
        return ()
    if isinstance(value, list):
        return tuple(_archive(yaml, ("download", number), entry) for number, entry in enumerate(value))
    return (_archive(yaml, ("download",), value),)


def _archive(yaml: YamlFile, key: tuple[Any, ...], entry: Any) -> Archive:
    place = yaml.where(*key)
    if not isinstance(entry, dict):
        is_address = isinstance(entry, str) and re.fullmatch(r"https?://\S+", entry.strip())
        what = "a URL without its checksum" if is_address else "a script or a description, which is never executed"
        raise ValueError(f"{place}: download is {what}; {_SYNTAX}")
    url, size = entry.get("url", ""), entry.get("bytes")
    digest = yaml.scalar_text(*key, "sha256")  # as written, because a digest of digits only would be a number
    is_url = isinstance(url, str) and re.fullmatch(r"https?://[!-~]+", url)
    if not {"url", "sha256"} <= set(entry) <= _KEYS or not is_url:
        raise ValueError(
            f"{place}: download must have an http(s) `url` and its `sha256`; optional keys are "
            f"{', '.join(sorted(_KEYS - {'url', 'sha256'}))}; {_SYNTAX}"
        )
    if digest is None or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError(f"{place}: sha256 must be 64 hexadecimal digits; {_SYNTAX}")
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"{yaml.where(*key, 'bytes')}: bytes must be the size of the archive, found {size!r:.40}")
    if entry.get("form", "yolo") not in _FORMS:
        raise ValueError(f"{yaml.where(*key, 'form')}: form must be yolo or voc, found {entry['form']!r:.40}")
    into = str(entry.get("into", ""))
    if not _is_inner(into):
        raise ValueError(f"{yaml.where(*key, 'into')}: into must be a folder of the data set, found {into!r:.80}")
    licence = printable(str(entry.get("licence", "")))
    return Archive(url, digest.lower(), place, size, licence, into, entry.get("form") == "voc")


def _is_inner(folder: str) -> bool:
    path = PurePosixPath(folder)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in folder and "\0" not in folder


def download_hint(yaml: YamlFile) -> str:
    """Return how to get the data, as the end of an error message."""
    value = yaml.data.get("download")
    try:
        downloads = archives(yaml)
    except ValueError:
        downloads = ()
    if downloads:
        sizes = [archive.bytes for archive in downloads if archive.bytes]
        size = f"{sum(sizes) / 1e6:,.1f} MB" if len(sizes) == len(downloads) else ""
        known = "; ".join(filter(None, (size, *dict.fromkeys(archive.licence for archive in downloads))))
        urls = " and ".join(archive.url for archive in downloads)
        return f"use {ALLOW_DOWNLOAD} to download {urls}{f' ({known})' if known else ''}"
    entries = value if isinstance(value, list) else str(value).splitlines() if value else []
    lines = [printable(str(entry).strip()) for entry in entries]
    if not lines:
        return "put the images there or correct the yaml"
    if len(lines) > _SHOWN_LINES:
        return "get the data as the yaml's `download` describes, which is never executed"
    return f"get the data from {' and '.join(lines)}"


@dataclass
class Fetched:
    """The files unpacked from archives, and the problems with annotations."""

    unpacked: Unpacked
    problems: list[Problem]


def fetch_into(
    root: Path, archives: Sequence[Archive], *, class_names: Sequence[str], allowed_below: Sequence[Path]
) -> Fetched:
    """Download archives, verify their checksums, and unpack them into the data set's folder.

    Archives are first unpacked in a hidden folder next to `root`, so that an error leaves `root` unchanged. Partial
    downloads are kept there, and the next call continues them.

    Args:
        root: the data set's folder; it may exist, but no file in it is overwritten.
        archives: the archives.
        class_names: the data set's class names, for the conversion of annotations.
        allowed_below: the only folders in which `root` may be, because a yaml may be from an untrusted source.
    Raises:
        ValueError: `root` is elsewhere, a checksum differs, an archive is invalid, or a file exists already.
        OSError: the folder cannot be written.
    """
    root = Path(os.path.realpath(root))
    homes = [Path(os.path.realpath(folder)) for folder in allowed_below]
    if not any(home in (root, *root.parents) for home in homes):
        places = " or ".join(printable(home) for home in homes)
        raise ValueError(f"{archives[0].place}: {printable(root)} is outside {places}; correct `path` in the yaml")
    store = root.with_name(f".{root.name}.download")
    store.mkdir(parents=True, exist_ok=True)
    fetched = Fetched(Unpacked(), [])
    try:
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=store) as scratch:
            content = Path(scratch) / "content"
            content.mkdir()
            for archive in archives:
                found = _unpacked(archive, _fetched(archive, store), content, root.name, class_names)
                fetched.unpacked.files += found.unpacked.files
                fetched.unpacked.skipped += found.unpacked.skipped
                fetched.problems += found.problems
            _move(content, root, archives[0])
    except BaseException:
        _remove_unless_archives(store)
        raise
    shutil.rmtree(store)
    return fetched


def _fetched(archive: Archive, store: Path) -> Path:
    """Download and verify an archive."""
    file = store / f"{archive.sha256[:12]}-{name_of(archive.url)}"
    try:
        fetch_verified(archive.url, file, sha256=archive.sha256, size=archive.bytes, note=archive.licence)
    except FetchError as error:
        raise ValueError(f"{archive.place}: {archive.url} {error}") from None
    except WrongContentError as error:
        raise ValueError(
            f"{archive.place}: {archive.url} has the SHA-256 {error}, but the yaml has {archive.sha256}; the file is "
            "not used: ask the author of the yaml"
        ) from None
    return file


def _unpacked(archive: Archive, file: Path, content: Path, strip: str, class_names: Sequence[str]) -> Fetched:
    """Unpack an archive into `content`; an invalid archive is removed."""
    try:
        if archive.is_voc:
            return _unpacked_voc(file, content, class_names)
        folder = content / archive.into
        folder.mkdir(parents=True, exist_ok=True)
        return Fetched(unpack(file, folder, strip=strip), [])
    except ValueError as error:
        file.unlink()
        reason = str(error).replace(printable(file), archive.url)
        raise ValueError(f"{archive.place}: {reason}") from None


def _unpacked_voc(file: Path, content: Path, class_names: Sequence[str]) -> Fetched:
    with tempfile.TemporaryDirectory(dir=content.parent) as folder:
        found = unpack(file, Path(folder))
        try:
            return Fetched(found, convert_voc_devkit(Path(folder), class_names, content))
        except (ValueError, FileExistsError) as error:
            raise ValueError(f"{printable(file)}: {error}") from None


def _remove_unless_archives(store: Path) -> None:
    """Remove the folder, unless it contains complete or partial archives."""
    if all(file.suffix == ".lock" for file in store.iterdir()):
        shutil.rmtree(store)


def _move(content: Path, root: Path, archive: Archive) -> None:
    entries = sorted(content.iterdir())
    for entry in entries:
        if (root / entry.name).exists():
            place = printable(root / entry.name)
            raise ValueError(
                f"{archive.place}: {place} already exists and is not overwritten; move it away or fix it (downloads "
                f"are kept in {printable(content.parents[1])})"
            )
    root.mkdir(exist_ok=True)
    for entry in entries:
        shutil.move(entry, root / entry.name)
