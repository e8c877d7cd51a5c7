"""The `download` entry of a dataset yaml: addresses with their SHA-256, fetched only when asked for; never a script.

    download: {url: https://example.org/set.zip, sha256: 9f86...}

or a list of those. Optional in each: `bytes`, the size of the archive; `licence`, shown before it is fetched; `into`,
the folder of the data set that it belongs into; `form: voc` for Pascal VOC's archives, which become YOLO labels.
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

_FORM = "write `download: {url: https://..., sha256: ...}`"
_KEYS = {"url", "sha256", "bytes", "licence", "into", "form"}
_FORMS = ("yolo", "voc")
_SHOWN_LINES = 4


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Attributes:
        url, sha256: its address and its SHA-256 in hexadecimal.
        place: where the yaml says so.
        bytes: its size, where the yaml tells it.
        licence: the terms of what is in it, where the yaml tells them.
        into: folder of the data set that it is unpacked into; "" for the data set's own.
        is_voc: it is one of Pascal VOC's, to be converted.
    """

    url: str
    sha256: str
    place: str
    bytes: int | None = None
    licence: str = ""
    into: str = ""
    is_voc: bool = False


def archives(yaml: YamlFile) -> tuple[Archive, ...]:
    """Return the archives that a yaml names; none if it has no `download`.

    Raises:
        ValueError: a script, or an address without its checksum.
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
        what = "an address without its checksum" if is_address else "a script or a description, which is never executed"
        raise ValueError(f"{place}: download is {what}; {_FORM}")
    url, size = entry.get("url", ""), entry.get("bytes")
    digest = yaml.scalar_text(*key, "sha256")  # as written: sixty-four digits could be a number
    is_url = isinstance(url, str) and re.fullmatch(r"https?://[!-~]+", url)
    if not {"url", "sha256"} <= set(entry) <= _KEYS or not is_url:
        raise ValueError(
            f"{place}: download needs an http address `url` and its `sha256`, nothing else but "
            f"{', '.join(sorted(_KEYS - {'url', 'sha256'}))}; {_FORM}"
        )
    if digest is None or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError(f"{place}: sha256 must be 64 hexadecimal digits; {_FORM}")
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
    """Return the end of the sentence that something is missing: where the data may be had."""
    value = yaml.data.get("download")
    try:
        wanted = archives(yaml)
    except ValueError:
        wanted = ()
    if wanted:
        sizes = [archive.bytes for archive in wanted if archive.bytes]
        size = f"{sum(sizes) / 1e6:,.1f} MB" if len(sizes) == len(wanted) else ""
        known = "; ".join(filter(None, (size, *dict.fromkeys(archive.licence for archive in wanted))))
        from_where = " and ".join(archive.url for archive in wanted)
        return f"give {ALLOW_DOWNLOAD} to fetch {from_where}{f' ({known})' if known else ''}"
    entries = value if isinstance(value, list) else str(value).splitlines() if value else []
    lines = [printable(str(entry).strip()) for entry in entries]
    if not lines:
        return "put the images there or correct the yaml"
    if len(lines) > _SHOWN_LINES:
        return "nothing is downloaded or executed here: fetch the data as the yaml's `download` describes"
    return f"nothing is downloaded here: get the data from {' and '.join(lines)}"


@dataclass
class Fetched:
    """The files of a data set's archives, and the annotations that could not be used."""

    unpacked: Unpacked
    problems: list[Problem]


def fetch_into(
    root: Path, wanted: Sequence[Archive], *, class_names: Sequence[str], allowed_below: Sequence[Path]
) -> Fetched:
    """Fetch archives, verify their checksums, and unpack them into the data set's folder.

    Everything happens in a hidden folder beside `root` first; an error leaves `root` as it was. What arrived of an
    archive stays there until all is done, so that the next call goes on where this one stopped.

    Args:
        root: the data set's folder; it may exist, but nothing in it is replaced.
        wanted: what to fetch.
        class_names: the data set's, for annotations that name their classes.
        allowed_below: folders of the user; a yaml from elsewhere may not write anywhere else.
    Raises:
        ValueError: another place, another checksum, a bad archive, or a file that exists already.
        OSError: the folder cannot be written.
    """
    root = Path(os.path.realpath(root))
    homes = [Path(os.path.realpath(folder)) for folder in allowed_below]
    if not any(home in (root, *root.parents) for home in homes):
        places = " or ".join(printable(home) for home in homes)
        raise ValueError(f"{wanted[0].place}: {printable(root)} lies outside of {places}; correct `path` in the yaml")
    store = root.with_name(f".{root.name}.download")
    store.mkdir(parents=True, exist_ok=True)
    everything = Fetched(Unpacked(), [])
    try:
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=store) as scratch:
            content = Path(scratch) / "content"
            content.mkdir()
            for archive in wanted:
                found = _unpacked(archive, _fetched(archive, store), content, root.name, class_names)
                everything.unpacked.files += found.unpacked.files
                everything.unpacked.left_out += found.unpacked.left_out
                everything.problems += found.problems
            _move(content, root, wanted[0])
    except BaseException:
        _remove_unless_archives(store)
        raise
    shutil.rmtree(store)
    return everything


def _fetched(archive: Archive, store: Path) -> Path:
    """Return the archive, verified."""
    file = store / f"{archive.sha256[:12]}-{name_of(archive.url)}"
    try:
        fetch_verified(archive.url, file, sha256=archive.sha256, size=archive.bytes, terms=archive.licence)
    except FetchError as error:
        raise ValueError(f"{archive.place}: {archive.url} {error}") from None
    except WrongContentError as error:
        raise ValueError(
            f"{archive.place}: {archive.url} has the SHA-256 {error}, the yaml says {archive.sha256}: it is not used; "
            "ask whoever wrote the yaml which one is right"
        ) from None
    return file


def _unpacked(archive: Archive, file: Path, content: Path, strip: str, class_names: Sequence[str]) -> Fetched:
    """Add what is in an archive to `content`; one that cannot be used is removed."""
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
    """Remove the folder if no archive, nor a part of one, is left in it."""
    if all(file.suffix == ".lock" for file in store.iterdir()):
        shutil.rmtree(store)


def _move(content: Path, root: Path, archive: Archive) -> None:
    entries = sorted(content.iterdir())
    for entry in entries:
        if (root / entry.name).exists():
            place = printable(root / entry.name)
            raise ValueError(
                f"{archive.place}: {place} is there already and is not replaced; move it away or repair it (what was "
                f"fetched is kept in {printable(content.parents[1])})"
            )
    root.mkdir(exist_ok=True)
    for entry in entries:
        shutil.move(entry, root / entry.name)
