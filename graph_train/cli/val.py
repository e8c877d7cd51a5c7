"""`graph-val`: validate trained weights on a data set."""

import sys
from collections.abc import Sequence

from graph_train.host.published_weights import located_weights
from graph_train.host.run_command import run_command, show_messages
from graph_train.settings.flag_table import options_of
from graph_train.settings.val_options import ValOptions, build_parser
from kernels.host.process_settings import configure_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Argument errors and `--help` are handled before any heavy import."""
    flags = vars(build_parser().parse_args(arguments))

    def command() -> None:
        configure_process()
        options = options_of(ValOptions, flags)
        show_messages()
        for path in options.weights:
            located_weights(path, allow_download=options.allow_download)
        from graph_train.validation.evaluate import evaluate

        evaluate(options)

    return run_command("graph-val", command, debug=bool(flags.get("debug")), process_ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
