"""Start a training, exit right after its first batch or batches, and print when each part of the start ended.

    python -m benchmarks.resilience.first_step FLAGS [BATCHES]

FLAGS is a JSON object with the arguments of `graph_train.train`; BATCHES is 1 (the default) or 2. Each line of output
has a part of `PARTS` and `time.time()`.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from graph_train.hooks.callbacks import Callbacks
from kernels.host.process_settings import configure_process

PARTS = {
    "on_pretrain_routine_start": ("imports",),
    "on_train_batch_start": ("set-up and first batch",),
    "on_train_batch_end": ("first step", "second step"),
}
"""Names of the parts by the callback that ends them."""


class _Report:
    """Callback that prints the next of its parts, and may end the process after the last one."""

    def __init__(self, parts: Sequence[str], *, ends: bool) -> None:
        self._parts, self._ends = list(parts), ends

    def __call__(self, *_: Any) -> None:
        if self._parts:
            sys.__stdout__.write(f"{self._parts.pop(0)} {time.time()!r}\n")  # type: ignore[union-attr]
            sys.__stdout__.flush()  # type: ignore[union-attr]
        if self._ends and not self._parts:
            os._exit(0)  # neither saves nor validates


def main() -> None:
    """Train until the last batch is done."""
    configure_process()
    batches = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    from graph_train.launch.train import train

    callbacks = Callbacks()
    for hook, parts in PARTS.items():
        callbacks.register_action(hook, callback=_Report(parts[:batches], ends=hook == "on_train_batch_end"))
    train(callbacks=callbacks, **json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
