"""The argument parser of all commands: errors are one line, with the nearest match for an unknown flag."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from graph_train.host.failures import USER_ERROR
from graph_train.host.terminal import as_line


class CommandParser(argparse.ArgumentParser):
    """An `argparse` parser without abbreviations and without the usage text before each error."""

    def __init__(self, *, advice: Callable[[str], str] | None = None, **settings: Any) -> None:
        """Create the parser; its flags are added later.

        Args:
            advice: returns what to use instead of an unknown flag, or "".
            settings: passed to `argparse.ArgumentParser`.
        """
        super().__init__(allow_abbrev=False, **settings)
        self._advice = advice

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as `argparse` does, but report an unknown flag first, with the nearest match."""
        known = [name for action in self._actions for name in action.option_strings]
        for given in sys.argv[1:] if args is None else args:
            flag = given.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                if advice := self._advice(flag) if self._advice else "":
                    self.error(f"{flag}: {advice}")
                dashed = [
                    name for name in known if name.replace("_", "-") == name or name.replace("_", "-") not in known
                ]
                near = difflib.get_close_matches(flag, dashed, n=1, cutoff=0.6)
                self.error(f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else ""))
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}{_as_flag(unknown[0], known)}")
        return flags

    def error(self, message: str) -> NoReturn:
        """Print a one-line error and exit."""
        self.exit(USER_ERROR, f"{self.prog}: {as_line(message)} (see {self.prog} --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit; undecodable bytes of the command line are printed as escapes."""
        if message and sys.stderr is not None:
            sys.stderr.write(message.encode("utf-8", "backslashreplace").decode())
        sys.exit(status)


def _as_flag(argument: str, known: Sequence[str]) -> str:
    """Return a hint for `name=value`, the spelling of Ultralytics' later programs."""
    name, equals, value = argument.partition("=")
    flag = f"--{name.replace('_', '-')}"
    return f"; did you mean {flag} {value}?" if equals and flag in known else ""
