"""`graph-predict`: detect objects in images and videos."""

import sys
from collections.abc import Sequence

from graph_train.cli.weights_command import run_weights_command
from graph_train.host.failures import DONE, USER_ERROR
from graph_train.settings.predict_options import PredictOptions, build_parser
from kernels.host.quantity import quantity


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_weights_command(build_parser(), PredictOptions, _predict, arguments)


def _predict(options: PredictOptions) -> int:
    from graph_train.prediction.predict import predict_sources

    result = predict_sources(options)
    if not result.problems:
        return DONE
    files = quantity(len(result.problems), "source file")
    print(f"graph-predict: {files} could not be used, see above", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
