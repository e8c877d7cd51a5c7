"""Interpretation of `--source`: the images and videos to process, and the names of their results."""

import glob
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graph_train.prediction.addresses import fetch_addresses, has_scheme, is_address, result_name
from kernels.host.files import NotReadableError, read_regular
from kernels.host.paths import error_text, fitting_name, printable, with_home
from pipelines.data.fetching import ALLOW_DOWNLOAD, FetchError
from pipelines.data.listing import IMAGE_SUFFIXES, MAX_LIST_BYTES, UNSUPPORTED_SUFFIXES, listed_image
from pipelines.data.live import STREAM_PORTS, shown_address
from pipelines.data.problems import Problem
from pipelines.data.video import VIDEO_SUFFIXES
from pipelines.data.walk import walk_files

LOG = logging.getLogger("graph_train")
STANDARD_INPUT = "-"
_EXPECTED_LIST = "expected a list with one image path per line"
_FRAME_NUMBER_BYTES = 24
"""Room for `_2`, the number of a frame, and the suffix of a crop or label file."""
_STREAM_LIST_SUFFIX = ".streams"
"""Suffix of YOLOv5's lists of streams."""
_RECOGNISED_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | UNSUPPORTED_SUFFIXES
"""Suffixes of files to process in a folder; unsupported formats are reported."""


@dataclass(frozen=True)
class SourceFile:
    """A source file, camera or stream.

    Attributes:
        path: the file, possibly a downloaded copy.
        name: name of its results with suffix, relative to the results folder. The names of all files of a run are
            distinct, even without their suffixes.
        address: the URL it was downloaded from, or the camera or stream; "" for a local file.
        is_live: whether it is a camera or stream, without a file.
    """

    path: Path
    name: Path
    address: str = ""
    is_live: bool = False

    @property
    def shown(self) -> str:
        """The source as shown to the user: URL or path."""
        return shown_address(self.address) if self.address else str(self.path)


@dataclass(frozen=True)
class Sources:
    """All source files, images and videos each in the given order, and the problems with missing ones.

    Attributes:
        live: the camera or stream, if there is one.
    """

    images: tuple[SourceFile, ...]
    videos: tuple[SourceFile, ...]
    problems: tuple[Problem, ...]
    live: SourceFile | None = None


@dataclass
class _Collected:
    files: list[SourceFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)
    listed: dict[str, tuple[Path, int]] = field(default_factory=dict)
    """List file and line number of each URL in a list."""
    results: Path | None = None
    """Project and name of this prediction's results."""

    def without_results(self, files: Iterable[Path], folder: Path) -> list[Path]:
        """Return the files without those in results folders inside the folder."""
        if self.results is None or Path(os.path.realpath(folder)) not in self.results.parents:
            return list(files)
        files, kept = list(files), []
        name = re.compile(rf"{re.escape(self.results.name)}\d*")
        for file in files:
            above = Path(os.path.realpath(file)).parents
            if not any(path.parent == self.results.parent and name.fullmatch(path.name) for path in above):
                kept.append(file)
        if len(kept) < len(files):
            text = "%s: skipped %d files in %s, which are results of earlier predictions; give that folder to use them"
            LOG.info(text, printable(folder), len(files) - len(kept), printable(self.results.parent))
        return kept


def find_sources(
    entries: Sequence[str],
    lines: Iterable[str] | None = None,
    *,
    downloads: Path,
    allow_download: bool = False,
    results: Path | None = None,
) -> Sources:
    """Find the files given by `--source`, and download those given as URLs.

    A folder stands for all images and videos in it and its subfolders, named relative to the folder. A `.txt` list or
    standard input (`-`) has one entry per line; relative paths are resolved from the list's folder, then from the
    current one.

    Args:
        entries: the values of `--source`.
        lines: the lines of standard input; None reads `sys.stdin`.
        downloads: folder for downloaded files.
        allow_download: whether to download URLs in lists.
        results: project and name of the results; folders of results inside a source folder are skipped.
    Raises:
        ValueError: an entry does not exist, a URL is neither an image nor a video, there is more than one camera or
            stream, a `~name` is unknown, or there are no files.
        OSError: a list cannot be read.
    """
    collected = _Collected(results=None if results is None else Path(os.path.realpath(results)))
    for entry in entries:
        if entry == STANDARD_INPUT:
            _add_list(_standard_input() if lines is None else lines, Path(), collected, allow_download)
        elif Path(entry).suffix.lower() == ".txt" and not is_address(entry):
            path = with_home(entry)
            _add_list(_lines_of(path), path, collected, allow_download)
        elif not _add_entry(entry, collected):
            raise ValueError(_absent(entry))
    if not collected.files and not collected.problems:
        raise ValueError(f"--source {' '.join(map(printable, entries))}: no images or videos found")
    _fetch(collected, downloads)
    return _sorted(_with_distinct_names(collected.files), tuple(collected.problems))


def _sorted(files: Sequence[SourceFile], problems: tuple[Problem, ...]) -> Sources:
    live = [file for file in files if file.is_live]
    if len(live) > 1:
        named = " and ".join(shown_address(file.address) for file in live[:2])
        raise ValueError(f"--source: {named}: only one camera or stream per run is supported")
    rest = [file for file in files if not file.is_live]
    videos = tuple(file for file in rest if file.path.suffix.lower() in VIDEO_SUFFIXES)
    images = tuple(file for file in rest if file.path.suffix.lower() not in VIDEO_SUFFIXES)
    return Sources(images, videos, problems, live[0] if live else None)


