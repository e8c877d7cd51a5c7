"""Signal handling: SIGINT and SIGTERM stop a run after saving; SIGHUP does not."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
_PR_SET_PDEATHSIG = 1
_CLEAN_UP_SECONDS = 3.0
"""Time after an interruption in which another one is ignored, because it would cut the clean-up short."""
_EXIT_SECONDS = 120
"""Time in which Python must have exited, as signals cannot end a library that hangs in its clean-up."""


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this helper process when its parent dies.

    Args:
        parent: the parent's process id; if it is gone already, this process ends at once.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class _Signals:
    """Context that installs signal handlers and restores the previous ones; does nothing outside the main thread."""

    def __init__(self, handlers: dict[int, Handler]) -> None:
        self._handlers = handlers
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Any:
        for number, handler in self._handlers.items():
            # A process started with nohup ignores SIGHUP altogether.
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._previous[number] = signal.signal(number, handler)
            except ValueError:  # not in the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, unless an enclosing context of this module ignores the signal."""
        outer = getattr(self._previous.get(number), "__self__", None)
        if not isinstance(outer, _Signals):
            raise KeyboardInterrupt
        outer._interrupt(number, frame)


class Terminable(_Signals):
    """Context in which SIGTERM and SIGHUP interrupt like SIGINT, unless they are handled or ignored already.

    Without it, they end the process before it removes its temporary files. Further signals are ignored for a few
    seconds, because a second one, sent at the same time or by an impatient user, would interrupt the clean-up.

    Args:
        process_ends: ignore the signals afterwards instead of restoring their handlers, because the process ends with
            an exit code that a signal must not replace. If it still exists after two minutes, SIGALRM ends it.
    """

    def __init__(self, *, process_ends: bool = False) -> None:
        self._process_ends = process_ends
        self._interrupted = float("-inf")
        usual = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }
        unhandled = (number for number, handler in usual.items() if signal.getsignal(number) == handler)
        super().__init__(dict.fromkeys(unhandled, self._interrupt))

    def __exit__(self, *_: object) -> None:
        if self._process_ends:
            self._previous = dict.fromkeys(self._previous, signal.SIG_IGN)
            if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
                signal.alarm(_EXIT_SECONDS)
        super().__exit__()

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - self._interrupted > _CLEAN_UP_SECONDS:
            self._interrupted = time.monotonic()
            raise KeyboardInterrupt


class Uninterrupted(_Signals):
    """Context that delays SIGINT, SIGTERM and SIGHUP until its end, for clean-up."""

    def __init__(self) -> None:
        self._delayed: list[int] = []
        super().__init__(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._delay))

    def _delay(self, number: int, _frame: FrameType | None) -> None:
        self._delayed.append(number)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for number in dict.fromkeys(self._delayed):
            signal.raise_signal(number)


class StopRequest(_Signals):
    """Context in which a first SIGINT or SIGTERM only sets `signal_name`; a second one interrupts at once.

    SIGHUP (a closed terminal) only sets `hung_up`, because a run with a log file can continue.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.forced = False
        """Whether a second signal came, so that the run must end without waiting for anything."""
        self.hung_up = False
        super().__init__({signal.SIGINT: self._stop, signal.SIGTERM: self._stop, signal.SIGHUP: self._on_hangup})

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name:
            self.forced = True
            self._interrupt(number, frame)
        self.signal_name = signal.Signals(number).name

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self.hung_up = True


class Interruptible(_Signals):
    """Context for work with nothing to save: SIGTERM interrupts like SIGINT, SIGHUP is ignored."""

    def __init__(self) -> None:
        super().__init__({signal.SIGTERM: self._interrupt, signal.SIGHUP: self._ignore})

    def _ignore(self, _number: int, _frame: FrameType | None) -> None:
        pass
