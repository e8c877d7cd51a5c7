"""A `graph_train` job in which a callback on rank 1 requests a stop after its third batch."""

import os
import sys

from graph_train.ranks import team


def main() -> int:
    """Train with the flags of `graph-train`."""
    team.join()
    from graph_train.hooks.callbacks import Callbacks
    from graph_train.launch.train import train
    from graph_train.settings.train_options import given_flags

    callbacks, seen = Callbacks(), []

    def stop_after_three(*_: object) -> None:
        seen.append(1)
        callbacks.stop_training = len(seen) == 3

    if os.environ["RANK"] == "1":
        callbacks.register_action("on_train_batch_end", "three batches", stop_after_three)
    train(callbacks=callbacks, **given_flags(sys.argv[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
