"""`graph-export`: export trained weights to other formats."""

import sys
from collections.abc import Sequence

from graph_train.host.published_weights import located_weights
from graph_train.host.run_command import run_command, show_messages
from graph_train.settings.export_options import ExportOptions, build_parser
from graph_train.settings.flag_table import options_of
from kernels.host.process_settings import configure_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Argument errors and `--help` are handled before any heavy import."""
    flags = vars(build_parser().parse_args(arguments))

    def command() -> None:
        configure_process()
        options = options_of(ExportOptions, flags)
        show_messages()
        for path in options.weights:
            located_weights(path, allow_download=options.allow_download)
        from graph_train.exporting.export import export_weights

        export_weights(options)

    return run_command("graph-export", command, debug=bool(flags.get("debug")), process_ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