def _fetch(collected: _Collected, folder: Path) -> None:
    """Download the URLs, and replace each by its file or by a live source.

    Raises:
        ValueError: a URL given directly in `--source` failed; a failed URL in a list is only a problem.
    """
    waiting = [file.address for file in collected.files if file.address]
    fetched = dict(zip(waiting, fetch_addresses(waiting, folder), strict=True))
    files = []
    for file in collected.files:
        result = fetched.get(file.address, file.path)
        if isinstance(result, FetchError):
            if file.address not in collected.listed:
                raise result
            collected.problems.append(Problem(*collected.listed[file.address], "error", str(result), "image-missing"))
        elif file.address:
            name = result_name(file.address, result)
            files.append(replace(file, path=result or name, name=name, is_live=result is None))
        else:
            files.append(file)
    collected.files = files


def _lines_of(path: Path) -> list[str]:
    try:
        content = read_regular(path, max_bytes=MAX_LIST_BYTES)
    except NotReadableError as error:
        raise ValueError(f"{printable(path)}: {error}; {_EXPECTED_LIST}") from None
    return _lines(content, printable(path))


def _standard_input() -> list[str]:
    """Return the lines of standard input.

    Raises:
        ValueError: it is closed, or endless.
    """
    if sys.stdin is None:
        raise ValueError(f"--source {STANDARD_INPUT}: standard input is closed; {_EXPECTED_LIST}")
    if not hasattr(sys.stdin, "buffer"):  # replaced by a stream of text, for instance in a notebook
        return sys.stdin.read().splitlines()
    content = sys.stdin.buffer.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(f"--source {STANDARD_INPUT}: more than {MAX_LIST_BYTES} bytes; {_EXPECTED_LIST}")
    return _lines(content, f"--source {STANDARD_INPUT}")


def _lines(content: bytes, name: str) -> list[str]:
    """Return the lines of a list, in which names may have any bytes but line ends; a byte order mark is ignored.

    Raises:
        ValueError: it contains NUL bytes, for instance because it is UTF-16.
    """
    if b"\0" in content:
        raise ValueError(f"{name}: binary content; {_EXPECTED_LIST}")
    return [os.fsdecode(line) for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()]


def _add_entry(entry: str, collected: _Collected) -> bool:
    """Add the files of an entry; return False if it does not exist."""
    if has_scheme(entry):
        return is_address(entry) and _add_address(entry, collected)
    path = with_home(entry)
    if path.is_dir():
        files = walk_files(path, collected.problems, progress="source")
        candidates = (file for file in files if file.suffix.lower() in _RECOGNISED_SUFFIXES)
        below = sorted(collected.without_results(candidates, path))
        collected.files += [SourceFile(file, file.relative_to(path)) for file in below]
        return True
    if path.suffix.lower() == _STREAM_LIST_SUFFIX and path.exists():
        raise ValueError(f"{printable(entry)}: lists of streams are not supported; run one command per stream")
    if path.exists():
        collected.files.append(SourceFile(path, Path(path.name)))
        return True
    if is_address(entry):
        return _add_address(entry, collected)
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        collected.files += [SourceFile(match, Path(match.name)) for match in matches if match.is_file()]
        return bool(matches)
    return False


def _add_address(address: str, collected: _Collected) -> bool:
    if address not in collected.addresses:
        collected.addresses.add(address)
        collected.files.append(SourceFile(Path(), Path(), address))
    return True


def _add_list(lines: Iterable[str], file: Path, collected: _Collected, allow_download: bool) -> None:
    """Add the entries of a list; a missing entry is recorded as a problem."""
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        where = file if file != Path() else Path("standard input")
        if has_scheme(entry) and is_address(entry) and not allow_download:
            text = f"{shown_address(entry)}: use {ALLOW_DOWNLOAD} to download URLs in lists"
            collected.problems.append(Problem(where, number, "error", text, "image-missing"))
            continue
        collected.listed[entry] = (where, number)
        is_path = not (entry.startswith("~") or has_scheme(entry) or glob.has_magic(entry))
        resolved = str(listed_image(entry, file)) if is_path else entry
        try:
            reason = "" if _add_entry(resolved, collected) else _absent(entry)
        except OSError as error:  # for instance a name that is too long, or a folder without permission
            reason = error_text(error)
        if reason:
            collected.problems.append(Problem(where, number, "error", reason, "image-missing"))


def _absent(entry: str) -> str:
    if has_scheme(entry):
        return f"{shown_address(entry)}: unsupported URL; supported are {', '.join(STREAM_PORTS)}"
    if entry.lower().startswith("screen"):
        return f"{printable(entry)}: screen capture is not supported; save images or a video first"
    return f"{printable(entry)}: no such file, folder or match"


def numbered(name: Path, number: int) -> Path:
    """Return `a_2.jpg` for `a.jpg` and 2, with the stem cut if it would be too long for a file name."""
    return name.with_name(fitting_name(name.stem, f"_{number}{name.suffix}"))


def _with_room(name: Path) -> Path:
    """Cut the name of a video so that frame numbers can be added to it."""
    if name.suffix.lower() not in VIDEO_SUFFIXES:
        return name
    room = "x" * _FRAME_NUMBER_BYTES
    return name.with_name(fitting_name(name.stem, name.suffix + room).removesuffix(room))


def _with_distinct_names(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Give files with equal names the names `name_2`, `name_3` …; drop repeated files."""
    taken: set[Path] = set()
    seen: set[Path | str] = set()
    following: dict[Path, int] = {}  # lower numbers of a name are taken
    distinct = []
    for file in files:
        resolved = file.address or file.path.absolute()
        if resolved in seen:
            continue
        seen.add(resolved)
        unused = wanted = _with_room(file.name)
        number = following.get(wanted, 2)
        while unused.with_suffix("") in taken:
            unused, number = numbered(wanted, number), number + 1
        following[wanted] = number
        taken.add(unused.with_suffix(""))
        distinct.append(replace(file, name=unused))
    return distinct
