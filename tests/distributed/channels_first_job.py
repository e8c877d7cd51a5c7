"""`graph-train` with channels-first activations, as the reference for several ranks."""

import sys

from graph_train.cli.train import main
from graph_train.ranks import team


def _keep_channels_first() -> None:
    from models.layout import Layout

    Layout.fastest_for = classmethod(lambda cls, *_: cls())  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    team.join()  # before anything imports OneFlow
    _keep_channels_first()
    sys.exit(main())
