"""The command-line entry points: each parses its flags and calls the function that does the work."""

import os
import sys
from types import TracebackType


def _print_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print Ctrl-C as one line; Python then ends the process with the signal."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv and os.path.basename(sys.argv[0]).startswith("graph-") and sys.excepthook is sys.__excepthook__:
    # Ctrl-C while the command's own modules are imported, before `run_command` could catch it.
    sys.excepthook = _print_interrupted
