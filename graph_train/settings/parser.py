"""The argument parser of every command: a mistake gives one line that names the nearest flag, and exit code 2."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from graph_train.host.failures import USER_ERROR


class CommandParser(argparse.ArgumentParser):
    """`argparse` without abbreviations and without the page of usage before each error."""

    def __init__(self, *, former: Mapping[str, str] | None = None, **settings: Any) -> None:
        """
        Args:
            former: flags of earlier programs -> what stands for them today.
            settings: of `argparse.ArgumentParser`.
        """
        super().__init__(allow_abbrev=False, **settings)
        self._former = former or {}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as `argparse` does, but report an unknown flag first, with the nearest one that exists."""
        known = [name for action in self._actions for name in action.option_strings]
        for given in sys.argv[1:] if args is None else args:
            flag = given.partition("=")[0]
            if flag in self._former:
                self.error(f"{flag}: {self._former[flag]}")
            if flag.startswith("--") and flag not in known:
                dashed = [
                    name for name in known if name.replace("_", "-") == name or name.replace("_", "-") not in known
                ]
                near = difflib.get_close_matches(flag, dashed, n=1, cutoff=0.5)
                self.error(f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else ""))
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]!r} belongs to no flag")
        return flags

    def error(self, message: str) -> NoReturn:
        """End the program with one line."""
        self.exit(USER_ERROR, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the program; bytes of the command line that are no text are printed as escapes."""
        if message and sys.stderr is not None:
            sys.stderr.write(message.encode("utf-8", "backslashreplace").decode())
        sys.exit(status)
