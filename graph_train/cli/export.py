"""`graph-export`: export trained weights to other formats."""

import sys
from collections.abc import Sequence

from graph_train.cli.weights_command import run_weights_command
from graph_train.settings.export_options import ExportOptions, build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_weights_command(build_parser(), ExportOptions, _export, arguments)


def _export(options: ExportOptions) -> None:
    from graph_train.exporting.export import export_weights

    export_weights(options)


if __name__ == "__main__":
    sys.exit(main())
