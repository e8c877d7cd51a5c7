"""The `download` entry of a dataset yaml: addresses with their SHA-256, fetched only when asked for; never a script.

    download: {url: https://example.org/set.zip, sha256: 9f86...}

or a list of those. Archives are unpacked by `pipelines.data.unpack`.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.fetching import ALLOW_DOWNLOAD, FetchError, fetch
from pipelines.data.problems import printable
from pipelines.data.safe_yaml import YamlFile
from pipelines.data.unpack import Unpacked, unpack

_FORM = "write `download: {url: https://..., sha256: ...}`"
_SHOWN_LINES = 4


@dataclass(frozen=True)
class Archive:
    """One file to fetch: its address, its SHA-256 in hexadecimal, and where the yaml says so."""

    url: str
    sha256: str
    place: str


def archives(yaml: YamlFile) -> tuple[Archive, ...]:
    """What a yaml wants to be fetched; nothing if it has no `download`.

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
    url = entry.get("url")
    digest = yaml.scalar_text(*key, "sha256")  # as written: sixty-four digits could be a number
    if set(entry) != {"url", "sha256"} or not isinstance(url, str) or not re.fullmatch(r"https?://[!-~]+", url):
        raise ValueError(f"{place}: download needs an http address `url` and its `sha256`, nothing else; {_FORM}")
    if digest is None or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError(f"{place}: sha256 must be 64 hexadecimal digits; {_FORM}")
    return Archive(url, digest.lower(), place)


def download_hint(yaml: YamlFile) -> str:
    """The end of the sentence that something is missing: where the data may be had."""
    value = yaml.data.get("download")
    try:
        wanted = archives(yaml)
    except ValueError:
        wanted = ()
    if wanted:
        return f"give {ALLOW_DOWNLOAD} to fetch {' and '.join(archive.url for archive in wanted)}"
    entries = value if isinstance(value, list) else str(value).splitlines() if value else []
    lines = [printable(str(entry).strip()) for entry in entries]
    if not lines:
        return "put the images there or correct the yaml"
    if len(lines) > _SHOWN_LINES:
        return "nothing is downloaded or executed here: fetch the data as the yaml's `download` describes"
    return f"nothing is downloaded here: get the data from {' and '.join(lines)}"


def fetch_into(root: Path, wanted: Sequence[Archive], *, allowed_below: Sequence[Path]) -> Unpacked:
    """Fetches archives, verifies their checksums, and unpacks them into the data set's folder.

    Everything happens in a temporary folder beside `root` first; an error leaves `root` as it was.

    Args:
        root: the data set's folder; it may exist, but nothing in it is replaced.
        wanted: what to fetch.
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
    root.parent.mkdir(parents=True, exist_ok=True)
    everything = Unpacked()
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root.parent) as scratch:
        content = Path(scratch) / "content"
        content.mkdir()
        for number, archive in enumerate(wanted):
            file = Path(scratch) / f"archive{number}"
            _fetch(archive, file)
            try:
                found = unpack(file, content, strip=root.name)
            except ValueError as error:
                reason = str(error).replace(printable(file), archive.url)
                raise ValueError(f"{archive.place}: {reason}") from None
            file.unlink()
            everything.files += found.files
            everything.left_out += found.left_out
        _move(content, root, wanted[0])
    return everything


def _move(content: Path, root: Path, archive: Archive) -> None:
    root.mkdir(exist_ok=True)
    entries = sorted(content.iterdir())
    for entry in entries:
        if (root / entry.name).exists():
            place = printable(root / entry.name)
            raise ValueError(
                f"{archive.place}: {place} is there already and is not replaced; move it away or repair it"
            )
    for entry in entries:
        shutil.move(entry, root / entry.name)


def _fetch(archive: Archive, file: Path) -> None:
    """Writes the content of the address into a file and verifies it."""
    try:
        fetch(archive.url, file)
    except FetchError as error:
        raise ValueError(f"{archive.place}: {archive.url} {error}") from None
    # Imported here: it takes a third of a second, and most commands fetch nothing.
    import pooch

    digest = pooch.file_hash(str(file))
    if digest != archive.sha256:
        raise ValueError(
            f"{archive.place}: {archive.url} has the SHA-256 {digest}, the yaml says {archive.sha256}: it is not used; "
            "ask whoever wrote the yaml which one is right"
        )
