"""The output folder of a run: name, lock, log, checkpoints, and finding the run to resume."""

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from graph_train.host.terminal import LogFile, TerminalHandler, as_line
from graph_train.runs.checkpoint import Checkpoint, load_checkpoint
from graph_train.runs.cursor import Cursor
from graph_train.runs.saved_header import read_header
from graph_train.settings.hyperparameters import Hyperparameters
from graph_train.settings.train_options import TrainOptions
from kernels.host.files import older, remove_leftovers, write_atomically
from kernels.host.paths import not_writable, printable

LOG = logging.getLogger("graph_train")
LAST, BEST = "last.safetensors", "best.safetensors"
EARLIER, DAMAGED = "last.earlier.safetensors", "last.damaged.safetensors"
EARLIER_BEST, DAMAGED_BEST = "best.earlier.safetensors", "best.damaged.safetensors"
"""Names for checkpoints or weights of an earlier run in the folder, and for damaged ones."""
LOCK, LOG_FILE = ".lock", "train.log"
_MAX_OWNER_LENGTH = 20
_WRITTEN = ("*.yaml", "*.csv", "*.png", "*.jpg", "report.*", "problems.txt", "*_id.txt", "weights/*.safetensors")
"""Files of a run, which replace existing files of the same name."""
_OWN_NAMES = (
    *"hyp.yaml hyp_evolve.yaml results.* report.* evolve.* problems.txt labels.jpg".split(),
    *"train_batch*.jpg val_batch*.jpg confusion_matrix.png *_curve.png".split(),
    *"weights/last*.safetensors weights/best*.safetensors".split(),
)
"""Names of these files."""
SETTINGS, HYPERPARAMETERS = "opt.yaml", "hyp.yaml"
LOCATION_FLAGS = ("project", "name", "exist_ok", "resume")
"""Flags that locate a run; they are not saved in checkpoints, so that equal runs have equal checkpoints."""


