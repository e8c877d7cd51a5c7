"""The common part of the commands that use trained weights: `graph-val`, `graph-predict` and `graph-export`."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import TypeVar

from graph_train.host.published_weights import located_weights
from graph_train.host.run_command import run_command, show_messages
from graph_train.settings.export_options import ExportOptions
from graph_train.settings.flag_table import options_of
from graph_train.settings.predict_options import PredictOptions
from graph_train.settings.val_options import ValOptions
from kernels.host.heap import keep_freed_blocks
from kernels.host.process_settings import configure_process

Options = TypeVar("Options", ValOptions, PredictOptions, ExportOptions)


def run_weights_command(
    parser: ArgumentParser,
    kind: type[Options],
    work: Callable[[Options], int | None],
    arguments: Sequence[str] | None,
) -> int:
    """Parse the flags, find or download the weights, and do the work; return the exit code.

    Args:
        parser: its `prog` is the command's name.
        kind: class of the settings.
        work: imports what it needs, so that argument errors and `--help` are handled before any heavy import.
        arguments: those of `main`; None for the command line.
    """
    flags = vars(parser.parse_args(arguments))

    def command() -> int | None:
        configure_process()
        keep_freed_blocks()
        options = options_of(kind, flags)
        show_messages()
        for path in options.weights:
            located_weights(path, allow_download=options.allow_download)
        return work(options)

    return run_command(parser.prog, command, debug=bool(flags.get("debug")), process_ends=arguments is None)
