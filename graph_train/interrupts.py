"""SIGINT and SIGTERM ask a run to save and stop after the current step; a second one ends it at once."""

import signal
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which signals set `asked` instead of interrupting; handlers are put back at the end."""

    def __init__(self) -> None:
        self.asked = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not in the main thread: the caller keeps its own handling
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
