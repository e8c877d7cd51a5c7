"""What `--source` means: which images and videos are looked at, and what the results of each are called."""

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graph_train.prediction.addresses import fetch_addresses, has_scheme, is_address, result_name
from kernels.host.files import NotReadableError, read_regular
from kernels.host.paths import printable, with_home
from pipelines.data.fetching import ALLOW_DOWNLOAD, FetchError
from pipelines.data.listing import IMAGE_ENDINGS, MAX_LIST_BYTES, UNSUPPORTED_ENDINGS, listed_image
from pipelines.data.live import STREAM_PORTS, shown_address
from pipelines.data.problems import Problem
from pipelines.data.video import VIDEO_ENDINGS
from pipelines.data.walk import walk_files

STANDARD_INPUT = "-"
_LOOKED_AT = IMAGE_ENDINGS | VIDEO_ENDINGS | UNSUPPORTED_ENDINGS
"""Files of a folder with these endings; those that are not supported are reported."""


@dataclass(frozen=True)
class SourceFile:
    """One file to look at.

    Attributes:
        path: where it is; a copy of its own where it came from an address.
        name: what its results are called, relative to the results folder, its ending included. No two files of a run
            share a name, whatever their endings.
        address: the URL that it was fetched from, or the camera or stream that it is; "" of the user's own files.
        is_live: it is a camera or stream; there is no file.
    """

    path: Path
    name: Path
    address: str = ""
    is_live: bool = False

    @property
    def shown(self) -> str:
        """What the user calls it."""
        return shown_address(self.address) if self.address else str(self.path)


@dataclass(frozen=True)
class Sources:
    """All files, images and videos each in the order they were named, and what was named but is not there.

    Attributes:
        live: the camera or stream among them, if there is one.
    """

    images: tuple[SourceFile, ...]
    videos: tuple[SourceFile, ...]
    problems: tuple[Problem, ...]
    live: SourceFile | None = None


@dataclass
class _Found:
    files: list[SourceFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)
    listed: dict[str, tuple[Path, int]] = field(default_factory=dict)
    """The list and the line of addresses that a list names."""


def find_sources(
    entries: Sequence[str],
    lines: Iterable[str] | None = None,
    *,
    downloads: Path,
    allow_download: bool = False,
) -> Sources:
    """Find the files that `--source` names, and fetch those that it names by address.

    A folder gives all images and videos below it, each named with its way from the folder; files of other kinds are
    passed over. A `.txt` list or standard input (`-`) has such an entry in each line; relative ones count from the
    list's folder, then from the current one.

    Args:
        entries: as typed.
        lines: of standard input; None reads `sys.stdin`.
        downloads: a folder for the files that come from addresses.
        allow_download: also addresses in lists are looked at.
    Raises:
        ValueError: something that is not there, an address that gives neither image nor video, more than one camera or
            stream, an unknown `~name`, or nothing to look at.
        OSError: a list cannot be read.
    """
    found = _Found()
    for entry in entries:
        if entry == STANDARD_INPUT:
            _add_list(sys.stdin if lines is None else lines, Path(), found, allow_download)
        elif Path(entry).suffix.lower() == ".txt" and not is_address(entry):
            path = with_home(entry)
            _add_list(_lines_of(path), path, found, allow_download)
        elif not _add(entry, found):
            raise ValueError(_absent(entry))
    if not found.files and not found.problems:
        raise ValueError(f"--source {' '.join(map(printable, entries))}: no image and no video there")
    _fetch(found, downloads)
    return _sorted(_with_distinct_names(found.files), tuple(found.problems))


def _sorted(files: Sequence[SourceFile], problems: tuple[Problem, ...]) -> Sources:
    live = [file for file in files if file.is_live]
    if len(live) > 1:
        named = " and ".join(shown_address(file.address) for file in live[:2])
        raise ValueError(f"--source: {named}: one camera or stream at a time; start a graph-predict for each")
    rest = [file for file in files if not file.is_live]
    videos = tuple(file for file in rest if file.path.suffix.lower() in VIDEO_ENDINGS)
    images = tuple(file for file in rest if file.path.suffix.lower() not in VIDEO_ENDINGS)
    return Sources(images, videos, problems, live[0] if live else None)


