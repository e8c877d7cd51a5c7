"""Execution of a command: errors are printed as one line, and the exit code depends on their kind."""

import contextlib
import errno
import logging
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

from graph_train.host.failures import DONE, INTERNAL_ERROR, INTERRUPTED, USER_ERROR, AlreadyReportedError, RunEndedError
from graph_train.host.interrupts import Terminable
from graph_train.host.terminal import TerminalHandler, as_line, robust_output
from kernels.host.paths import error_text

_MIN_OPEN_FILES = 20
_REMEDY = "start Python without this option"
_MEMORY_LIMITS = {"-d": resource.RLIMIT_DATA, "-v": resource.RLIMIT_AS}
_OUT_OF_MEMORY_MESSAGES = (
    "failed to map segment",
    "cannot map zero-fill pages",
    "cannot allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "allocate failed",
    "can't start new thread",
    "Resource temporarily unavailable",
)
"""Messages of libraries that could not allocate memory or start a thread."""


def run_command(name: str, command: Callable[[], int | None], *, debug: bool, process_ends: bool = False) -> int:
    """Run a command and convert an exception to a line on stderr and an exit code.

    ValueError and OSError are user errors (2), a `RunEndedError` has its own code, KeyboardInterrupt gives 130, also if
    caused by SIGTERM or SIGHUP, and anything else is an internal error (1). A closed output is not an error.

    Args:
        name: the command's name in messages.
        command: does the work and may return an exit code.
        debug: whether to print tracebacks.
        process_ends: whether the process exits with the returned code; signals are then ignored from the end of the
            command on, because they would replace the code or print tracebacks.
    """
    with robust_output(), _logging_restored(), warnings.catch_warnings():
        # Of damaged EXIF data, without the file's name. The image is used as it is stored.
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        try:
            with Terminable(process_ends=process_ends):
                return _exit_code(name, command, debug=debug)
        except KeyboardInterrupt:  # while the command's end was reported
            print(f"{name}: interrupted", file=sys.stderr)
            return INTERRUPTED


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """Undo `show_messages` at the end, so that a calling program keeps its own handlers."""
    log = logging.getLogger("graph_train")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


def _exit_code(name: str, command: Callable[[], int | None], *, debug: bool) -> int:
    try:
        _require_current_folder()
        _require_supported_python()
        _require_open_files()
        _require_progress_bars()
        return command() or DONE
    except AlreadyReportedError as error:
        return _code(error.__cause__)
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted", file=sys.stderr)
        return _code(error)
    except (ValueError, OSError, RunEndedError) as error:
        if debug:
            traceback.print_exc()
        print(f"{name}: {_out_of_memory_message(error) or one_line(error)}", file=sys.stderr)
        return _code(error)
    except Exception as error:
        return _report_internal_error(name, error, debug=debug)


def _report_internal_error(name: str, error: Exception, *, debug: bool) -> int:
    """Report an unexpected error; return the exit code."""
    if _is_interruption(error):
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    if debug:
        traceback.print_exc()
    if message := _out_of_memory_message(error):
        print(f"{name}: {message}", file=sys.stderr)
        return USER_ERROR
    if not debug:
        print("(use --debug to see the traceback)", file=sys.stderr)
    print(f"{name}: internal error: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    return _code(error)


def _is_interruption(error: Exception) -> bool:
    """Return whether the error is a Ctrl-C during the import of a native module, which turns it into an ImportError."""
    return isinstance(error, ImportError) and "KeyboardInterrupt" in str(error)


def _require_current_folder() -> None:
    """Reject a deleted working directory, in which relative paths have no meaning.

    Raises:
        OSError: the current folder does not exist.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OSError("the current folder has been deleted; change to another folder") from None


def _require_supported_python() -> None:
    """Reject modes of Python in which OneFlow does not work.

    Raises:
        ValueError: Python removes assertions, one of which registers OneFlow's session; is in development mode, in
            which OneFlow crashes when tensors are moved; or turns warnings into errors, also those of its modules.
    """
    if sys.flags.optimize:
        raise ValueError(f"Python removes assertions (-O, PYTHONOPTIMIZE), but OneFlow needs them; {_REMEDY}")
    if sys.flags.dev_mode:
        raise ValueError(f"OneFlow crashes in Python's development mode (-X dev, PYTHONDEVMODE); {_REMEDY}")
    for option in sys.warnoptions:
        action = option.partition(":")[0]
        if action and "error".startswith(action):
            raise ValueError(f"OneFlow cannot be imported if warnings are errors (-W error, PYTHONWARNINGS); {_REMEDY}")


def _require_open_files() -> None:
    """Reject a limit of open files with which the native libraries abort the process.

    Raises:
        ValueError: the limit is lower than what a training on one image needs.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < _MIN_OPEN_FILES:
        raise ValueError(f"`ulimit -n` is {limit}, too few open files; raise it (`ulimit -n 1024`)")


def _require_progress_bars() -> None:
    """Reject environment variables with which tqdm cannot be imported.

    Raises:
        ValueError: a variable for tqdm is not a number.
    """
    try:
        import tqdm  # noqa: F401
    except ValueError as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("TQDM_")))
        raise ValueError(f"{names}: not settings of tqdm, which shows the progress ({error}); remove it") from None


def _out_of_memory_message(error: BaseException) -> str:
    """Return a message if the error is a lack of memory, threads or open files, with the likely limit; "" otherwise."""
    text = one_line(error)
    if os.strerror(errno.EMFILE) in text:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{text}; `ulimit -n` is {limit}: raise it (`ulimit -n 1024`)"
    if not (isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY_MESSAGES)):
        return ""
    remedy = "free memory, or allow more threads (`ulimit -u`)"
    for flag, kind in _MEMORY_LIMITS.items():
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            remedy = f"`ulimit {flag}` is {limit / 1e9:.1f} GB: raise it (`ulimit {flag} unlimited`)"
    return f"out of memory or threads ({text}); {remedy}"


def _code(error: BaseException | None) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, RunEndedError):
        return error.exit_code
    return USER_ERROR if isinstance(error, ValueError | OSError) else INTERNAL_ERROR


def show_messages() -> None:
    """Print log messages to the terminal; for commands without a log file."""
    log = logging.getLogger("graph_train")
    console = TerminalHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [console]
    log.setLevel(logging.INFO)
    log.propagate = False


def one_line(error: BaseException) -> str:
    """Return an error's message as one line, with the file name for an OSError."""
    return as_line(error_text(error)) or type(error).__name__
