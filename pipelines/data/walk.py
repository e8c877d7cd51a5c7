"""Robust directory walks: link loops, kernel file systems, and millions of files in a folder given by mistake."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from kernels.host.paths import printable
from pipelines.data.problems import Problem

_log = logging.getLogger("graph_train")
_LOG_INTERVAL_SECONDS = 30.0
"""Interval of log messages of a long walk, if no bar is shown."""
_BAR_AFTER_SECONDS = 1.0
"""Duration of a walk after which a bar is shown."""
_KERNEL_FILE_SYSTEMS = frozenset(
    "bpf cgroup cgroup2 configfs debugfs devpts mqueue proc pstore securityfs sysfs tracefs".split()
)
"""Kernel file systems, without user files."""


def walk_files(folder: Path, problems: list[Problem], *, progress: str | None = None) -> Iterator[Path]:
    """Yield the files of `walk_texts` as paths."""
    return map(Path, walk_texts(folder, problems, progress=progress))


def walk_texts(folder: Path, problems: list[Problem], *, progress: str | None = None) -> Iterator[str]:
    """Yield all files in a folder, recursively and following links; each folder is visited only once.

    Yields strings, because large data sets are walked at every start and creating a `Path` takes ten times as long.

    Args:
        folder: the folder.
        problems: unreadable folders are added to this list.
        progress: name of the progress bar; None shows none.
    Raises:
        ValueError: `folder` is in a kernel file system; such subfolders are ignored.
    """
    entered, kernel = set(), _kernel_devices()
    if (kind := kernel.get(os.stat(folder).st_dev)) is not None:
        raise ValueError(f"{printable(folder)}: is a kernel file system ({kind}); give a folder of images")

    def note(error: OSError) -> None:
        text = f"folder cannot be read: {error.strerror}; skipped"
        problems.append(Problem(Path(error.filename), None, "error", text, "source"))

    with _Counter(folder, progress) as counter:
        for parent, folders, files in os.walk(folder, followlinks=True, onerror=note):
            status = _status(parent)
            if status is None or status.st_dev in kernel or (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            folders.sort()
            counter.add(parent, len(files))
            before = str(Path(parent, "x"))[:-1]
            yield from (before + name for name in files)


def _status(folder: str) -> os.stat_result | None:
    """Return a folder's status, or None if it no longer exists."""
    try:
        return os.stat(folder)
    except OSError:
        return None


def _kernel_devices() -> dict[int, str]:
    """Return the device number and type of each mounted kernel file system."""
    found = {}
    with suppress(OSError, ValueError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            place, _, source = line.partition(" - ")
            kind = source.split(" ", 1)[0]
            if kind in _KERNEL_FILE_SYSTEMS:
                major, minor = place.split(" ")[2].split(":")
                found[os.makedev(int(major), int(minor))] = kind
    return found


class _Counter:
    """Display of the number of files: a progress bar, or occasional log messages without a terminal."""

    def __init__(self, folder: Path, progress: str | None) -> None:
        self._folder, self._files, self._shown = folder, 0, progress is not None
        self._next = time.monotonic() + _LOG_INTERVAL_SECONDS
        self._bar = tqdm(
            desc=f"{progress}: reading {printable(folder)}",
            unit=" files",
            disable=progress is None or None,
            delay=_BAR_AFTER_SECONDS,
            leave=False,
        )

    def __enter__(self) -> "_Counter":
        return self

    def add(self, parent: str, files: int) -> None:
        """Count the files of a folder."""
        self._files += files
        self._bar.update(files)
        if self._shown and self._bar.disable and time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_INTERVAL_SECONDS
            _log.warning(
                "%s: still reading, %d files so far, now in %s", printable(self._folder), self._files, printable(parent)
            )

    def __exit__(self, *_: object) -> None:
        self._bar.close()
