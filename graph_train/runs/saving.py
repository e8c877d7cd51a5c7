"""Saving a run: when it is due, writing in a thread beside the training, what happens when the disk refuses."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graph_train.host.failures import DivergedError, NotSavedError
from graph_train.runs.checkpoint import Checkpoint, save_checkpoint
from graph_train.runs.run_folder import RunFolder
from graph_train.settings.train_options import RunOptions
from models.weights import WeightsCopy

LOG = logging.getLogger("graph_train")
_REMIND_SECONDS = 60.0
"""A disk that goes on refusing is reported no more often than this."""


@dataclass(frozen=True)
class Snapshot:
    """The content of one save; all of it copied, so that the training may go on meanwhile."""

    checkpoint: Checkpoint
    best: WeightsCopy | None = None
    """Weights of the best epoch, if this is it. They are written first: a kill in between repeats the epoch."""
    copies: Sequence[Path] = ()
    """More files for the same checkpoint, which stay."""


class Saving:
    """The writer of a run's checkpoints, one at a time.

    Args:
        folder: where to.
        options: how often, how many are kept, and what an error means.
        require_finite: a state that is not finite ends the run; it is never written.
    """

    def __init__(self, folder: RunFolder, options: RunOptions, *, require_finite: bool = True) -> None:
        self._folder, self._options, self._require_finite = folder, options, require_finite
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._not_finite = ""
        self._behind: OSError | None = None
        """Why the newest state is not on the disk."""
        self._due = False
        self._last_start = time.monotonic()
        self._reminded = float("-inf")

    def due(self, number: int) -> bool:
        """Return whether to save after batch `number` of the run (from 0).

        A save that falls due while the one before it is still being written waits for the next batch after that.
        """
        options = self._options
        if options.save_steps and (number + 1) % options.save_steps == 0:
            self._due = True
        if options.save_minutes and time.monotonic() - self._last_start >= 60 * options.save_minutes:
            self._due = True
        return self._due and not (self._thread is not None and self._thread.is_alive())

    def start(self, snapshot: Snapshot) -> None:
        """Begin to write, after what is being written now.

        Raises:
            NotSavedError: the write before failed and `--on-save-error` is stop.
            DivergedError: the state before was not finite.
        """
        self.finish()
        self._due, self._last_start = False, time.monotonic()
        self._thread = threading.Thread(target=self._work, args=(snapshot,), name="graph-train-saving", daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Check the latest write, if it is over; return False if nothing was written. It never waits.

        Raises:
            NotSavedError: it failed and `--on-save-error` is stop.
            DivergedError: the state was not finite.
        """
        if self._thread is not None and self._thread.is_alive():
            return True
        return self._outcome()

    def finish(self) -> bool:
        """Wait for the write under way; otherwise as `check`."""
        if self._thread is not None:
            self._thread.join()
        return self._outcome()

    def _outcome(self) -> bool:
        self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            self._behind = error
            self.failed(error)
        elif error is not None:
            raise error
        return error is None and self._is_sound()

    def _is_sound(self) -> bool:
        bad, self._not_finite = self._not_finite, ""
        if not bad:
            return True
        text = f"{bad} holds numbers that are not finite; {self._kept()}"
        if self._require_finite:
            again = "start again from it with --weights and" if self._folder.checkpoints() else "start again with"
            raise DivergedError(f"stopped: {text}; {again} a lower lr0")
        LOG.warning("Not saved: %s", text)
        return False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Treat errors in files that the training itself writes as those of a checkpoint."""
        try:
            yield
        except OSError as error:
            # Images, too, are read in here.
            if not error.filename or not Path(error.filename).is_relative_to(self._folder.path):
                raise
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """Report what could not be written.

        Raises:
            NotSavedError: `--on-save-error` is stop.
        """
        if self._options.on_save_error == "stop":
            raise self._refused(error) from error
        if time.monotonic() - self._reminded >= _REMIND_SECONDS:
            self._reminded = time.monotonic()
            LOG.error("%s; %s; the training goes on (--on-save-error continue)", self._what(error), self._kept())

    def require_saved(self) -> None:
        """Require at the end of a run that its state is saved.

        Raises:
            NotSavedError: the state that was to be saved last is not on the disk.
        """
        if self._behind is not None:
            raise self._refused(self._behind)

    def _refused(self, error: OSError) -> NotSavedError:
        return NotSavedError(
            f"{self._what(error)}; {self._kept()}; repair that and go on with: graph-train --resume {self._folder.path}"
        )

    def _what(self, error: OSError) -> str:
        return f"{error.filename or self._folder.path}: cannot be written ({error.strerror or error})"

    def _kept(self) -> str:
        found = self._folder.checkpoints()
        return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint yet"

    def _work(self, snapshot: Snapshot) -> None:
        try:
            self._not_finite = snapshot.checkpoint.first_not_finite()
            if self._not_finite:
                return
            if snapshot.best is not None:
                snapshot.best.write(self._folder.best)
            save_checkpoint(self._folder.last, snapshot.checkpoint, keep=self._options.keep_saves)
            for path in snapshot.copies:
                save_checkpoint(path, snapshot.checkpoint)
            self._behind = None
        except BaseException as error:  # handed over to the training's thread
            self._error = error
