"""Saving of checkpoints: schedule, background thread, and handling of write errors."""

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
from kernels.host.paths import printable, shell_word
from models.weights import WeightsCopy

LOG = logging.getLogger("graph_train")
_LOG_INTERVAL_SECONDS = 60.0
"""Minimum interval between repeated error messages."""


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint, copied so that training can continue while it is written."""

    checkpoint: Checkpoint
    best: WeightsCopy | None = None
    """Weights of the best epoch, if this is it; written first, so that a kill in between loses nothing."""
    copies: Sequence[Path] = ()
    """Additional files for the same checkpoint, which are not rotated."""


class Saving:
    """Background writer of a run's checkpoints, one at a time.

    Args:
        folder: the run folder.
        options: save interval, number of checkpoints to keep, and error handling.
        require_finite: whether a non-finite state stops the run; in any case it is not written.
    """

    def __init__(self, folder: RunFolder, options: RunOptions, *, require_finite: bool = True) -> None:
        self._folder, self._options, self._require_finite = folder, options, require_finite
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._not_finite = ""
        self._unsaved: OSError | None = None
        """The error that prevented saving the newest state, or None."""
        self._due = False
        self._last_start = time.monotonic()
        self._last_warning = float("-inf")

    def due(self, number: int) -> bool:
        """Return whether a save is due after batch `number` of the run (from 0).

        A save that becomes due while the previous one is still being written is deferred until that is done.
        """
        options = self._options
        if options.save_steps and (number + 1) % options.save_steps == 0:
            self._due = True
        if options.save_minutes and time.monotonic() - self._last_start >= 60 * options.save_minutes:
            self._due = True
        return self._due and not (self._thread is not None and self._thread.is_alive())

    def start(self, snapshot: Snapshot) -> None:
        """Start writing, after waiting for the previous write.

        Raises:
            NotSavedError: the previous write failed and `--on-save-error` is stop.
            DivergedError: the previous state was not finite.
        """
        self.finish()
        self._due, self._last_start = False, time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="graph-train-saving", daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Check the result of the latest write, without waiting; return False if it failed.

        Raises:
            NotSavedError: the write failed and `--on-save-error` is stop.
            DivergedError: the state was not finite.
        """
        if self._thread is not None and self._thread.is_alive():
            return True
        return self._check_outcome()

    def finish(self) -> bool:
        """Wait for the current write, then do as `check`."""
        if self._thread is not None:
            self._thread.join()
        return self._check_outcome()

    def _check_outcome(self) -> bool:
        self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            self._unsaved = error
            self.handle_error(error)
        elif error is not None:
            raise error
        return error is None and self._check_finite()

    def _check_finite(self) -> bool:
        bad, self._not_finite = self._not_finite, ""
        if not bad:
            return True
        text = f"{bad} is not finite; {self._last_saved()}"
        if self._require_finite:
            restart = "start a new run from it (--weights) with" if self._folder.checkpoints() else "start again with"
            raise DivergedError(f"stopped: {text}; {restart} a lower lr0")
        LOG.warning("Checkpoint not saved: %s", text)
        return False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Handle errors of other files in the run folder like those of a checkpoint."""
        try:
            yield
        except OSError as error:
            # Errors of other files, such as images, are not handled here.
            if not error.filename or not Path(error.filename).is_relative_to(self._folder.path):
                raise
            self.handle_error(error)

    def handle_error(self, error: OSError) -> None:
        """Handle a write error.

        Raises:
            NotSavedError: `--on-save-error` is stop.
        """
        if self._options.on_save_error == "stop":
            raise self._not_saved_error(error) from error
        if time.monotonic() - self._last_warning >= _LOG_INTERVAL_SECONDS:
            self._last_warning = time.monotonic()
            text = f"{self._describe(error)}; {self._last_saved()}"
            LOG.error("%s; training continues (--on-save-error continue)", text)

    def require_saved(self) -> None:
        """Require at the end of a run that its final state is saved.

        Raises:
            NotSavedError: the final state could not be saved.
        """
        if self._unsaved is not None:
            raise self._not_saved_error(self._unsaved)

    def _not_saved_error(self, error: OSError) -> NotSavedError:
        return NotSavedError(
            f"{self._describe(error)}; {self._last_saved()}; fix this and continue with: graph-train --resume "
            f"{shell_word(self._folder.path)}"
        )

    def _describe(self, error: OSError) -> str:
        return f"{printable(error.filename or self._folder.path)}: cannot be written ({error.strerror or error})"

    def _last_saved(self) -> str:
        found = self._folder.checkpoints()
        return f"the last good checkpoint is {printable(found[0])}" if found else "there is no checkpoint yet"

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._not_finite = snapshot.checkpoint.first_not_finite()
            if self._not_finite:
                return
            if snapshot.best is not None:
                snapshot.best.write(self._folder.best)
            save_checkpoint(self._folder.last, snapshot.checkpoint, keep=self._options.keep_saves)
            for path in snapshot.copies:
                save_checkpoint(path, snapshot.checkpoint)
            self._unsaved = None
        except BaseException as error:  # handed over to the training's thread
            self._error = error
