"""Exit codes, and the exceptions for failures of a run that are neither user errors nor bugs."""

DONE, INTERNAL_ERROR, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class RunEndedError(Exception):
    """The run has ended early; its last good checkpoint is intact. The message says why and what to do."""

    exit_code = INTERNAL_ERROR


class NotSavedError(RunEndedError):
    """A file of the run could not be saved."""

    exit_code = 3


class DivergedError(RunEndedError):
    """Too many consecutive losses or gradients were not finite."""

    exit_code = 4


class GracefulStop(KeyboardInterrupt):
    """A stop by a signal, at the same batch on all ranks."""


RANK_LOST = 5
"""Exit code of the remaining ranks when one is lost; they exit without unwinding."""


class AlreadyReportedError(Exception):
    """A failure that rank 0 or its watchdog reports; `__cause__` is the failure itself."""
