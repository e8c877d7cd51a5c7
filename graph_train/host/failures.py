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


class StoppedInOrder(KeyboardInterrupt):
    """A signal ended the run where all ranks have agreed to end it."""


RANK_LOST = 5
"""Exit code of the ranks that are left when one of several is lost; they end without unwinding."""


class ToldElsewhereError(Exception):
    """This rank of several has failed, and rank 0's side says why; `__cause__` is what happened."""
