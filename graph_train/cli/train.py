"""`graph-train`: trains a detector."""

import sys
from collections.abc import Sequence

from graph_train.cli.errors import run_command
from graph_train.options import given_flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; argument errors and `--help` answer before anything heavy is imported."""
    flags = given_flags(arguments)

    def command() -> None:
        from graph_train.launch import train

        train(**flags)

    return run_command("graph-train", command, debug=bool(flags.get("debug")))


if __name__ == "__main__":
    sys.exit(main())
