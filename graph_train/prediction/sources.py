"""What `--source` means: which images and videos are looked at, and what the results of each are called."""

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernels.host.files import NotReadableError, read_regular
from kernels.host.paths import printable, with_home
from pipelines.data.listing import IMAGE_ENDINGS, MAX_LIST_BYTES, UNSUPPORTED_ENDINGS, listed_image
from pipelines.data.problems import Problem
from pipelines.data.video import VIDEO_ENDINGS
from pipelines.data.walk import walk_files

STANDARD_INPUT = "-"
_LOOKED_AT = IMAGE_ENDINGS | VIDEO_ENDINGS | UNSUPPORTED_ENDINGS
"""Files of a folder with these endings; those that are not supported are reported."""
_STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "screen")


@dataclass(frozen=True)
class SourceFile:
    """One file to look at; `name` is what its results are called, relative to the results folder, its ending included.
    No two files of a run share a name, whatever their endings."""

    path: Path
    name: Path


@dataclass(frozen=True)
class Sources:
    """All files, images and videos each in the order they were named, and what was named but is not there."""

    images: tuple[SourceFile, ...]
    videos: tuple[SourceFile, ...]
    problems: tuple[Problem, ...]


@dataclass
class _Found:
    files: list[tuple[Path, Path]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find_sources(entries: Sequence[str], lines: Iterable[str] | None = None) -> Sources:
    """Find the files that `--source` names.

    A folder gives all images and videos below it, each named with its way from the folder; files of other kinds are
    passed over. A `.txt` list or standard input (`-`) has such an entry in each line; relative ones count from the
    list's folder, then from the current one.

    Args:
        entries: as typed.
        lines: of standard input; None reads `sys.stdin`.
    Raises:
        ValueError: a camera or stream, something that is not there, an unknown `~name`, or nothing to look at.
        OSError: a list cannot be read.
    """
    found = _Found()
    for entry in entries:
        if entry == STANDARD_INPUT:
            _add_list(sys.stdin if lines is None else lines, Path(), found)
        elif Path(entry).suffix.lower() == ".txt":
            path = with_home(entry)
            _add_list(_lines_of(path), path, found)
        elif not _add(entry, found):
            raise ValueError(_absent(entry))
    if not found.files and not found.problems:
        raise ValueError(f"--source {' '.join(map(printable, entries))}: no image and no video there")
    files = _with_distinct_names(found.files)
    videos = tuple(file for file in files if file.path.suffix.lower() in VIDEO_ENDINGS)
    images = tuple(file for file in files if file.path.suffix.lower() not in VIDEO_ENDINGS)
    return Sources(images, videos, tuple(found.problems))


def _lines_of(path: Path) -> list[str]:
    try:
        return os.fsdecode(read_regular(path, max_bytes=MAX_LIST_BYTES)).splitlines()
    except NotReadableError as error:
        raise ValueError(f"{printable(path)}: {error}; a list has the path of one image in each line") from None


def _add(entry: str, found: _Found) -> bool:
    """Add the files that an entry names; return False if there is nothing of that name."""
    path = with_home(entry)
    if path.is_dir():
        below = sorted(
            file for file in walk_files(path, found.problems, progress="source") if file.suffix.lower() in _LOOKED_AT
        )
        found.files += [(file, file.relative_to(path)) for file in below]
        return True
    if path.exists():
        found.files.append((path, Path(path.name)))
        return True
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found.files += [(match, Path(match.name)) for match in matches if match.is_file()]
        return bool(matches)
    if entry.isnumeric() or entry.lower().startswith(_STREAMS):
        raise ValueError(f"--source {entry}: cameras, streams and addresses are not read; save images or a video first")
    return False


def _add_list(lines: Iterable[str], file: Path, found: _Found) -> None:
    """Add the entries of a list; what is missing is a problem of its own, the others are used."""
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        there = entry if entry.startswith("~") or glob.has_magic(entry) else str(listed_image(entry, file))
        if not _add(there, found):
            where = file if file != Path() else Path("standard input")
            found.problems.append(Problem(where, number, "error", _absent(entry), "image-missing"))


def _absent(entry: str) -> str:
    return f"{printable(entry)}: no such file, folder or match"


def _with_distinct_names(files: Sequence[tuple[Path, Path]]) -> list[SourceFile]:
    """Rename files of one name in several folders `name_2`, `name_3` …; a file named twice is used once."""
    taken: set[Path] = set()
    seen: set[Path] = set()
    apart = []
    for path, name in files:
        resolved = path.absolute()
        if resolved in seen:
            continue
        seen.add(resolved)
        unused, number = name, 2
        while unused.with_suffix("") in taken:
            unused, number = name.with_stem(f"{name.stem}_{number}"), number + 1
        taken.add(unused.with_suffix(""))
        apart.append(SourceFile(path, unused))
    return apart
