"""The entry points of the installed commands. Their modules are imported only here, where Ctrl-C prints one line."""

import os
import sys
from functools import partial
from importlib import import_module
from types import TracebackType


def _run(command: str) -> int:
    """Import a command and run it. Ctrl-C during the import would otherwise print a traceback."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_interrupted
    code: int = import_module(f"graph_train.cli.{command}").main()
    return code


def _print_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print Ctrl-C as one line; Python then ends the process with the signal."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


train = partial(_run, "train")
val = partial(_run, "val")
predict = partial(_run, "predict")
check = partial(_run, "check")
export = partial(_run, "export")
