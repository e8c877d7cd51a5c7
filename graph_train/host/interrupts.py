"""Signals of a run: SIGINT and SIGTERM end it, after saving where there is something to save; SIGHUP does not."""

import ctypes
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies in whatever way; for helpers that work for it alone.

    Args:
        parent: its process number; if it is gone already, this process ends at once.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class _Signals:
    """Context with handlers of its own; those before are put back at the end. Only the main thread may have any."""

    def __init__(self, handlers: dict[int, Handler]) -> None:
        self._handlers = handlers
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Any:
        for number, handler in self._handlers.items():
            # Whoever started the process with nohup wants SIGHUP ignored altogether.
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._previous[number] = signal.signal(number, handler)
            except ValueError:  # not in the main thread: the caller keeps its own handling
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class StopRequest(_Signals):
    """Context in which SIGINT and SIGTERM set `asked` instead of interrupting, and a second one interrupts at once.

    A closed terminal (SIGHUP) sets `hung_up`: a run that writes a log goes on.
    """

    def __init__(self) -> None:
        self.asked = ""
        self.insisted = False
        """There was a second signal: nothing may be waited for any more."""
        self.hung_up = False
        super().__init__({signal.SIGINT: self._stop, signal.SIGTERM: self._stop, signal.SIGHUP: self._on_hangup})

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            self.insisted = True
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self.hung_up = True


class Interruptible(_Signals):
    """Context for what has nothing to save yet: SIGTERM ends it as SIGINT does, SIGHUP is ignored."""

    def __init__(self) -> None:
        super().__init__({signal.SIGTERM: self._stop, signal.SIGHUP: self._ignore})

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def _ignore(self, _number: int, _frame: FrameType | None) -> None:
        pass
