"""A training with the ops used on CUDA that records the executed kernels: `... FOLDER FLAGS`, FLAGS as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from graph_train.hooks.callbacks import Callbacks
from graph_train.launch.train import train
from kernels.framework.op_trace import executed_ops, reset_executed_ops, trace_ops
from kernels.plugin import load_plugin


def main(out: Path, flags: dict[str, Any]) -> None:
    """Train and write (op, kernel owner) pairs since the start of the first epoch, when all data is on the device."""
    load_plugin("emulated-cuda")
    trace_ops()
    callbacks = Callbacks()
    callbacks.register_action("on_train_start", callback=reset_executed_ops)
    train(callbacks=callbacks, **flags)
    pairs = sorted({(op.kind, op.owner) for op in executed_ops()})
    out.write_text(json.dumps(pairs), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
