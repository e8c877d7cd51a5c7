"""Start a training, exit right after its first batch and print the time.

    python -m benchmarks.resilience.first_step FLAGS

FLAGS is a JSON object with the arguments of `graph_train.train`; the output is a line with `time.time()`.
"""

import json
import os
import sys
import time
from typing import Any

from graph_train.hooks.callbacks import Callbacks
from kernels.host.process_settings import configure_process


def _leave(*_: Any) -> None:
    sys.__stdout__.write(f"first step {time.time()!r}\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
    os._exit(0)  # neither saves nor validates


def main() -> None:
    """Train until the first step is done."""
    configure_process()
    from graph_train.launch.train import train

    callbacks = Callbacks()
    callbacks.register_action("on_train_batch_end", callback=_leave)
    train(callbacks=callbacks, **json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