def _fetch(found: _Found, folder: Path) -> None:
    """Put a file, or a camera or stream, in the place of each address.

    Raises:
        ValueError: one that `--source` itself names gives nothing; of those in lists that is a problem.
    """
    waiting = [file.address for file in found.files if file.address]
    fetched = dict(zip(waiting, fetch_addresses(waiting, folder), strict=True))
    files = []
    for file in found.files:
        result = fetched.get(file.address, file.path)
        if isinstance(result, FetchError):
            if file.address not in found.listed:
                raise result
            found.problems.append(Problem(*found.listed[file.address], "error", str(result), "image-missing"))
        elif file.address:
            name = result_name(file.address, result)
            files.append(replace(file, path=result or name, name=name, is_live=result is None))
        else:
            files.append(file)
    found.files = files


def _lines_of(path: Path) -> list[str]:
    try:
        return os.fsdecode(read_regular(path, max_bytes=MAX_LIST_BYTES)).splitlines()
    except NotReadableError as error:
        raise ValueError(f"{printable(path)}: {error}; a list has the path of one image in each line") from None


def _add(entry: str, found: _Found) -> bool:
    """Add what an entry names; return False if there is nothing of that name."""
    if has_scheme(entry):
        return is_address(entry) and _add_address(entry, found)
    path = with_home(entry)
    if path.is_dir():
        below = sorted(
            file for file in walk_files(path, found.problems, progress="source") if file.suffix.lower() in _LOOKED_AT
        )
        found.files += [SourceFile(file, file.relative_to(path)) for file in below]
        return True
    if path.exists():
        found.files.append(SourceFile(path, Path(path.name)))
        return True
    if is_address(entry):
        return _add_address(entry, found)
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found.files += [SourceFile(match, Path(match.name)) for match in matches if match.is_file()]
        return bool(matches)
    return False


def _add_address(address: str, found: _Found) -> bool:
    if address not in found.addresses:
        found.addresses.add(address)
        found.files.append(SourceFile(Path(), Path(), address))
    return True


def _add_list(lines: Iterable[str], file: Path, found: _Found, allow_download: bool) -> None:
    """Add the entries of a list; what is missing is a problem of its own, the others are used."""
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        where = file if file != Path() else Path("standard input")
        if has_scheme(entry) and is_address(entry) and not allow_download:
            text = f"{shown_address(entry)}: give {ALLOW_DOWNLOAD} to look at addresses that a list names"
            found.problems.append(Problem(where, number, "error", text, "image-missing"))
            continue
        found.listed[entry] = (where, number)
        is_path = not (entry.startswith("~") or has_scheme(entry) or glob.has_magic(entry))
        there = str(listed_image(entry, file)) if is_path else entry
        if not _add(there, found):
            found.problems.append(Problem(where, number, "error", _absent(entry), "image-missing"))


def _absent(entry: str) -> str:
    if has_scheme(entry):
        return f"{shown_address(entry)}: no address that can be opened; those of {', '.join(STREAM_PORTS)} are"
    if entry.lower().startswith("screen"):
        return f"{printable(entry)}: the screen is not recorded; save images or a video first"
    return f"{printable(entry)}: no such file, folder or match"


def _with_distinct_names(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Rename files of one name in several folders `name_2`, `name_3` …; a file named twice is used once."""
    taken: set[Path] = set()
    seen: set[Path | str] = set()
    apart = []
    for file in files:
        resolved = file.address or file.path.absolute()
        if resolved in seen:
            continue
        seen.add(resolved)
        unused, number = file.name, 2
        while unused.with_suffix("") in taken:
            unused, number = file.name.with_stem(f"{file.name.stem}_{number}"), number + 1
        taken.add(unused.with_suffix(""))
        apart.append(replace(file, name=unused))
    return apart
