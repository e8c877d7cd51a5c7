"""The output folder of a run: its name, its lock, its log, and finding the one to resume."""

import fcntl
import logging
import os
import sys
from pathlib import Path
from typing import IO

from graph_train.progress import TerminalHandler
from pipelines.problems import printable

LOG = logging.getLogger("graph_train")
LAST, BEST = "last.safetensors", "best.safetensors"


class RunFolder:
    """project/name with its `weights` folder, held by a lock so that two runs never write into one folder."""

    def __init__(self, path: Path) -> None:
        """Creates and locks the folder.

        Raises:
            ValueError: another run holds it.
            OSError: it cannot be made.
        """
        self.path = path
        self.weights = path / "weights"
        try:
            self.weights.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (path / ".lock").open("a+")
        except OSError as error:
            reason = f"the run's folder cannot be used ({error.strerror}); choose another --project or --name"
            raise OSError(f"{printable(path)}: {reason}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise ValueError(
                f"{path}: another run (process {owner}) is writing there; choose another --name or wait"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._handlers: list[logging.Handler] = []

    @property
    def last(self) -> Path:
        """Checkpoint with the whole state after the latest epoch."""
        return self.weights / LAST

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.weights / BEST

    def open_log(self) -> None:
        """Sends the run's messages to the terminal and, with times, to `train.log`."""
        console = TerminalHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        file = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        for handler in (console, file):
            LOG.addHandler(handler)
            self._handlers.append(handler)

    def close(self) -> None:
        """Ends the log and gives the folder free."""
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()
        self._handlers.clear()
        self._lock.close()


def new_run_folder(project: str, name: str, *, exist_ok: bool) -> RunFolder:
    """The folder of a run, see `unused_path`."""
    return RunFolder(unused_path(project, name, exist_ok=exist_ok))


def unused_path(project: str, name: str, *, exist_ok: bool) -> Path:
    """project/name, or project/name2, name3, … where that exists already (unless `exist_ok`)."""
    base = Path(project) / name
    if exist_ok or not base.exists():
        return base
    number = 2
    while (candidate := base.with_name(f"{base.name}{number}")).exists():
        number += 1
    return candidate


def checkpoint_to_resume(resume: str, project: str) -> Path:
    """The checkpoint that `--resume` means: "last" is the newest run below the project, else a run folder or a file.

    Raises:
        ValueError: nothing to resume.
    """
    if resume == "last":
        found = sorted(Path(project).glob(f"*/weights/{LAST}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ValueError(f"--resume: no {LAST} below {project}; name a checkpoint, or start a run without --resume")
        return found[-1]
    path = Path(resume)
    if path.is_dir():
        path = path / "weights" / LAST
    if not path.is_file():
        raise ValueError(f"--resume {resume}: no checkpoint at {path}")
    return path
