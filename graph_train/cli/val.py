"""`graph-val`: measures trained weights on a data set."""

import logging
import sys
from collections.abc import Sequence

from graph_train.cli.errors import run_command
from graph_train.val_options import build_parser, val_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; argument errors and `--help` answer before anything heavy is imported."""
    flags = vars(build_parser().parse_args(arguments))

    def command() -> None:
        options = val_options(**flags)
        _show_messages()
        from graph_train.evaluation import evaluate

        evaluate(options)

    return run_command("graph-val", command, debug=bool(flags.get("debug")))


def _show_messages() -> None:
    log = logging.getLogger("graph_train")
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [console]
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
