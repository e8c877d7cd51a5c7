"""How a command may end: its exit codes, and the ends of a run that are neither the user's mistake nor a defect of the
program, each with a code of its own.
"""

DONE, INTERNAL_ERROR, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class RunEndedError(Exception):
    """The run has ended before its time; its last good checkpoint is intact. The message says why and what to do."""

    exit_code = INTERNAL_ERROR


class NotSavedError(RunEndedError):
    """The disk refuses to be written."""

    exit_code = 3


class DivergedError(RunEndedError):
    """Losses or gradients were not finite for too long."""

    exit_code = 4


class GracefulStop(KeyboardInterrupt):
    """A stop by signal at a point that all ranks agreed on."""


RANK_LOST = 5
"""Exit code of the ranks that are left when one of several is lost; they end without unwinding."""


class AlreadyReportedError(Exception):
    """A failure of a rank that rank 0's side reports; `__cause__` is the failure itself."""
