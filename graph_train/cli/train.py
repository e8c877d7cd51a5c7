"""`graph-train`: trains a detector."""

import sys
from collections.abc import Sequence

from graph_train.host.published_weights import located_weights
from graph_train.host.run_command import run_command
from graph_train.ranks import team
from graph_train.settings.train_options import given_flags, options_from_flags
from kernels.host.process_settings import configure_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; argument errors and `--help` answer before anything heavy is imported."""
    flags = given_flags(arguments)

    def command() -> None:
        configure_process()
        # Several processes meet before OneFlow and DALI are loaded.
        team.join(flags.get("dist_timeout", team.DEFAULT_TIMEOUT), devices=flags.get("device", ""))
        if team.current().info.alone:
            # What no run can use is told at once, not after OneFlow has been loaded.
            options = options_from_flags(**flags)
            if options.model.weights:
                located_weights(options.model.weights, allow_download=options.data.allow_download)
        from graph_train.launch.train import train

        train(**flags)

    code = run_command("graph-train", command, debug=bool(flags.get("debug")))
    team.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
