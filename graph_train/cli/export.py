"""`graph-export`: writes trained weights in a form that other programs read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from graph_train.cli.errors import run_command, show_messages
from graph_train.cli.parser import CommandParser

FORMATS = ("safetensors",)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="graph-export", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help=".safetensors, .pt or a OneFlow folder")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="what to write (default: safetensors)")
    parser.add_argument(
        "--part", choices=("ema", "model"), default="ema", help="which network of a training checkpoint"
    )
    parser.add_argument(
        "--output", type=Path, help="file to write (default: beside the weights, NAME.export.safetensors)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; argument errors and `--help` answer before anything heavy is imported."""
    options = build_parser().parse_args(arguments)

    def command() -> None:
        show_messages()
        from graph_train.export import export_safetensors

        output = options.output or options.weights.with_name(f"{options.weights.stem}.export.safetensors")
        export_safetensors(options.weights, output, part=options.part)

    return run_command("graph-export", command, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
