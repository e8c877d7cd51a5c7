"""`graph-predict`: detect objects in images and videos."""

import sys
from collections.abc import Sequence

from graph_train.host.failures import DONE, USER_ERROR
from graph_train.host.published_weights import located_weights
from graph_train.host.run_command import run_command, show_messages
from graph_train.settings.flag_table import options_of
from graph_train.settings.predict_options import PredictOptions, build_parser
from kernels.host.process_settings import configure_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Argument errors and `--help` are handled before any heavy import."""
    flags = vars(build_parser().parse_args(arguments))

    def command() -> int:
        configure_process()
        options = options_of(PredictOptions, flags)
        show_messages()
        for path in options.weights:
            located_weights(path, allow_download=options.allow_download)
        from graph_train.prediction.predict import predict_sources

        result = predict_sources(options)
        if not result.problems:
            return DONE
        print(f"graph-predict: {len(result.problems)} source files could not be used, see above", file=sys.stderr)
        return USER_ERROR

    return run_command("graph-predict", command, debug=bool(flags.get("debug")), process_ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