class RunFolder:
    """The folder project/name with its `weights` folder, locked so that two runs never write into it."""

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        """Create and lock the folder, and remove temporary files of a killed run.

        Args:
            resumed: the run must stay in this folder, so error messages do not suggest another.
        Raises:
            ValueError: another run is using the folder, or one of its files is a link or not a regular file.
            OSError: the folder cannot be created or written.
        """
        self.path = path
        self._alternative = "" if resumed else " or choose another --name"
        self.weights = path / "weights"
        self._handlers: list[logging.Handler] = []
        self._logging_before = (LOG.level, LOG.propagate)
        if os.path.lexists(self.weights) and not self.weights.is_dir():
            raise ValueError(f"{printable(self.weights)}: is not a folder; move it away{self._alternative}")
        try:
            self.weights.mkdir(parents=True, exist_ok=True)
            self._reject_other_kinds()
            self._lock = self._acquire_lock()
            for folder in (path, self.weights):
                remove_leftovers(folder)
        except OSError as error:
            remedy = "choose another --project or --name"
            if resumed:
                remedy = "a resumed run stays in its folder: make it writable, or copy it and resume the copy"
            reason = f"run folder cannot be used ({error.strerror}); {remedy}"
            raise OSError(f"{printable(path)}: {reason}") from None

    def _reject_other_kinds(self) -> None:
        """Reject folders and pipes in place of a run's files early, instead of at the first write.

        Raises:
            ValueError: there is one.
        """
        written = [path for pattern in _WRITTEN for path in self.path.glob(pattern)]
        for path in sorted(written):
            if path.exists() and not path.is_file():
                raise ValueError(f"{printable(path)}: not a regular file; remove it{self._alternative}")

    def _acquire_lock(self) -> IO[str]:
        lock = self._open_for_append(LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read(_MAX_OWNER_LENGTH).strip() or "unknown"
            lock.close()
            raise ValueError(
                f"{printable(self.path)}: another run (process {printable(owner)}) is using this folder; wait until it "
                f"ends{self._alternative}"
            ) from None
        lock.seek(0)
        before = lock.read(_MAX_OWNER_LENGTH)
        if before and not (before.isascii() and before.isdigit()):
            lock.close()
            raise ValueError(
                f"{printable(self.path / LOCK)}: not a lock file, it has other content; move it away{self._alternative}"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _open_for_append(self, name: str) -> IO[str]:
        """Open a file of the run for appending; create it if it is missing.

        Raises:
            ValueError: the path is a link or not a regular file.
            OSError: the file cannot be written.
        """
        path = self.path / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            kind = "is a symbolic link" if path.is_symlink() else "is not a regular file"
            raise ValueError(f"{printable(path)}: {kind}; remove it{self._alternative}")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(path, flags, 0o666), "a+", encoding="utf-8", errors="replace")

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.weights / LAST

    def checkpoints(self) -> list[Path]:
        """Return the existing checkpoints, newest first, see `--keep-saves`."""
        return _generations(self.weights)

    def newest_intact(self) -> Checkpoint | None:
        """Return the newest readable checkpoint, or None if there is none; rename a damaged newer one.

        Raises:
            ValueError: all checkpoints are damaged.
        """
        damaged: list[str] = []
        for path in self.checkpoints():
            try:
                checkpoint = load_checkpoint(path)
                cursor = _cursor(checkpoint, path)
            except (ValueError, OSError) as error:
                damaged.append(str(error))
                continue
            for text in damaged:
                LOG.warning("%s", as_line(text))
            if damaged:
                LOG.warning(
                    "Using the previous checkpoint: %s (epoch %d, batch %d)",
                    printable(path),
                    cursor.epoch,
                    cursor.next_batch,
                )
                self._set_aside_newer_than(path)
            return checkpoint
        if damaged:
            raise ValueError("no checkpoint can be read: " + "; ".join(damaged))
        return None

    def _set_aside_newer_than(self, intact: Path) -> None:
        """Make `intact` the newest checkpoint; rename the newest damaged one and delete the others."""
        found = self.checkpoints()
        newer = found[: found.index(intact)]
        os.replace(newer[0], self.weights / DAMAGED)
        for path in newer[1:]:
            path.unlink()
        os.replace(intact, self.last)

    def reject_as_weights(self, weights: str) -> None:
        """Reject initial weights that `set_aside_earlier` would rename or replace before they are loaded.

        Raises:
            ValueError: they are a checkpoint or the best weights of the earlier run in this folder.
        """
        path = Path(weights)
        own = {*self.checkpoints(), self.best, self.weights / EARLIER, self.weights / EARLIER_BEST}
        if weights and any(file.exists() and path.exists() and file.samefile(path) for file in own):
            raise ValueError(
                f"--weights {printable(path)}: belongs to the earlier run in this folder, which --exist-ok replaces; "
                "choose another --name, or copy the file elsewhere first"
            )

    def set_aside_earlier(self) -> None:
        """Rename the newest checkpoint and the best weights of an earlier run in this folder."""
        found = self.checkpoints()
        if found:
            os.replace(found[0], self.weights / EARLIER)
            LOG.info("Kept the last checkpoint of the earlier run as %s", printable(self.weights / EARLIER))
        for path in found[1:]:
            path.unlink()
        if self.best.exists():
            os.replace(self.best, self.weights / EARLIER_BEST)

    def set_aside_damaged_best(self) -> None:
        """Rename damaged best weights, on which a resumed run would fail in its final validation."""
        from models.weights import load_weights

        if not self.best.exists():
            return
        try:
            load_weights(self.best)
        except ValueError as error:
            os.replace(self.best, self.weights / DAMAGED_BEST)
            LOG.warning(
                "%s; renamed to %s; there are no best weights until an epoch improves on all earlier ones",
                as_line(str(error)),
                printable(self.weights / DAMAGED_BEST),
            )

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.weights / BEST

    def open_log(self) -> None:
        """Log to the terminal and, with timestamps, to `train.log`."""
        console = TerminalHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        self._open_for_append(LOG_FILE).close()
        file = LogFile(self.path / LOG_FILE, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logging_before = LOG.level, LOG.propagate
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        for handler in (console, file):
            LOG.addHandler(handler)
            self._handlers.append(handler)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Disable logging, for processes that must not log."""
        before = LOG.propagate, LOG.disabled
        LOG.propagate, LOG.disabled = False, True
        try:
            yield
        finally:
            LOG.propagate, LOG.disabled = before

    def close(self) -> None:
        """Close the log and release the lock."""
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()
        if self._handlers:
            level, LOG.propagate = self._logging_before
            LOG.setLevel(level)
        self._handlers.clear()
        self._lock.close()


def save_settings(folder: Path, options: TrainOptions, hyp: Hyperparameters) -> None:
    """Save the settings of a run in its folder.

    Raises:
        OSError: a file cannot be written.
    """
    hyp.save(folder / HYPERPARAMETERS)
    # Written last, because a folder with this file can be resumed.
    write_atomically(folder / SETTINGS, yaml.safe_dump(options.as_flat_dict(), sort_keys=False))


def new_run_folder(project: str, name: str, *, exist_ok: bool) -> RunFolder:
    """Create the folder of a new run, see `make_unused_folder`.

    Raises:
        ValueError: with `exist_ok`, the folder is no run folder, but has files that a run would replace.
    """
    path = make_unused_folder(project, name, exist_ok=exist_ok)
    _reject_files_of_others(path)
    return RunFolder(path)


def _reject_files_of_others(path: Path) -> None:
    """Reject a folder that is no run folder, such as that of the project, if a run would replace files in it."""
    if any(os.path.lexists(path / name) for name in (LOCK, SETTINGS)):
        return
    found = sorted(file for pattern in _OWN_NAMES for file in path.glob(pattern))
    if found:
        raise ValueError(
            f"{printable(path)}: is not a run folder, and a run would replace files in it, such as "
            f"{printable(found[0].name)}; choose another --name"
        )


def unused_path(project: str, name: str, *, exist_ok: bool) -> Path:
    """Return project/name or, if that exists and not `exist_ok`, the first unused of project/name2, name3, ….

    Raises:
        ValueError: project and name together do not name a folder.
    """
    base = Path(project) / name
    if exist_ok or not os.path.lexists(base):
        return base
    if not base.name:
        raise ValueError(f"--project {project!r} --name {name!r}: does not name a new folder; give a --name")
    number = 2
    while os.path.lexists(candidate := base.with_name(f"{base.name}{number}")):
        number += 1
    return candidate


def make_unused_folder(project: str, name: str, *, exist_ok: bool) -> Path:
    """Create the folder that `unused_path` returns; safe against concurrent commands.

    Raises:
        OSError: it cannot be created.
    """
    while True:
        folder = unused_path(project, name, exist_ok=exist_ok)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=exist_ok)
        except OSError as error:
            # Another command may have made the folder at the same moment.
            if exist_ok or not (isinstance(error, FileExistsError) and os.path.isdir(folder)):
                raise _not_creatable(folder, error.strerror) from None
        else:
            return folder


def require_possible_folder(project: str, name: str, *, exist_ok: bool) -> None:
    """Reject a results folder that `make_unused_folder` cannot create, before work that takes long; leaves no trace.

    Raises:
        ValueError: project and name together do not name a folder.
        OSError: it cannot be created.
    """
    folder = unused_path(project, name, exist_ok=exist_ok)
    nearest = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if reason := not_writable(nearest):
        raise _not_creatable(folder, reason)


def _not_creatable(folder: Path, reason: str | None) -> OSError:
    return OSError(
        f"{printable(folder)}: the results folder cannot be created ({reason}); choose another --project or --name"
    )


@dataclass(frozen=True)
class ResumePoint:
    """The run and checkpoint given by `--resume`."""

    folder: Path
    file: Path | None = None
    """The given checkpoint, or None for the newest readable one."""


def _cursor(checkpoint: Checkpoint, path: Path) -> Cursor:
    try:
        return read_header(checkpoint.header).cursor
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _generations(weights: Path) -> list[Path]:
    last, found, generation = weights / LAST, [], 1
    if last.is_file():
        found.append(last)
    while (path := older(last, generation)).is_file():
        found.append(path)
        generation += 1
    return found


def _latest_change(folder: Path) -> float:
    """Return the time at which a run was last saved or started; minus infinity for a folder without a run."""
    settings = folder / SETTINGS
    files = [*_generations(folder / "weights"), *([settings] if settings.is_file() else [])]
    return max((path.stat().st_mtime for path in files), default=float("-inf"))


def _latest_change_if_readable(folder: Path) -> float:
    """Return `_latest_change`, or minus infinity for a folder that this user may not read."""
    try:
        return _latest_change(folder)
    except PermissionError:
        return float("-inf")


def point_to_resume(resume: str, project: str) -> ResumePoint:
    """Find the run for `--resume`: "last" (the most recent in the project), a run folder or a checkpoint.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    if resume == "last":
        changes = {path: _latest_change_if_readable(path) for path in Path(project).glob("*")}
        newest = max(changes, key=changes.__getitem__, default=Path())
        if changes.get(newest, float("-inf")) == float("-inf"):
            raise ValueError(f"--resume: no run in {project}; give a checkpoint, or start a run without --resume")
        return ResumePoint(newest)
    path = Path(resume)
    if path.is_dir():
        if _latest_change(path) == float("-inf"):
            if _generations(path):
                raise ValueError(f"--resume {resume}: is the weights folder of a run; give the run's folder")
            raise ValueError(f"--resume {resume}: no checkpoint {path / 'weights' / LAST} and no {SETTINGS}")
        return ResumePoint(path)
    if path.name == LAST and _generations(path.parent):
        return ResumePoint(_run_of(path))
    if not path.is_file():
        raise ValueError(f"--resume {resume}: no checkpoint at {path}")
    if path.suffix != Path(LAST).suffix:
        raise ValueError(f"--resume {resume}: not a checkpoint; to start a new run from weights, use --weights")
    return ResumePoint(_run_of(path), path)


def _run_of(path: Path) -> Path:
    folder = path.absolute().parent
    if folder.name != "weights":
        raise ValueError(
            f"--resume {path}: must be in the weights folder of its run; to start a new run from a file, use --weights"
        )
    # A bare file name has no parent folders.
    return path.parent.parent if path.parent.name else folder.parent
