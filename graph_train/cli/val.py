"""`graph-val`: validate trained weights on a data set."""

import sys
from collections.abc import Sequence

from graph_train.cli.weights_command import run_weights_command
from graph_train.settings.val_options import ValOptions, build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_weights_command(build_parser(), ValOptions, _validate, arguments)


def _validate(options: ValOptions) -> None:
    from graph_train.validation.evaluate import evaluate

    evaluate(options)


if __name__ == "__main__":
    sys.exit(main())
