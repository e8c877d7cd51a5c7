"""`graph-train`: train a detector."""

import sys
from collections.abc import Sequence

from graph_train.host.interrupts import Interruptible
from graph_train.host.published_weights import located_weights
from graph_train.host.run_command import run_command
from graph_train.ranks import team
from graph_train.settings.train_options import given_flags, options_from_flags, require_network
from kernels.host.process_settings import configure_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Argument errors and `--help` are handled before any heavy import."""
    flags = given_flags(arguments)

    def command() -> None:
        with Interruptible():
            configure_process()
            # With several processes, all ranks must join before OneFlow and DALI are loaded.
            team.join(flags.get("dist_timeout", team.DEFAULT_TIMEOUT), devices=flags.get("device", ""))
            if team.current().info.single_rank:
                # Report invalid settings now rather than after loading OneFlow.
                options = options_from_flags(**flags)
                require_network(options)
                if options.model.weights:
                    located_weights(options.model.weights, allow_download=options.data.allow_download)
            from graph_train.launch.train import train

            train(**flags)

    code = run_command("graph-train", command, debug=bool(flags.get("debug")), process_ends=arguments is None)
    team.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
